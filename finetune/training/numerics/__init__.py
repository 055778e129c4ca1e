"""Number formats, and the checks that updates and weights are finite."""
