"""Numbers as they are shown."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.display.numbers import Values, fixed, rounded


@given(st.floats(1e-300, 1e300))
def test_rounding_keeps_three_digits(value: float) -> None:
    assert rounded(value) == pytest.approx(value, rel=1e-3)
    assert len(fixed(value)) <= 12


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -0.0])
def test_special_values_are_themselves(value: float) -> None:
    assert repr(rounded(value)) == repr(value)


def test_values_are_a_dict_that_prints_short() -> None:
    values = Values({"accuracy": 0.44999998807907104, "lr": {"fc": 0.00051026263828}, "phase": "fit", "epoch": 3})

    assert repr(values) == "{'accuracy': 0.45, 'lr': {'fc': 0.0005103}, 'phase': 'fit', 'epoch': 3}"
    assert values == dict(values)
    assert values["accuracy"] == 0.44999998807907104
    assert pickle.loads(pickle.dumps(values)) == values
