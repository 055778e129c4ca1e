"""What features of the data say about a transfer: measured, judged, and drawn."""
