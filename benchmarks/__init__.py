"""Benchmarks, each run with `python -m benchmarks.<name>`. They write their tables to `benchmarks/results`."""
