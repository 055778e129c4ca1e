"""Facts of raw items: content, size, light."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune.data.preprocessing.base import TextPair, Waveform
from finetune.data_check.samples.facts import content_key, facts_of
from tests.helpers.image_files import picture

ITEMS = [
    "a", "b", TextPair("a", "b"), TextPair("ab", ""), picture(0), picture(1), picture(0).convert("L"),
    picture(0, (32, 40)), torch.zeros(3), torch.zeros(4), torch.zeros(3, dtype=torch.int64), np.zeros((1, 3)),
    Waveform(np.ones(5, np.float32), 8000), {"x": torch.ones(2)}, [torch.zeros(2), torch.ones(2)],
]  # fmt: skip


def test_different_contents_have_different_keys() -> None:
    assert len({content_key(item) for item in ITEMS}) == len(ITEMS)


@pytest.mark.parametrize("item", ITEMS, ids=[str(place) for place in range(len(ITEMS))])
def test_equal_contents_have_equal_keys(item: object) -> None:
    copied = item.copy() if isinstance(item, Image.Image) else item
    assert content_key(item) == content_key(copied)


@given(st.text(), st.text())
def test_texts_have_equal_keys_only_if_they_are_equal(one: str, other: str) -> None:
    assert (content_key(one) == content_key(other)) == (one == other)


@pytest.mark.parametrize(
    ("item", "finite"),
    [
        (torch.tensor([1.0, torch.nan]), False),
        ({"a": torch.ones(2), "b": torch.tensor([torch.inf])}, False),
        (torch.ones(2), True),
        (torch.ones(2, dtype=torch.int64), True),
        ("nan", True),
        (np.array([np.nan]), False),
    ],
)
def test_values_that_are_not_finite_are_a_fact(item: object, finite: bool) -> None:
    assert bool(facts_of(item, pictures=False)["finite"]) == finite


def test_light_of_floats_is_unknown_and_of_bytes_known() -> None:
    values = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert facts_of(values, pictures=True)["darkest"].isnan()
    known = facts_of((255 * values).to(torch.uint8), pictures=True)
    assert known["darkest"] < known["brightest"]
    assert facts_of(torch.zeros(3, 8, 8), pictures=True)["contrast"] == 0


def test_an_item_that_is_no_picture_has_facts_of_the_same_shapes() -> None:
    shapes = [
        {name: value.shape for name, value in facts_of(item, pictures=True).items()}
        for item in (picture(0), torch.ones(2))
    ]
    assert shapes[0] == shapes[1]
