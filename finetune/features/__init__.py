"""What need not be computed again: the frozen prefix of a model, its results, and whether they pay."""
