"""Digests of runs: equal for equal runs, different for any others."""

from __future__ import annotations

from benchmarks.digests import digest, fitted, layers, numbers
from finetune import FineTuner


def trained(lr: float = 1e-3) -> FineTuner:
    return fitted(FineTuner(layers(), device="cpu"), numbers(24), epochs=1, lr=lr)


def test_a_digest_covers_weights_and_history() -> None:
    assert digest(trained()) == digest(trained())
    assert digest(trained()) != digest(trained(lr=1.1e-3))
    tuner = trained()
    before = digest(tuner)
    tuner.history[0]["loss"] += 1e-6
    assert digest(tuner) != before
