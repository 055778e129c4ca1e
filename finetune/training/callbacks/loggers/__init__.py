"""Loggers: files, and the trackers of experiments."""
