"""`Paths` are the paths that they were made of, in any selection and in another process."""

from __future__ import annotations

import os
import pickle

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.files.paths import Paths

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(max_examples=30)
@given(paths=st.lists(NAMES), data=st.data())
def test_paths_are_those_given_in_any_selection(paths: list[str], data: st.DataObject) -> None:
    compact = Paths(paths)
    assert [*compact] == paths
    assert len(compact) == len(paths)
    chosen = data.draw(st.lists(st.sampled_from(range(len(paths))), max_size=9)) if paths else []
    part = compact[torch.tensor(chosen, dtype=torch.int64).numpy()]
    assert [*part] == [part[k] for k in range(len(part))] == [paths[k] for k in chosen]
    assert [*pickle.loads(pickle.dumps(part))] == [*part]
    assert [*compact[1:3]] == paths[1:3]
    assert compact.distinct == (len({*paths}) == len(paths))


def test_many_paths_are_those_given_in_any_selection() -> None:
    paths = [f"dogs/{k}.jpg" for k in range(9_000)]
    compact = Paths(paths)
    assert [*compact] == paths
    assert [*compact[4_000:8_500]] == paths[4_000:8_500]
    assert [*compact[::-1]] == paths[::-1]
    assert [compact[k] for k in (4_095, 4_096, 8_999)] == [paths[k] for k in (4_095, 4_096, 8_999)]


def test_a_name_that_is_no_text_stays_the_same() -> None:
    name = os.fsdecode(b"dogs/\xff.jpg")
    assert Paths([name])[0] == name
