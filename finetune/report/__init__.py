"""One self-contained HTML file on a model and its answers."""
