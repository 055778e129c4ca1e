"""Training: the loop, the state of a run, and the parts that they use."""
