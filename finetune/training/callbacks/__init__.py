"""What may be added to a run without touching the loop; the public door is `finetune.callbacks`."""
