"""Merge the states of a metric, each over a part of the data, to the state over all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import torchmetrics

State = Mapping[str, Any]


def merged(states: Sequence[State], metrics: Mapping[str, torchmetrics.Metric]) -> dict[str, Any]:
    """Return the state of a meter over all data from those over its parts, as from `Meter.state_dict`.

    Args:
        states: The states, in the order of the parts.
        metrics: The metrics by name, which know how their states add up.
    """
    found: dict[str, Any] = {}
    for name, metric in metrics.items():
        own = [state["metrics"][name] for state in states if name in state["metrics"]]
        if own:
            found[name] = {
                "state": {key: _merged([part["state"][key] for part in own], rule) for key, rule in _rules(metric)},
                "updates": sum(part["updates"] for part in own),
            }
    return {
        "loss": torch.stack([state["loss"] for state in states]).sum(),
        "weight": sum(state["weight"] for state in states),
        "samples": sum(state["samples"] for state in states),
        "metrics": found,
    }


def parts_of(metric: torchmetrics.Metric) -> list[tuple[str, torchmetrics.Metric]]:
    """Return a metric and those that it is composed of, each with the prefix of its state."""
    import torchmetrics

    parts = metric.named_modules()
    return [(name and f"{name}.", part) for name, part in parts if isinstance(part, torchmetrics.Metric)]


def _rules(metric: torchmetrics.Metric) -> list[tuple[str, Any]]:
    """Return the name of each state of a metric and the function that reduces those of several parts, [P, ...]."""
    return [(prefix + key, rule) for prefix, part in parts_of(metric) for key, rule in part._reductions.items()]


def _merged(values: Sequence[Tensor | None], rule: Any) -> Tensor | None:
    from torchmetrics.utilities import dim_zero_cat

    known = [value for value in values if value is not None]
    if len(known) < 2:
        return known[0] if known else None
    if rule is dim_zero_cat:
        return torch.cat([torch.atleast_1d(value) for value in known])
    stacked = torch.stack(known)
    return stacked if rule is None else rule(stacked)
