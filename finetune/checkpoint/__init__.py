"""Checkpoints: their content, their file, and restoring models and runs from them."""
