"""Hashes: the same values give the same hash wherever they lie, and the hashes on disk never change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune.digests import checksum, key_of, key_of_file, keys_of_rows, sha256

DTYPES = [torch.uint8, torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64]


def test_hashes_on_disk_never_change() -> None:
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert sha256("a", b"b", values, values.numpy()) == (
        "36b10bb0e3458854d2389261ddbf6b399a05dc9a3ee237dc2ea4aac63297dc8d"
    )
    assert key_of("view 1", b"abc").hex() == "f826331205f7039fcc4b122147389cb4"
    assert [key.hex() for key in keys_of_rows(values, torch.tensor([1, 0]))] == [
        "a578f41b5386be6d7e2561d0216f3257",
        "b8eb46ea23007c94d23ead3c652ddd3c",
    ]
    assert next(keys_of_rows(values.numpy(), torch.tensor([1]))).hex() == "a98239610608483e1885d514046e7833"


def test_sha256_is_that_of_the_concatenation() -> None:
    values = torch.rand(5, 3)
    expected = hashlib.sha256(b"ab" + values.numpy().tobytes()).hexdigest()
    assert sha256("a", b"b", values) == sha256("ab", values.numpy()) == sha256("ab", values[:2], values[2:]) == expected


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda values: values.T.contiguous().T,
    "part of a tensor": lambda values: torch.cat([values, values])[len(values) :],
    "conjugate": lambda values: values.conj().resolve_conj().conj(),
    "negative": lambda values: torch._neg_view(-values),
    "parameter": lambda values: torch.nn.Parameter(values, requires_grad=values.is_floating_point()),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_only_values_count(view: str, dtype: torch.dtype) -> None:
    values = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    other = VIEWS[view](values)
    assert sha256(other) == sha256(values)
    assert checksum(other) == checksum(values)
    assert [*keys_of_rows(other, torch.arange(4))] == [*keys_of_rows(values, torch.arange(4))]


def test_large_tensors_are_hashed_in_chunks() -> None:
    values = torch.rand(3, 1 << 21)  # 24 MiB, in chunks of 16
    assert sha256(values.T) == hashlib.sha256(values.T.numpy().tobytes()).hexdigest()


def test_any_value_changes_a_checksum() -> None:
    values = torch.zeros(3, 4)
    before = checksum(values)
    values.data[1, 2] = 1e-30
    assert before != checksum(values) == checksum(values.numpy())


def test_a_checksum_is_none_where_values_cannot_be_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    unreadable = [None, torch.empty(2, device="meta"), torch.eye(2).to_sparse(), mapped, mapped[1:]]
    assert [checksum(values) for values in unreadable] == [None] * 5


def test_values_without_bytes_cannot_be_hashed() -> None:
    with pytest.raises(RuntimeError):
        sha256(torch.empty(2, device="meta"))
    with pytest.raises(TypeError):
        sha256(np.array([object()]))


@given(data=st.data(), dtype=st.sampled_from(DTYPES), chunk_bytes=st.integers(1, 40))
def test_a_byte_of_any_array_shows_in_its_row_alone(data: st.DataObject, dtype: torch.dtype, chunk_bytes: int) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    values = torch.randint(0, 2, shape).to(dtype)
    every = torch.arange(len(values))
    before = [*keys_of_rows(values, every)]
    assert [*keys_of_rows(values.clone(), every, chunk_bytes=chunk_bytes)] == before
    flat = values.view(-1)
    place = data.draw(st.integers(0, len(flat) - 1))
    flat[place] = 1 - flat[place].to(torch.int64).item() if not dtype.is_complex else 2j
    after = [*keys_of_rows(values, every, chunk_bytes=chunk_bytes)]
    row = place // (len(flat) // len(values))
    assert [one != other for one, other in zip(before, after, strict=True)] == [i == row for i in range(len(values))]


def test_a_file_counts_with_its_content_within_the_grain_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    state = path.stat()
    monkeypatch.setattr(os, "stat", lambda path, **_: state)  # a clock that stands still
    fresh, old = key_of_file(path, clock_grain=1e9), key_of_file(path, clock_grain=-1e9)
    path.write_bytes(b"two")
    assert key_of_file(path, clock_grain=1e9) != fresh != old == key_of_file(path, clock_grain=-1e9)


def test_a_file_is_known_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    absolute = key_of_file(path)
    monkeypatch.chdir(tmp_path)
    assert key_of_file(Path(os.curdir, "a")) == absolute


def test_a_single_value_of_any_stride_is_read() -> None:
    column = torch.arange(12.0).reshape(3, 4)[:1, 0]
    assert sha256(column) == sha256(column.clone())
