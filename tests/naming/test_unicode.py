from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.naming.unicode import cleaned, normalized


@pytest.mark.parametrize("name", ["cat ", "\xa0cat", "\u200bcat", "c\xadat", "cat\ufeff", "cat\t\n", "cat\u3000"])
def test_what_nobody_sees_is_no_part_of_a_name(name: str) -> None:
    assert normalized(name) == "cat"
    assert cleaned(["dog", name, name, "cat"]) == (["dog", "cat", "cat", "cat"], [name])


@pytest.mark.parametrize("name", ["black cat", "Cat", "\N{WOMAN}\u200d\N{MICROSCOPE}", "\N{KATAKANA LETTER KA}"])
def test_what_is_seen_stays(name: str) -> None:
    assert normalized(name) == name


@given(st.text())
def test_every_spelling_of_a_name_is_one(name: str) -> None:
    spellings = {normalized(unicodedata.normalize(form, name)) for form in ("NFC", "NFD")}
    assert spellings == {normalized(name)}
    assert normalized(normalized(name)) == normalized(name)
