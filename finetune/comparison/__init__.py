"""Comparisons of models and strategies over several seeds. Uses only the public `FineTuner`."""
