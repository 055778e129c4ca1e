"""Checks of every installed architecture, on random weights: `python -m benchmarks.coverage`."""
