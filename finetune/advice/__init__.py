"""Advice on how to fine-tune, from the features that a pretrained model extracts from the data."""
