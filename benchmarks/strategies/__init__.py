"""What papers say of strategies, each as an experiment that can come out the other way."""
