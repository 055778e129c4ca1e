"""Measurements that run on their own: not tests, and no part of the installed package."""
