"""The demo, run once with one seed, and its parts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from finetune import Comparison, FineTuner
from finetune.data.sources.open_source import open_source
from finetune.data.splitting import few_shot
from finetune.demo import SHOTS, STRATEGIES, DigitNet, run_demo, write_digits
from finetune.errors import ArgumentError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison, str]:
    """Run the demo, and return its folder, its comparison and its output."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch, (folder / "said.txt").open("w+") as said:
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "stdout", said)
        patch.setattr("finetune.demo.EPOCHS", 4)  # of 8, whose accuracies are higher
        comparison = run_demo(folder, seeds=1)
        said.seek(0)
        text = said.read()
    return folder, comparison, text


Demo = tuple[Path, Comparison, str]


def test_every_digit_is_an_image_in_the_folder_of_its_class(demo: Demo) -> None:
    digits = load_digits()
    found = {int(file.stem): file for file in (demo[0] / "digits").rglob("*.png")}
    assert sorted(found) == list(range(1797))
    for number, file in found.items():
        digit = digits.target[number]
        assert file.parent.name == str(digit)
        assert file.parent.parent.name == ("source" if digit < 5 else "target")
        assert np.array_equal(np.asarray(Image.open(file)), (digits.images[number] * 255 / 16).astype("uint8"))


def test_the_comparison_has_four_strategies(demo: Demo) -> None:
    _, comparison, said = demo
    assert [entry.strategy for entry in comparison.entries] == list(STRATEGIES)
    assert list(STRATEGIES) == ["from scratch", "frozen", "last stage", "fine-tuned"]
    scratch, frozen, last, tuned = (entry.trained_parameters for entry in comparison.entries)
    assert frozen < last < tuned == scratch
    for entry in comparison.entries:
        assert entry.values[0] > 0.6  # chance is 0.2
        assert entry.interval is None
        row = next(line for line in said.splitlines() if line.startswith(entry.strategy))
        assert f"{entry.values[0]:.3f}" in row
        assert f"{entry.trained_parameters:,}" in row


def test_the_plot_is_an_image(demo: Demo) -> None:
    with Image.open(demo[0] / "strategies.png") as plot:
        plot.load()
        assert plot.format == "PNG"
        assert plot.width > plot.height > 300


def test_the_checkpoint_holds_the_best_model_and_classifies_an_image(demo: Demo) -> None:
    folder, comparison, said = demo
    tuner = FineTuner.load_checkpoint(folder / "best.safetensors", DigitNet(5))
    assert tuner.classes == ("5", "6", "7", "8", "9")
    _, rest = few_shot(open_source(folder / "digits" / "target"), SHOTS, 0)
    best = max(entry.values[0] for entry in comparison.entries)
    assert tuner.evaluate(rest, batch_size=256)["accuracy"] == pytest.approx(best)
    picture = sorted((folder / "digits" / "target" / "7").glob("*.png"))[-1]
    answer = tuner.classes[int(tuner.predict(picture).argmax())]
    assert f" as {answer} (" in said


def test_the_seed_draws_ten_images_per_class_and_leaves_the_rest(demo: Demo) -> None:
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


def test_without_scikit_learn_the_error_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ArgumentError, match=r"pip install 'torch-finetune\[demo\]'"):
        write_digits(tmp_path)
    assert not list(tmp_path.iterdir())
