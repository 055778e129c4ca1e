"""Every architecture at hand, checked on random weights: `python -m benchmarks.coverage`."""
