"""Data sources: folders, tables, arrays, datasets and loaders behind one protocol."""

from finetune.data.sources.open_source import open_source as open_source
