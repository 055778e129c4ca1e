"""Devices: which one to train on, its memory and its random generators."""
