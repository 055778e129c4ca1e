"""Loading: from a source to batches on the device."""
