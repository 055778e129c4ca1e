"""What was measured, each as `python -m benchmarks.<name>`; tables go to `benchmarks/results`."""
