from __future__ import annotations

import logging
import math
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune import DataError, FineTuner
from finetune.errors import ArgumentError, is_number, number, one_of, printable, whole_number
from tests.helpers.image_files import picture


@pytest.mark.parametrize(
    "value",
    [3, np.int64(3), np.uint8(3), np.array(3), np.array([1, 2, 2]).max() + 1, torch.tensor(3), torch.tensor([3])],
)
def test_every_kind_of_integer_is_a_whole_number(value: Any) -> None:
    whole = whole_number("n", value)
    assert whole == 3
    assert type(whole) is int


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), 3.0, np.float32(3), "3", None, [3], 0, -1, torch.tensor([1, 2]), math.nan],
)
def test_anything_else_is_an_error_that_names_the_argument(value: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected epochs to be a whole number of at least 1, but got"):
        whole_number("epochs", value)


def test_a_seed_may_be_negative() -> None:
    assert whole_number("seed", -1, at_least=None) == -1


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float64(0.5), np.float16(0.5), torch.tensor(0.5), Fraction(1, 2), np.array(0.5)]
)
def test_every_kind_of_real_number_is_a_number(value: Any) -> None:
    assert number("lr", value, above=0) == 0.5
    assert type(number("lr", value)) is float


@pytest.mark.parametrize(
    "value", ["0.5", True, np.True_, None, 0, -1, math.nan, math.inf, 1j, [0.5], torch.tensor([0.1, 0.2]), np.ones(2)]
)
def test_what_is_no_number_within_the_bounds_is_an_error(value: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected lr to be a number above 0 and at most 1, but got"):
        number("lr", value, above=0, at_most=1)


def test_text_and_flags_are_no_numbers() -> None:
    assert [is_number(value) for value in (1, 0.5, math.nan, "1", True, None, [1])] == [True, True, True, *[False] * 4]


@pytest.mark.parametrize("name", ["cosin", None, ["cosine"], 3])
def test_an_argument_that_is_none_of_the_names_is_an_error_with_the_nearest(name: Any) -> None:
    assert one_of("schedule", "cosine", ["cosine", "linear"]) == "cosine"
    meant = " Did you mean 'cosine'?" if name == "cosin" else ""
    with pytest.raises(ArgumentError) as raised:
        one_of("schedule", name, ["linear", "cosine"], "a function")
    assert str(raised.value) == f"There is no schedule {name!r}.{meant} Expected one of linear, cosine, or a function."


def test_without_names_only_the_others_are_expected() -> None:
    with pytest.raises(ArgumentError, match=r"no metric 'f1'\. Expected a function\."):
        one_of("metric", "f1", [], "a function")


@given(st.text())
def test_a_text_loses_only_what_is_not_printed(text: str) -> None:
    shown = printable(text)
    shown.encode()  # as a terminal does
    assert printable(shown) == shown
    assert all(character.isprintable() or character.isspace() or not character.isascii() for character in shown)
    if text.isprintable():
        assert shown == text


def test_an_error_shows_the_name_of_a_file_without_its_controls(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b]0;owned\x07\udcff.png"
    path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        FineTuner("resnet18", weights=None, device="cpu").predict([path])
    assert "a\\x1b]0;owned\\x07\\udcff.png" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_warning_shows_the_name_of_a_file_without_its_controls(tmp_path: Path, caplog) -> None:
    for name in ("cat/0.png", "dog/1.png", "a\x1b[2J\u202e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(0, (8, 8)).save(tmp_path / name)
    with caplog.at_level(logging.WARNING, "finetune"):
        model = FineTuner("resnet18", weights=None, device="cpu", preprocessing={"crop_size": 32, "resize_size": 32})
        model.replace_head(2).fit(tmp_path, val=False, epochs=1, progress=False)
    assert "a\\x1b[2J\\u202e.png" in caplog.text
    assert "\x1b" not in caplog.text
