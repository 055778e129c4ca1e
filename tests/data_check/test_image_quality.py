"""Poor pictures are found by limits and by comparison with the rest of the data."""

from __future__ import annotations

import pytest
from PIL import Image, ImageEnhance, ImageFilter

from finetune.data_check.image_quality import poor_pictures
from tests.data_check.test_duplicates import facts_of_all, photo

CHANGES = {
    "blank": lambda image: Image.new("RGB", image.size, (90, 80, 70)),
    "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.1),
    "bright": lambda image: Image.blend(image, Image.new("RGB", image.size, "white"), 0.9),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(7)),
    "odd size": lambda image: image.resize((12, 9)),
}
ORIGINALS = [photo(seed) for seed in range(40)]


def test_good_pictures_have_no_fault() -> None:
    assert poor_pictures(facts_of_all(ORIGINALS)) == []


@pytest.mark.parametrize("kind", CHANGES)
def test_a_poor_picture_is_found_with_its_kind_alone(kind: str) -> None:
    found = poor_pictures(facts_of_all([*ORIGINALS, CHANGES[kind](ORIGINALS[3])]))
    assert [(name, row) for name, row, _ in found] == [(kind, 40)]


def test_an_odd_shape_is_found() -> None:
    (found,) = poor_pictures(facts_of_all([*ORIGINALS, photo(99).resize((300, 24))]))
    assert found == ("odd size", 40, "300 x 24 pixels, 9.4 times wider than usual")


@pytest.mark.parametrize("kind", ["dark", "bright", "blurred", "odd size"])
def test_a_fault_that_all_pictures_have_is_how_the_data_is(kind: str) -> None:
    assert poor_pictures(facts_of_all([CHANGES[kind](each) for each in ORIGINALS])) == []


def test_portraits_among_landscapes_are_no_fault() -> None:
    turned = [photo(seed).resize((72, 96)) for seed in range(50, 56)]
    assert poor_pictures(facts_of_all([*ORIGINALS, *turned])) == []
