"""Progress of long work: a live display on a terminal or in a notebook, and rare lines elsewhere."""
