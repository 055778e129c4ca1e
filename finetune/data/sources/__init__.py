"""Data sources: folders, tables, arrays, datasets and loaders behind one protocol."""
