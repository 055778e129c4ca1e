"""Files of a model that run without this package: what is inside them, how they are written, and how they are tried."""
