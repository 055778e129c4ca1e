"""Names of files, classes and columns, as people write them."""
