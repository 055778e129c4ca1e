"""The plot of a comparison, with names of any length and any number of entries."""

from __future__ import annotations

import pytest

from finetune import Comparison
from finetune.comparison.comparison import RunResult
from tests.helpers.figures import cut_texts, overlapping_texts

LONG = "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k_and_more_of_the_name_than_two_lines_hold"


def comparison(models: list[str], strategies: list[str], seeds: int = 2, monitor: str = "accuracy") -> Comparison:
    """Return a comparison in which the last entry is the best and reaches 1."""
    pairs = [(model, strategy) for model in models for strategy in strategies]
    return Comparison(
        [
            RunResult(
                model,
                strategy,
                seed,
                monitor,
                (place + 1 - 0.1 * seed) / len(pairs),
                images_per_second=123_456.7 * (place + 1),
            )
            for place, (model, strategy) in enumerate(pairs)
            for seed in range(seeds)
        ],
        budget=1,
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("models", "strategies", "seeds"),
    [
        (["net"], ["lp_ft"], 1),
        (["net"], ["a", LONG, "$x$ and $y$"], 3),
        (["net", LONG], ["linear_probe", "lp_ft"], 2),
        (["a", "b", "c", "d"], ["linear_probe", "last_stage", "lp_ft", "full_finetune", "from_scratch"], 2),
    ],
    ids=["one", "long strategies", "long models", "twenty"],
)
def test_no_text_lies_over_another(models: list[str], strategies: list[str], seeds: int, theme: str) -> None:
    figure = comparison(models, strategies, seeds).plot(theme=theme)

    assert overlapping_texts(figure) == []
    assert cut_texts(figure) == []
    assert len(figure.axes[1].patches) == len(models) * len(strategies)
    compared = figure.axes[0]
    low, high = sorted(compared.get_ylim())
    assert all(low < tick < high for tick in compared.get_yticks())
    assert compared.yaxis_inverted()  # the first entry is on top, as in the table


def test_the_models_are_named_once_above_their_strategies() -> None:
    compared, _ = comparison(["a", "b"], ["linear_probe", "lp_ft"]).plot().axes

    labels = compared.get_yticklabels()
    assert [label.get_text() for label in labels] == ["a", "linear_probe", "lp_ft", "b", "linear_probe", "lp_ft"]
    assert [label.get_fontweight() for label in labels] == ["bold", "normal", "normal", "bold", "normal", "bold"]
    assert len({label.get_color() for label in labels[:5]}) == 1
    assert labels[5].get_color() != labels[0].get_color()  # the best


def test_intervals_end_at_the_bounds_of_the_metric() -> None:
    compared, _ = comparison(["net"], ["a", "b"]).plot().axes
    ends = [x for line in compared.lines for x in line.get_xdata()]
    assert max(ends) == 1.0
    low, high = compared.get_xlim()
    assert 0 < low < min(ends)
    assert 1 < high < 1.05
    assert comparison(["net"], ["a", "b"], monitor="own").plot().axes[0].get_xlim()[1] > 1.2


def test_reused_activations_are_noted_at_the_speed() -> None:
    rows = [RunResult("net", name, 0, "accuracy", 0.5, images_per_second=1234, found=found)
            for name, found in (("a", 0.5), ("b", None))]  # fmt: skip
    _, speed = Comparison(rows, budget=1).plot().axes
    assert [text.get_text() for text in speed.texts] == ["1,234*", "1,234"]
    assert "cached by earlier runs" in speed.get_xlabel()


def test_a_comparison_without_results_has_empty_axes() -> None:
    figure = Comparison([], budget=1).plot()
    assert [axes.get_xticks().tolist() for axes in figure.axes] == [[], []]
    assert overlapping_texts(figure) == []
