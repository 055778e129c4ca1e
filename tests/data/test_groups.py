from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.groups import firsts, joined


def connected(pairs: list[tuple[int, int]]) -> list[int]:
    """Return the first sample that each sample is connected to, by walks from sample to sample."""
    found = []
    for start in range(len(pairs)):
        reached, ahead = {start}, [start]
        while ahead:
            here = pairs[ahead.pop()]
            new = {k for k, pair in enumerate(pairs) if here[0] == pair[0] or here[1] == pair[1]} - reached
            reached |= new
            ahead += new
        found.append(min(reached))
    return found


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_joined_groups_are_the_connected_ones(pairs: list[tuple[int, int]]) -> None:
    one, other = (torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1))
    assert joined(one, other).tolist() == connected(pairs)
    assert firsts(one).tolist() == [one.tolist().index(group) for group in one.tolist()]
