"""What is learned from runs rather than in them; only the public `FineTuner` is used here."""
