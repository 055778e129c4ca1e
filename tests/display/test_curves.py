"""The plot of a history: its axes, curves, marks and names, and no text over another or over the data."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from finetune import FineTuner, History
from finetune.training.optim.phases import Phase
from tests.helpers.figures import cut_texts, legends, overlapping_texts, points_under, points_under_legends

EIGHT = [
    "accuracy", "f1", "precision", "recall", "average_precision", "mae", "own", "a_metric_of_a_very_long_name_of_ours",
]  # fmt: skip
GROUPS = ("conv1", "layer1", "layer2", "fc")


def rows(epochs: int, metrics: list[str], phases: tuple[str, ...] = ("fit",), groups: tuple[str, ...] = GROUPS) -> Any:
    """Return rows whose best validation loss and best validation metrics are in the last epoch but one."""
    found = []
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        better = done - 0.5 * (epoch == epochs > 1)
        rates = {name: 1e-3 * 0.3**place for place, name in enumerate(reversed(groups))}
        found.append({
            "epoch": epoch,
            "phase": phases[(epoch - 1) * len(phases) // epochs],
            "loss": 2 - done,
            **dict.fromkeys(metrics, done),
            "val_loss": 2 - better,
            **{f"val_{name}": better for name in metrics},
            "lr": {name: rate * (1 - 0.99 * done) for name, rate in reversed(rates.items())},
            "lr_start": {name: rate * (1 - 0.99 * (epoch - 1) / epochs) for name, rate in reversed(rates.items())},
            "seconds": 1.0,
        })  # fmt: skip
    return found


CASES = {
    "nothing": [],
    "one epoch": rows(1, ["accuracy"]),
    "loss alone": rows(7, []),
    "phases": rows(12, ["accuracy", "f1"], ("linear_probe", "finetune")),
    "many phases": rows(36, EIGHT[:1], tuple(f"gradual_unfreezing_{place}" for place in range(36))),
    "long": rows(300, EIGHT, tuple(f"gradual_unfreezing_{place}" for place in range(5))),
    "many groups": rows(40, EIGHT[:3], groups=tuple(f"encoder.layers.{place}.self_attention" for place in range(24))),
}


def curve(figure: Figure, title: str, label: str) -> list[tuple[float, float]]:
    [line] = [line for axes in figure.axes if axes.get_title("left") == title for line in axes.lines
              if line.get_label() == label]  # fmt: skip
    return [(float(x), float(y)) for x, y in line.get_xydata()]


@pytest.mark.parametrize("case", CASES)
def test_no_text_lies_over_another_or_over_the_data(case: str) -> None:
    figure = History(CASES[case]).plot()

    assert overlapping_texts(figure) == []
    assert cut_texts(figure) == []
    assert points_under_legends(figure) == []
    titles = [title for axes in figure.axes for title in (axes.title, axes._left_title, axes._right_title)]
    assert points_under(figure, [title.get_window_extent() for title in titles if title.get_text()]) == []


@pytest.mark.parametrize("number", range(1, 9))
def test_values_are_in_a_grid_of_at_most_three_columns_above_the_learning_rates(number: int) -> None:
    figure = History(rows(3, EIGHT[:number])).plot()

    figure.draw_without_rendering()
    *values, rates = figure.axes
    assert [axes.get_title("left").replace("\n", "") for axes in values] == ["loss", *EIGHT[:number]]
    assert len({round(axes.bbox.x0) for axes in values}) == (2 if number in (1, 3) else 3)
    assert rates.get_ylabel() == "learning rate"
    assert all(axes.bbox.y0 > rates.bbox.y1 for axes in values)
    assert all(axes.get_xlim() == rates.get_xlim() for axes in values)
    assert 0.5 < figure.get_figwidth() / figure.get_figheight() < 2.5


@pytest.mark.parametrize(("epochs", "marked"), [(1, True), (30, True), (31, False), (300, False)])
def test_the_epochs_are_whole_numbers_with_markers_on_a_few(epochs: int, marked: bool) -> None:
    figure = History(rows(epochs, ["accuracy"])).plot()

    figure.draw_without_rendering()
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert (low, high) == (0.5, epochs + 0.5)
    assert 1 <= len(ticks) <= 9
    assert ticks == [round(tick) for tick in ticks]
    assert list(axes.lines[0].get_markevery()) == (list(range(epochs)) if marked else [])


def test_the_best_epoch_is_marked_where_the_better_direction_is_known() -> None:
    found = rows(5, ["accuracy", "mae", "own"])
    found[1]["val_mae"] = 0.01
    figure = History(found).plot()

    assert curve(figure, "loss", "best epoch") == [(4, 2 - 0.8)]
    assert curve(figure, "accuracy", "best epoch") == [(4, 0.8)]
    assert curve(figure, "mae", "best epoch") == [(2, 0.01)]
    assert [axes.get_title("right") for axes in figure.axes[:4]] == [
        "best 1.2 in epoch 4", "best 0.8 in epoch 4", "best 0.01 in epoch 2", "",
    ]  # fmt: skip
    assert not any(line.get_label() == "best epoch" for line in figure.axes[3].lines)


def test_without_validation_the_best_training_value_is_marked() -> None:
    found = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}, {"epoch": 3, "loss": 1.0}]
    assert curve(History(found).plot(), "loss", "best epoch") == [(2, 1.0)]  # the first of two equal ones
    figure = History([*found, {"epoch": 4, "loss": 3.0, "val_loss": 1.0}]).plot()
    assert all(line.get_label() != "best epoch" for line in figure.axes[0].lines)  # one value is no choice


def test_values_that_are_not_finite_are_gaps_and_points_between_gaps_are_marked() -> None:
    found = rows(100, ["accuracy"])
    found[3]["val_loss"], found[5]["val_loss"], found[5]["val_accuracy"] = math.nan, math.inf, math.nan
    del found[7]["val_accuracy"]
    figure = History(found).plot()

    losses = dict(curve(figure, "loss", "validation"))
    assert [epoch for epoch, loss in losses.items() if math.isnan(loss)] == [4, 6]
    [line] = [line for line in figure.axes[0].lines if line.get_label() == "validation"]
    assert list(line.get_markevery()) == [4]
    assert 8 not in dict(curve(figure, "accuracy", "validation"))
    low, high = figure.axes[0].get_ylim()
    assert 0.5 < low < 1.0
    assert 2.0 < high < 2.5


@pytest.mark.parametrize("values", [[1.0], [0.0], [0.97, 1.0], [0.0, 1.0], [0.2, 0.9]])
def test_bounded_metrics_stay_in_their_range(values: list[float]) -> None:
    found = [{"epoch": place, "loss": 0.0, "accuracy": value} for place, value in enumerate(values, 1)]
    loss, accuracy = History(found).plot().axes

    low, high = accuracy.get_ylim()
    margin = 0.05 * (max(values) - min(values) or 0.1)
    assert -margin <= low < min(values) + 1e-9
    assert max(values) - 1e-9 < high <= 1 + margin
    assert -0.1 < loss.get_ylim()[0] <= 0


def test_an_outlier_makes_the_loss_logarithmic_and_no_metric() -> None:
    found = rows(5, ["accuracy"])
    found[0] |= {"loss": 1e6, "accuracy": 1e-6}
    loss, accuracy, _ = History(found).plot().axes
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")


def test_counts_have_whole_ticks() -> None:
    found = [{"epoch": place, "loss": 1.0, "skipped_steps": place % 4} for place in range(9)]
    figure = History(found).plot()
    assert all(float(tick).is_integer() for tick in figure.axes[1].get_yticks())


def test_phases_are_shaded_and_named_once_each() -> None:
    figure = History(rows(12, ["accuracy"], ("linear_probe", "finetune"))).plot()

    for axes in figure.axes:
        [band] = axes.patches
        assert (band.get_x(), band.get_x() + band.get_width()) == (6.5, 12.5)
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [[], [], ["linear_probe", "finetune"]]
    assert not any(axes.patches or axes.texts for axes in History(rows(12, [])).plot().axes)


def test_phases_without_room_for_their_names_are_numbered() -> None:
    names = tuple(f"gradual_unfreezing_{place}" for place in range(12))
    below = History(rows(24, ["accuracy"], names)).plot().axes[-1]

    assert [text.get_text() for text in below.texts] == [str(number) for number in range(1, 13)]
    listed = below.get_xlabel().replace("\n", " ").replace("\xa0", " ")
    assert all(f"{number} {name}" in listed for number, name in enumerate(names, 1))


def test_learning_rates_run_from_the_first_update_of_an_epoch_to_its_last() -> None:
    found = [
        {"epoch": 1, "phase": "a", "loss": 1.0, "lr": {"fc": 1e-3}, "lr_start": {"fc": 1e-2}},
        {"epoch": 2, "phase": "b", "loss": 1.0, "lr": {"conv": 0.0, "fc": 1e-4}},
    ]
    below = History(found).plot().axes[-1]

    drawn = {line.get_label(): line.get_xydata() for line in below.lines}
    assert list(drawn) == ["conv", "fc"]  # in the order of the model
    np.testing.assert_array_equal(
        drawn["fc"], [(0.5, 1e-2), (1.5, 1e-3), (1.5, math.nan), (1.5, 1e-4), (2.5, 1e-4)]
    )  # a new phase, a new curve
    assert below.get_yscale() == "log"
    assert all(y < below.get_ylim()[0] for _, y in drawn["conv"][-2:])  # a rate of 0 is below the axis


def test_groups_of_equal_rates_share_a_curve_and_many_groups_a_short_legend() -> None:
    equal = [{"epoch": 1, "loss": 1.0, "lr": dict.fromkeys(GROUPS, 1e-3)}]
    assert [line.get_label() for line in History(equal).plot().axes[-1].lines] == ["conv1 to fc"]

    below = History(CASES["many groups"]).plot().axes[-1]
    labels = [text.get_text() for text in below.get_legend().get_texts()]
    assert len(below.lines) == 24
    assert len(labels) == len(set(labels)) == 8
    assert (labels[0], labels[-1]) == ("…0.self_attention", "…23.self_attention")


def test_a_tiny_rate_at_the_end_of_a_schedule_does_not_stretch_the_axis() -> None:
    found = rows(5, [])
    found[-1]["lr"] = dict.fromkeys(GROUPS, 1e-30)
    assert History(found).plot().axes[-1].get_ylim()[0] > 1e-8


@pytest.mark.parametrize("rate", [1e-3, {"all": 1e-3}, 0.0, None, {"all": "x"}, {}, math.nan])
def test_rates_of_any_form_are_drawn_if_they_are_numbers(rate: Any) -> None:
    known = rate in (1e-3, {"all": 1e-3})
    assert len(History([{"loss": 1.0, "lr": rate}, {"loss": 0.5, "lr": rate}]).plot().axes) == 1 + known


def test_names_are_drawn_as_they_are() -> None:
    found = [
        {"epoch": epoch, "loss": 1.0, "$own$": 2.0, "phase": phase, "lr": {"_a": 1e-3, "$b$": 1e-4}}
        for epoch, phase in enumerate(("$x$", "_y"))
    ]
    figure = History(found).plot()

    assert overlapping_texts(figure) == []
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == [" _a", r"\$b\$"]


def test_a_real_run_is_drawn_in_both_themes(net: Any, blobs: Any) -> None:
    phases = [Phase("*", epochs=2, lr=1e-3, name="first"), Phase("*", epochs=1, lr=1e-4, name="second")]
    history = FineTuner(net(), device="cpu").fit(blobs(), blobs(9), strategy=phases)

    for theme, dark in (("light", False), ("dark", True)):
        figure = history.plot(theme=theme)
        assert (sum(figure.get_facecolor()[:3]) < 1) is dark
        assert curve(figure, "loss", "training") == [(row["epoch"], row["loss"]) for row in history]
        assert [text.get_text() for text in legends(figure)[0].get_texts()] == ["training", "validation", "best epoch"]
        training, validation = figure.axes[0].lines[:2]
        assert [line.get_color() for line in figure.axes[1].lines[:2]] == [training.get_color(), validation.get_color()]
    assert matplotlib.rcParams["axes.spines.top"] is True
