"""Cache of frozen features: activations computed once per sample, stored, and replayed."""
