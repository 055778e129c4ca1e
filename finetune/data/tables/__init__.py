"""Tables of a path or text and a label per row."""
