"""Looks at a model without changing it: example inputs, the recorded forward pass, costs, the summary."""
