"""Inspection of a model without changing it: example inputs, recorded forward pass, costs and summary."""
