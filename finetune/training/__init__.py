"""One phase of training, and what it needs."""
