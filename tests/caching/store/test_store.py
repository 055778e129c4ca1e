"""All stores return the stored tensors, in any order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.caching.store.memory_store import MemoryStore
from finetune.caching.store.store import Spec, Store, StoreSlice
from tests.helpers.stores import KINDS, SPECS, check_stored, equal, fill, opened, values

QUICK = settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.float8_e4m3fn,
)  # fmt: skip


specs_drawn = st.lists(
    st.builds(Spec, st.lists(st.integers(0, 3), max_size=3).map(tuple), st.sampled_from(DTYPES)), min_size=1, max_size=3
)
puts = st.lists(st.lists(st.integers(0, 8), max_size=5, unique=True), max_size=6)


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(specs=specs_drawn, puts=puts, asked=st.lists(st.integers(0, 8), max_size=5))
def test_a_store_is_a_dict_of_tensors(
    kind: str, tmp_path: Path, specs: list[Spec], puts: list[list[int]], asked: list[int]
) -> None:
    expected: dict[int, int] = {}
    shutil.rmtree(tmp_path / "a1", ignore_errors=True)
    wanted = torch.tensor(asked, dtype=torch.int64)

    def check(store: Store) -> None:
        assert store.has(wanted) == all(index in expected for index in asked)
        assert store.full == (len(expected) == 9)
        for index, version in expected.items():
            one = torch.tensor([index])
            assert equal(store.get(one), values(specs, one, version))
        if store.has(wanted):
            rows = [values(specs, wanted[i : i + 1], expected[index]) for i, index in enumerate(asked)]
            if rows:
                assert equal(store.get(wanted), [torch.cat(column) for column in zip(*rows, strict=True)])
        else:
            with pytest.raises(KeyError):
                store.get(wanted)

    with opened(kind, tmp_path, specs, 9) as store:
        for version, numbers in enumerate(puts):
            indices = torch.tensor(numbers, dtype=torch.int64)
            store.put(indices, values(specs, indices, version))
            for number in numbers:
                expected.setdefault(number, version)  # stored rows stay
            check(store)
    if "disk" in kind:
        with opened(kind, tmp_path, specs, 9) as store:
            check(store)


@pytest.mark.parametrize("kind", KINDS)
def test_get_returns_copies(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path, SPECS, 5) as store:
        fill(store)
        store.get(torch.arange(5))[0].zero_()
        assert check_stored(store) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_other_shapes_and_dtypes_are_refused(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path, [Spec((2,), torch.float32)], 5) as store:
        for wrong in (torch.zeros(1, 3), torch.zeros(2, 2), torch.zeros(1, 2).double()):
            with pytest.raises(ValueError, match="rows of"):
                store.put(torch.tensor([1]), [wrong])
        for outside in (-1, 5):
            with pytest.raises(IndexError):
                store.put(torch.tensor([outside]), [torch.zeros(1, 2)])
            with pytest.raises(IndexError):
                store.get(torch.tensor([outside]))
        store.put(torch.tensor([1]), [torch.zeros(2, 1).T])  # of any strides
        assert store.has(torch.tensor([1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_without_rows_is_full(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path, SPECS, 0) as store:
        assert store.full
        assert [len(tensor) for tensor in store.get(torch.empty(0, dtype=torch.int64))] == [0, 0, 0, 0]


def test_a_slice_of_a_store() -> None:
    store = MemoryStore(SPECS, 10)
    part = StoreSlice(store, 4, 6)
    fill(part)
    assert (part.full, store.full, store.has(torch.arange(4, 10))) == (True, False, True)
    assert equal(store.get(torch.tensor([4, 9])), values(SPECS, torch.tensor([0, 5])))
    assert check_stored(part) == 6
