"""Write a model to files that run without this package, and verify that they give its answers."""
