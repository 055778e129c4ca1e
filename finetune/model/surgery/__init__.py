"""Changes to a model's modules: heads, input channels, LoRA adapters, fresh weights."""
