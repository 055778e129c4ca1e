"""Values from files have the types that the code relies on."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.checkpoint.forms import check_form


@pytest.mark.parametrize(
    ("value", "form"),
    [(True, int), (1.0, int), ("1", float), (None, str), ([1], [str]), ({}, {"a": int}), ({"b": 1}, {...: str})],
)
def test_another_form_is_an_error(value: Any, form: Any) -> None:
    with pytest.raises(TypeError):
        check_form(value, form)


@pytest.mark.parametrize(("value", "form"), [(1, float), (("a",), [str]), (None, (None, int)), ({"b": 1}, {...: int})])
def test_the_right_form_passes(value: Any, form: Any) -> None:
    check_form(value, form)
