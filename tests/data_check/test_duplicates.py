"""Copies of pictures and texts: which changes keep a copy one, and which pairs are none."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from finetune.data_check.duplicates import Group, groups_of, near_pictures, near_texts
from finetune.data_check.neighbors import directions, nearest_neighbors
from finetune.data_check.samples.facts import Facts, facts_of
from tests.helpers.image_files import picture


def photo(seed: int) -> Image.Image:
    """Return a picture with areas and details, as noise in two sizes."""
    rough = picture(seed, (9, 7)).resize((96, 72), Image.Resampling.BICUBIC)
    fine = picture(seed + 10_000, (32, 24)).resize((96, 72), Image.Resampling.BICUBIC)
    return Image.blend(rough, fine, 0.4)


def facts_of_all(pictures: list[Image.Image]) -> Facts:
    facts = [facts_of(each, pictures=True) for each in pictures]
    return {name: torch.stack([each[name] for each in facts]) for name in facts[0]}


def neighbors_of(pictures: list[Image.Image]) -> tuple[Tensor, Tensor]:
    """Return neighbors by features that a crop hardly changes: the colors of a small copy."""
    small = [torch.frombuffer(bytearray(each.resize((3, 3)).tobytes()), dtype=torch.uint8) for each in pictures]
    return nearest_neighbors(directions(torch.stack(small).float()), 10)


def pairs_in(pictures: list[Image.Image]) -> list[tuple[int, int]]:
    return near_pictures(facts_of_all(pictures), *neighbors_of(pictures))


def encoded(image: Image.Image) -> Image.Image:
    page = io.BytesIO()
    image.save(page, "JPEG", quality=50)
    return Image.open(page)


CHANGES = {
    "encoded": encoded,
    "smaller": lambda image: image.resize((48, 36)),
    "larger": lambda image: image.resize((150, 112)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "cropped": lambda image: image.crop((5, 3, 94, 68)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(change: str) -> None:
    originals = [photo(seed) for seed in range(30)]
    assert pairs_in([*originals, CHANGES[change](originals[7])]) == [(7, 30)]


def test_pictures_of_one_motif_are_no_copies() -> None:
    frame = photo(0).filter(ImageFilter.GaussianBlur(6))
    assert pairs_in([Image.blend(frame, photo(seed), 0.5) for seed in range(1, 30)]) == []


def test_pictures_in_other_colors_are_no_copies() -> None:
    gray = photo(3).convert("L")
    tinted = [
        Image.merge("RGB", [gray if band == own else gray.point(lambda v: v // 3) for band in range(3)])
        for own in (0, 1)
    ]
    assert pairs_in([photo(seed) for seed in range(10, 30)] + tinted) == []


def test_flat_pictures_are_no_near_copies() -> None:
    assert pairs_in([Image.new("RGB", (40, 40), (level,) * 3) for level in range(0, 200, 10)]) == []


@pytest.mark.parametrize(
    ("one", "other", "copies"),
    [
        ("A good film.", "a GOOD  film!", True),
        ("Déjà vu again", "deja vu again", True),
        ("A good film.", "A bad film.", False),
        ("The parcel for my new camera has not arrived yet", "The parcel for my new camera has not arived yet", True),
        ("The parcel for my new camera has not arrived yet", "The parcel for my old camera has not arrived yet", False),
        (
            "I was charged 120 dollars for the camera in March",
            "I was charged 121 dollars for the camera in March",
            False,
        ),
        ("The parcel for my camera has not arrived in Oslo", "The parcel for my camera has now arrived in Oslo", False),
    ],
)
def test_texts_are_copies_if_no_word_is_another(one: str, other: str, copies: bool) -> None:
    texts = [one, other, "Something else entirely"]
    neighbors = torch.tensor([[1, 2], [0, 2], [0, 1]])
    assert (near_texts(texts.__getitem__, neighbors) == [(0, 1)]) == copies


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=8),
)
def test_groups_are_connected_and_complete(contents: list[int], drawn: list[tuple[int, int]]) -> None:
    count = len(contents)
    pairs = [(a, b) for a, b in drawn if a < count and b < count]
    found = groups_of(torch.tensor(contents)[:, None], pairs, range(count))
    joined = [{row} for row in range(count)]
    links = [*pairs, *((a, b) for a in range(count) for b in range(a) if contents[a] == contents[b])]
    for one, other in links:
        first, second = (next(each for each in joined if row in each) for row in (one, other))
        if first is not second:
            joined.remove(second)
            first |= second
    expected = {
        Group(tuple(sorted(each)), len({contents[row] for row in each}) == 1) for each in joined if len(each) > 1
    }
    assert {*found} == expected
