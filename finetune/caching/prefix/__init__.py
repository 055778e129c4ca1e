"""The frozen prefix of a model: traced, cut, verified, and replayed from stored activations."""
