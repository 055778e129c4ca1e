"""The embedded example, run once with one seed, and its parts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from finetune import FineTuner
from finetune.data.sources.open_source import open_source
from finetune.data.splitting import few_shot
from finetune.demo import SHOTS, DigitNet, Result, run_demo, write_digits
from finetune.errors import ArgumentError

STRATEGIES = ["from scratch", "frozen", "last stage", "fine-tuned"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result], str]:
    """Run the demo; give its folder, what it returns and what it prints."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch, (folder / "said.txt").open("w+") as said:
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "stdout", said)
        results = run_demo(folder, seeds=1)
        said.seek(0)
        text = said.read()
    return folder, results, text


Demo = tuple[Path, list[Result], str]


def test_every_digit_is_a_picture_in_the_folder_of_its_class(demo: Demo) -> None:
    digits = load_digits()
    found = {int(file.stem): file for file in (demo[0] / "digits").rglob("*.png")}
    assert sorted(found) == list(range(1797))
    for number, file in found.items():
        digit = digits.target[number]
        assert file.parent.name == str(digit)
        assert file.parent.parent.name == ("source" if digit < 5 else "target")
        assert np.array_equal(np.asarray(Image.open(file)), (digits.images[number] * 255 / 16).astype("uint8"))


def test_the_results_are_those_of_four_strategies(demo: Demo) -> None:
    _, results, said = demo
    assert [result.name for result in results] == STRATEGIES
    scratch, frozen, last, tuned = results
    assert frozen.trained < last.trained < tuned.trained == scratch.trained
    for result in results:
        assert result.accuracies[0] > 0.6  # chance is 0.2
        assert result.spread == 0
        row = next(line for line in said.splitlines() if line.startswith("│") and result.name in line)
        assert f"{result.accuracies[0]:.3f}" in row
        assert f"{result.trained:,}" in row


def test_the_plot_is_a_picture(demo: Demo) -> None:
    with Image.open(demo[0] / "strategies.png") as plot:
        plot.load()
        assert plot.format == "PNG"
        assert plot.width > plot.height > 300


def test_the_checkpoint_is_the_best_model_and_knows_a_picture(demo: Demo) -> None:
    folder, results, said = demo
    tuner = FineTuner.load_checkpoint(folder / "best.safetensors", DigitNet(5))
    assert tuner.classes == ("5", "6", "7", "8", "9")
    _, rest = few_shot(open_source(folder / "digits" / "target"), SHOTS, 0)
    best = max(result.accuracies[0] for result in results)
    assert tuner.evaluate(rest, batch_size=256)["accuracy"] == pytest.approx(best)
    picture = sorted((folder / "digits" / "target" / "7").glob("*.png"))[-1]
    answer = tuner.classes[int(tuner.predict(picture).argmax())]
    assert f"is a {answer} (" in said


def test_ten_pictures_a_class_are_drawn_by_the_seed_and_the_rest_left(demo: Demo) -> None:
    source = open_source(demo[0] / "digits" / "target")

    def names(seed: int) -> list[list[str]]:
        return [[part.name(index) for index in range(len(part))] for part in few_shot(source, SHOTS, seed)]

    few, rest = names(3)
    for digit in "56789":
        assert sum(f"/{digit}/" in f"/{name}" for name in few) == SHOTS
    assert set(few).isdisjoint(rest)
    assert sorted(few + rest) == sorted(source.name(index) for index in range(len(source)))
    assert names(3) == [few, rest]
    assert names(4)[0] != few


def test_without_scikit_learn_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ArgumentError, match=r"pip install torch-finetune\[demo\]"):
        write_digits(tmp_path)
    assert not list(tmp_path.iterdir())
