"""One safetensors file: write, verify, read."""
