"""`History`: a sequence of rows, and its plot."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCohenKappa

from finetune import FineTuner, History

ROWS = [
    {"epoch": 1, "phase": "a", "loss": 2.0, "accuracy": 0.5, "lr": {"fc": 1e-3}, "seconds": 1.0,
     "samples_per_second": 10.0},
    {"epoch": 2, "phase": "b", "loss": 1.0, "accuracy": 0.6, "val_loss": 1.5, "val_accuracy": 0.4, "lr": {"fc": 1e-4},
     "seconds": 1.0, "samples_per_second": 11.0},
    {"epoch": 3, "phase": "b", "loss": 0.5, "accuracy": 0.9, "val_loss": 1.25, "val_accuracy": 0.7, "val_only": 3.0,
     "lr": {"fc": 1e-5}, "seconds": 1.0, "samples_per_second": 12.0},
]  # fmt: skip


def test_a_history_is_a_sequence_of_rows() -> None:
    history = History(ROWS)

    assert len(history) == 3
    assert list(history) == ROWS
    assert history[-1] == ROWS[-1]
    assert history[1:] == ROWS[1:]
    assert ROWS[0] in history
    assert history.index(ROWS[1]) == 1
    assert [row["epoch"] for row in reversed(history)] == [3, 2, 1]
    assert repr(history) == "History(3 epochs)"
    assert not History()
    with pytest.raises(IndexError):
        history[3]


def test_a_history_prints_a_table_of_losses_and_metrics() -> None:
    lines = str(History(ROWS)).splitlines()

    assert lines[0].split() == ["epoch", "phase", "loss", "accuracy", "val_loss", "val_accuracy", "val_only"]
    assert lines[1].split() == ["1", "a", "2.0000", "0.5000"]
    assert lines[3].split() == ["3", "b", "0.5000", "0.9000", "1.2500", "0.7000", "3.0000"]
    assert len({*map(len, lines)}) == 1
    assert History(ROWS)._repr_html_().count("<tr>") == 4
    assert str(History()) == "epoch"


def test_rows_are_rounded_where_they_are_printed() -> None:
    history = History([{"epoch": 1, "phase": "fit", "loss": 0.123456, "accuracy": 0.44999998807907104}])
    history.append({"epoch": 2, "loss": 0.44999998807907104})

    assert repr(history[0]) == "{'epoch': 1, 'phase': 'fit', 'loss': 0.1235, 'accuracy': 0.45}"
    assert history[0]["accuracy"] == 0.44999998807907104
    assert repr(history[1:]) == "[{'epoch': 2, 'loss': 0.45}]"


def test_append_does_not_change_the_list_it_was_made_from() -> None:
    history = History(ROWS[:1])

    history.append(ROWS[1])

    assert list(history) == ROWS[:2]
    assert len(ROWS) == 3


def test_the_plot_shows_every_series_over_its_own_epochs() -> None:
    figure = History(ROWS).plot()

    drawn = {
        (axes.get_title("left"), line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for axes in figure.axes[:3]
        for line in axes.lines
        if line.get_label() != "best epoch"
    }
    assert drawn == {
        ("loss", "training"): ([1, 2, 3], [2.0, 1.0, 0.5]),
        ("loss", "validation"): ([2, 3], [1.5, 1.25]),
        ("accuracy", "training"): ([1, 2, 3], [0.5, 0.6, 0.9]),
        ("accuracy", "validation"): ([2, 3], [0.4, 0.7]),
        ("only", "validation"): ([3], [3.0]),
    }
    assert all(axes.get_xlabel() == "epoch" for axes in figure.axes)


def test_the_plot_is_saved(net, blobs, tmp_path) -> None:
    history = FineTuner(net(), device="cpu").fit(blobs(), blobs(9), epochs=2)

    history.plot(tmp_path / "history.png")

    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_an_empty_history_has_an_empty_plot(tmp_path) -> None:
    figure = History().plot(tmp_path / "none.svg")

    assert not any(axes.lines for axes in figure.axes)
    assert (tmp_path / "none.svg").stat().st_size > 0


@pytest.mark.parametrize(
    "measured",
    [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5), Fraction(1, 2)],
)
def test_measured_numbers_are_kept_as_plain_ones(measured: Any) -> None:
    history = History()
    history.append({"epoch": 1, "loss": 1.0, "own": measured})
    assert type(history[0]["own"]) is float
    assert history[0]["own"] == 0.5


@pytest.mark.parametrize("value", ["x", None, [1, 2], {"a": 1}, True, torch.ones(3)])
def test_only_numbers_are_plotted(value: Any) -> None:
    history = History([{"epoch": 1, "loss": 1.0, "note": value}])
    assert [axes.get_title("left") for axes in history.plot().axes] == ["loss"]
    assert "note" in str(history)


def test_a_notebook_shows_both_ends_of_a_long_table() -> None:
    page = History({"epoch": number, "loss": 0.5} for number in range(1, 301))._repr_html_()
    shown = [row[0].text for row in ElementTree.fromstring(page).find("tbody")]
    assert shown == [*map(str, range(1, 6)), "...", *map(str, range(281, 301))]


def half(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return 0.5


def told(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float(outputs.mean())


told.higher_is_better = False  # type: ignore[attr-defined]


def test_the_best_of_the_users_own_metrics_is_marked_where_they_say_which_way_is_better() -> None:
    inputs, labels = torch.randn(24, 4), torch.arange(24) % 3
    own = {"kappa": MulticlassCohenKappa(3), "half": half, "told": told}
    tuner = FineTuner(torch.nn.Linear(4, 3), device="cpu", metrics={**own, "accuracy": told})
    history = tuner.fit((inputs, labels), (inputs, labels), epochs=3, progress=False)
    assert [history.rises(name) for name in ("kappa", "accuracy", "half", "told")] == [True, False, None, False]
    for axes in history.plot().axes[:5]:
        marked = [line for line in axes.lines if line.get_label() == "best epoch"]
        assert len(marked) == (axes.get_title("left") != "half")
    assert copy.deepcopy(history).rises("kappa")
