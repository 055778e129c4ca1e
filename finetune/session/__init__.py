"""What a `FineTuner` knows and prepares; the verbs of `finetune.tuner` are built from these pieces."""
