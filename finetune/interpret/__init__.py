"""What a model has learned: its answers in words, and how sure they are."""
