"""Optimizers, learning rates, schedules, and the phases that combine them."""
