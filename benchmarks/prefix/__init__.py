"""The frozen prefix on every architecture: is it split, is training from it training: `python -m benchmarks.prefix`."""
