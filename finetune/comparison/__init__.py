"""Comparisons of models and strategies over several seeds, built on the public `FineTuner`."""
