"""Markdown and YAML: any text comes back as it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune.card.markdown import escaped, front_matter

yaml = pytest.importorskip("yaml")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = TEXT | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.sampled_from(["name", "type", "value"])
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.dictionaries(KEYS, inner, min_size=1) | st.lists(TEXT | st.fixed_dictionaries({"type": inner})),
    max_leaves=8,
)


@example({"license": 1e-05})  # which YAML takes for a string
@example({"license": "\u2028\x85\ufeff \U0001f415"})
@given(st.dictionaries(st.sampled_from(["license", "tags", "model-index"]), VALUES, min_size=1))
def test_yaml_reads_back_what_was_written(values: dict[str, Any]) -> None:
    lines = front_matter(values).split("\n")
    assert (lines[0], lines[-1]) == ("---", "---")
    read = yaml.safe_load("\n".join(lines[1:-1]))
    assert read == values


@given(TEXT)
def test_a_cell_stays_in_its_row(text: str) -> None:
    shown = escaped(text)
    assert "\n" not in shown
    assert "|" not in shown.replace("\\\\", "").replace("\\|", "")
    assert "<" not in shown.replace("\\\\", "").replace("\\<", "")
