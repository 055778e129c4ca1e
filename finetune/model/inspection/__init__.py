"""Inspects a model without changing it: example inputs, the recorded forward pass, costs and the summary."""
