"""Where cached activations are kept: in memory or on disk."""
