"""Knowledge of each sample, collected in one pass: features of the model and facts of the raw item."""
