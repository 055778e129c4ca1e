"""Data: opening the user's data, checking it, and loading batches on the device."""
