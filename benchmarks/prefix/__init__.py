"""The frozen prefix of every architecture, and training from its cached features: `python -m benchmarks.prefix`."""
