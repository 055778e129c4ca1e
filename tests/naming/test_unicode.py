from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from finetune.naming.unicode import normalized


@given(st.text())
def test_every_spelling_of_a_name_is_one(name: str) -> None:
    spellings = {normalized(unicodedata.normalize(form, name)) for form in ("NFC", "NFD")}
    assert spellings == {normalized(name)}
    assert normalized(normalized(name)) == normalized(name)
