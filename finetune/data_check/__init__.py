"""Faults in the data: duplicates, leaks, wrong labels, outliers, and pictures that show nothing."""
