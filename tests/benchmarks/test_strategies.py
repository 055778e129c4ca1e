"""The benchmark of strategies: verdicts follow from the numbers, rates from the tuning seed, and a run resumes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.pairs import PAIRS, Pair, domains
from benchmarks.pairs.backbones import Recipe
from benchmarks.rows import Row
from benchmarks.strategies import __main__ as command_line
from benchmarks.strategies import plan, real
from benchmarks.strategies import task as task_module
from benchmarks.strategies.plan import CHOSEN, DEFAULT, SEEDS, SETTINGS, SIDES, TUNING_SEED, Measured, stages
from benchmarks.strategies.table import Claim, differences, estimate, table, verdict
from benchmarks.strategies.task import Task, Way

FEW = ("letters to digits", "latin to greek", "letters to symbols")


def made(task: Task, accuracy: float, shifted: float = 0.5) -> Row:
    return {"key": task.key, "accuracy": accuracy, "shifted": shifted, "seconds": 1.0, "images": 100.0}


def rows_of(ways: dict[Way, Sequence[float]], pair: str = FEW[0], seeds: Sequence[int] = SEEDS) -> dict[str, Row]:
    found = [made(plan.task(pair, way, seed), value)
             for way, values in ways.items() for seed, value in zip(seeds, values, strict=True)]  # fmt: skip
    return {row["key"]: row for row in found}


def tuned(ways: dict[Way, float], pair: str = FEW[0]) -> dict[str, Row]:
    return rows_of({way: [value] for way, value in ways.items()}, pair, [TUNING_SEED])


def test_intervals_use_students_t() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.half) == (2.0, pytest.approx(2.484, abs=0.001))  # 4.303 * 1 / sqrt(3)
    assert estimate([1.0, 2.0]) is None


@pytest.mark.parametrize(
    ("means", "word"),
    [
        ((0.02, 0.03, 0.04), "**held**"),
        ((-0.02, -0.03, -0.04), "**did not hold, the opposite did**"),
        ((-0.02, 0.03, 0.04), "**undecided**"),
        ((0.02, 0.03), "not measured yet"),
        ((), "not measured yet"),
    ],
)
def test_a_verdict_follows_from_the_pairs(means: tuple[float, ...], word: str) -> None:
    assert verdict([[mean - 0.001, mean, mean + 0.001] for mean in means]).startswith(word)


def test_a_verdict_counts_the_pairs_with_a_clear_sign() -> None:
    by_pair = [[0.05, 0.06, 0.05], [0.1, -0.1, 0.0], [-0.05, -0.06, -0.05], []]
    assert "over 3 pairs" in verdict(by_pair)
    assert verdict(by_pair).endswith("clearly above in 1 pairs, clearly below in 1")


def test_differences_are_paired_by_seed() -> None:
    above, below = SIDES["fine-tuned"][0], SIDES["frozen"][0]
    values = [seed / 10 for seed in SEEDS]
    rows = rows_of({above: values, below: [value - 0.05 for value in values]})
    del rows[plan.task(FEW[0], above, SEEDS[3]).key]
    measured = Measured(rows, FEW)
    claim = Claim("above", "fine-tuned", "frozen")
    assert differences(measured, claim, FEW[0], DEFAULT) == pytest.approx([0.05] * (len(SEEDS) - 1))
    assert differences(measured, claim, FEW[1], DEFAULT) == []
    assert differences(measured, claim, FEW[0], CHOSEN) == []


def test_rates_are_chosen_for_all_pairs_together_on_the_tuning_seed_only() -> None:
    first, second, *others = SIDES["frozen"]
    rows = rows_of({second: [0.9] * len(SEEDS)}) | tuned({first: 0.5, second: 0.6, **dict.fromkeys(others, 0.2)})
    assert Measured(rows, FEW[:1]).chosen == {"frozen": second}
    assert Measured(rows, FEW[:2]).chosen == {}  # the other pair is not measured
    rows |= tuned({first: 0.9, second: 0.6, **dict.fromkeys(others, 0.2)}, FEW[1])
    assert Measured(rows, FEW[:2]).chosen == {"frozen": first}


def test_ties_go_to_the_first_and_lp_ft_takes_the_rates_of_the_probe() -> None:
    rows = tuned(dict.fromkeys(SIDES["frozen"], 0.5))
    assert Measured(rows, FEW[:1]).chosen["frozen"] == SIDES["frozen"][0]
    best = SIDES["frozen"][2]
    rows |= tuned({best: 0.6})
    assert {way.lr for way in Measured(rows, FEW[:1]).grid("LP-FT")[1:]} == {best.lr}
    assert Measured(rows, FEW).grid("LP-FT") == ()


def test_all_sides_of_a_comparison_have_the_same_images_and_epochs() -> None:
    rows: dict[str, Row] = {}
    listed = []
    for stage in stages(FEW, rows):
        listed += stage
        rows |= {task.key: made(task, 0.5) for task in stage}
    assert {(task.shots, task.epochs) for task in listed} == set(plan.EPOCHS.items())
    measured = Measured(rows, FEW)
    for setting in SETTINGS:
        sides = plan.SETTINGS_OF[setting]
        assert all(measured.row(pair, side, seed, setting) for side in sides for pair in FEW for seed in SEEDS)
    assert TUNING_SEED not in SEEDS
    assert len(SEEDS) >= 10


def test_the_report_states_the_verdicts_and_accepts_unfinished_runs() -> None:
    assert text_of({}).count("not measured yet") > len(SETTINGS)
    rows: dict[str, Row] = {}
    for number, pair in enumerate(FEW):
        for side, ways in SIDES.items():
            level = 0.8 + 0.001 * number if side == "fine-tuned" else 0.5
            rows |= rows_of({ways[0]: [level + seed / 1000 for seed in SEEDS]}, pair)
    text = text_of(rows)
    assert re.search(r"- Fine-tuned above frozen, default rates: \*\*held\*\*: \+30\.\d ± 0\.\d", text)
    assert re.search(r"- Gradual unfreezing above all at once, default rates: \*\*did not hold", text)
    assert re.search(r"- Frozen above from scratch, default rates: \*\*undecided\*\*: \+0\.0", text)
    assert re.search(r"- Frozen above from scratch, chosen rates: not measured yet", text)
    assert "some machine" in text
    assert f"0 of {len(SEEDS)} seeds are complete" in text
    assert "batchnorm on letters: 90%" in text


def text_of(rows: dict[str, Row]) -> str:
    return table(Measured(rows, FEW), {"batchnorm on letters": 0.9}, "some machine")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Plan two tasks over one pair with a quickly trained backbone. Return the strategies of the finished tasks."""
    done: list[str] = []
    quick = Recipe(stencils=4, held_out=4, steps=3)
    pair = Pair(
        "small", domains.FIGURES, domains.OTHER_SHAPES, "batchnorm", recipe=quick, folder=tmp_path / "backbones"
    )
    planned = [Task("small", way, 0, 2, 2) for way in (SIDES["frozen"][0], SIDES["LP-FT"][0])]

    def run(task: Task) -> Row:
        done.append(task.way.strategy)
        return task_module.run(task)

    monkeypatch.setitem(PAIRS, "small", pair)
    monkeypatch.setattr(command_line, "stages", lambda pairs, rows: iter([planned]))
    monkeypatch.setattr(command_line, "run", run)
    monkeypatch.setattr(command_line, "table", lambda measured, *rest: f"{len(measured.rows)} rows, {rest[-1]}")
    return done


def test_an_interrupted_run_resumes(small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "strategies"
    arguments = ["--pairs", "small", "--out", str(out)]
    command_line.main([*arguments, "--minutes", "0"])
    assert small == ["linear_probe"]
    with (out / "rows.jsonl").open("a") as file:
        file.write('\n{"key": "torn')
    command_line.main(arguments)
    assert small == ["linear_probe", "lp_ft"]
    assert (tmp_path / "strategies.md").read_text().startswith("2 rows, ")
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"] > 0 for row in command_line.read(out).values())


@pytest.mark.parametrize("side", SIDES)
def test_each_side_trains_at_its_rates(side: str, small: list[str]) -> None:
    from finetune import FineTuner

    pair = PAIRS["small"]
    data = pair.data(0, shots=2, test=2)
    for way in SIDES[side][1:]:  # the first may use the library's default rates
        arguments: dict[str, Any] = way.arguments()
        tuner = FineTuner(pair.model(), device="cpu").replace_head(pair.num_classes)
        history = tuner.fit(data.train, epochs=2, schedule="constant", progress=False, **arguments)
        first, last = history[0]["lr"], history[-1]["lr"]
        head = way.lr[1] if isinstance(way.lr, tuple) else way.lr
        assert head is None or first["head"] == pytest.approx(head)
        if way.second:
            assert last["head"] == pytest.approx(way.second)


def test_parts_divide_the_work_and_one_process_can_finish_it(small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "strategies"
    arguments = ["--pairs", "small", "--out", str(out)]
    command_line.main([*arguments, "--part", "1/2", "--minutes", "0"])
    assert small == ["lp_ft"]
    command_line.main([*arguments, "--part", "1/2"])  # the other process never runs
    assert small == ["lp_ft", "linear_probe"]
    with pytest.raises(SystemExit):
        command_line.main(["--part", "2/2"])


def test_a_missing_data_set_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--data", "CIFAR10", "--root", str(tmp_path)]) == 2
    assert f"CIFAR10 is not in {tmp_path}" in capsys.readouterr().err
    assert command_line.main(["--data", "no such set"]) == 2
    assert "one of the torchvision data sets CIFAR10" in capsys.readouterr().err


def test_strategies_are_compared_on_real_images(tmp_path: Path) -> None:
    for name, grey in (("cat", 60), ("dog", 200)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (40, 40), (grey, 20 * number, grey)).save(tmp_path / "pets" / name / f"{number}.png")
    out = tmp_path / "strategies"
    arguments = ["--data", str(tmp_path / "pets"), "--model", "mobilenet_v3_small", "--weights", "none"]
    assert command_line.main([*arguments, "--epochs", "1", "--seeds", "1", "--out", str(out)]) == 0
    text = (tmp_path / "strategies-pets-mobilenet_v3_small.md").read_text()
    assert text.startswith("# mobilenet_v3_small on pets")
    assert all(f"| {strategy} |" in text for strategy in real.STRATEGIES)
    assert "Failed" not in text
