"""Optimizers, learning rates, schedules, and the phases that use them."""
