"""Frozen-prefix cache: activations computed once per sample, stored, and replayed."""
