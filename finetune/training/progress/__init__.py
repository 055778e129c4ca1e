"""Progress of training: the overview of a run, its bar, and the bar of a series of runs."""
