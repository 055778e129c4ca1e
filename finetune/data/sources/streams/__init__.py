"""Data without sample indices: iterable datasets and DataLoaders."""
