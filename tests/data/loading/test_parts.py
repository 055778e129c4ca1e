"""Parts of batches: which samples, in which structure, and when they are made smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from finetune.data.loading.parts import Parts, release, rows

X, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)


@given(st.integers(1, 200), st.integers(1, 200))
def test_parts_cover_a_batch_in_order_and_evenly(size: int, limit: int) -> None:
    parts = Parts()
    parts.limit = limit
    found = parts.of(size)
    assert [index for part in found for index in range(size)[part]] == list(range(size))
    sizes = [part.stop - part.start for part in found]
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((X, y), (X[1:3], y[1:3])),
        ([X, y], [X[1:3], y[1:3]]),
        ({"x": X, "label": y, "scale": 2.0}, {"x": X[1:3], "label": y[1:3], "scale": 2.0}),
        (((X, X + 1), y), ((X[1:3], X[1:3] + 1), y[1:3])),
        ((["a", "b", "c", "d", "e", "f"], y), (["b", "c"], y[1:3])),
        (
            ([X[:n] for n in range(6)], [{"box": X[n]} for n in range(6)]),
            ([X[:1], X[:2]], [{"box": X[1]}, {"box": X[2]}]),
        ),
        ((X.numpy(), None), (X[1:3].numpy(), None)),
        ((X, y, torch.tensor(3.0)), (X[1:3], y[1:3], torch.tensor(3.0))),
    ],
    ids=["pair", "list", "dict", "columns", "texts", "samples", "array", "constant"],
)
def test_rows_of_every_structure(batch: Any, expected: Any) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, (Tensor, np.ndarray)):
            return value.tolist()
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value

    assert plain(rows(batch, 6, slice(1, 3))) == plain(expected)
    assert rows(batch, 6, slice(0, 6)) is batch


@pytest.mark.parametrize("inputs", [torch.zeros(5, 6, 2), pack_sequence([X[:2], X[:1]]), object(), range(6)])
def test_what_has_no_rows_is_refused(inputs: Any) -> None:
    with pytest.raises(ValueError, match="per sample"):
        rows((inputs, y), 6, slice(0, 3))


def test_the_same_tensor_has_the_same_part() -> None:
    made: dict[int, Any] = {}
    one, other = rows((X, y), 6, slice(0, 3), made), rows((X, y + 1), 6, slice(0, 3), made)
    assert one[0] is other[0]
    assert one[1] is not other[1]


def test_parts_are_halved_down_to_one_sample() -> None:
    said: list[str] = []
    parts = Parts(" Note.", said.append)
    for limit in (3, 2, 1):
        with parts.halved((X, y)):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert parts.limit == limit
    assert said[0] == "Out of memory on 6 samples: from now on, at most 3 run through the model at once. Note."
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Even one sample"), parts.halved((X, y)):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_batch_that_cannot_be_divided_keeps_its_error() -> None:
    parts = Parts()
    with pytest.raises(torch.OutOfMemoryError, match="The batch cannot be divided"), parts.halved((X.T, y)):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert parts.limit is None


def test_the_memory_of_a_failed_computation_is_returned(accelerator: torch.device) -> None:
    before = torch.accelerator.memory_reserved(accelerator)
    torch.empty(64 << 20, dtype=torch.uint8, device=accelerator)
    assert torch.accelerator.memory_reserved(accelerator) > before
    release()
    assert torch.accelerator.memory_reserved(accelerator) <= before


def test_other_errors_pass() -> None:
    parts = Parts()
    with pytest.raises(RuntimeError, match="device-side assert"), parts.halved((X, y)):
        raise RuntimeError("CUDA error: device-side assert triggered")
    assert parts.limit is None


@pytest.mark.parametrize("limit", [None, 1, 2, 4, 5])
def test_a_pass_in_parts_is_complete_and_in_order(limit: int | None) -> None:
    def compute(batch: Any) -> Tensor:
        if limit is not None and len(batch[0]) > limit:
            raise torch.OutOfMemoryError
        return batch[0].sum(1)

    parts = Parts()
    for _ in range(2):
        found = list(parts.over((X, y), compute))
        assert torch.equal(torch.cat([output for _, output in found]), X.sum(1))
        assert torch.equal(torch.cat([part[1] for part, _ in found]), y)
