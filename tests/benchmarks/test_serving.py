"""The benchmark of the server loads it, counts what it loses, and says which malformed requests are not refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.serving.__main__ import main
from benchmarks.serving.malformed import KINDS, Refusals


@pytest.mark.slow
def test_a_short_load_is_answered_and_malformed_requests_refused(tmp_path: Path) -> None:
    options = ["--crop", "32", "--clients", "8", "--seconds", "0.5", "--photographs", "3", "--threads", "1"]
    main([*options, "--malformed", str(len(KINDS)), "--out", str(tmp_path / "serving.md")])
    table = (tmp_path / "serving.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.count("|") == 13]
    _, _, roomy, narrow = rows
    for row in (roomy, narrow):
        assert row[8:10] == ["0", "0"]  # lost, wrong
        assert int(row[7]) > 0
    assert int(roomy[11]) == 0 < int(narrow[11])  # 503s
    assert int(narrow[12]) == 0
    assert f"## {len(KINDS)} malformed requests\n\nAll got a clear client error" in table


@pytest.mark.parametrize(
    "wrong",
    [
        Refusals(Counter({200: 1}), 1),
        Refusals(Counter({500: 1}), 1),
        Refusals(Counter({400: 2}), 1),
        Refusals(Counter({0: 1})),
    ],
)
def test_a_request_that_is_not_refused_clearly_is_told(wrong: Refusals) -> None:
    assert Refusals(Counter({400: 1, 415: 1}), 2).all_refused
    assert not wrong.all_refused
