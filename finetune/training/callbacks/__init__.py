"""Callbacks, one per file; users import them from `finetune.callbacks`."""
