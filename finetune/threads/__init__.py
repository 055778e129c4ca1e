"""Threads that share models and the random generators: locks and turns."""
