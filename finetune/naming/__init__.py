"""Names of files, classes, columns and arguments, as people write them."""
