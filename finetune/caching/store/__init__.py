"""Stores of cached activations, in memory or on disk, and the keys that identify them."""
