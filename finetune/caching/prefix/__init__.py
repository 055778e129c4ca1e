"""The frozen prefix: traced, cut, proved, and replayed from stored activations."""
