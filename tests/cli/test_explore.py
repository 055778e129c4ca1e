"""Commands before training: the suggestions of Python, as text, JSON and charts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from finetune import FineTuner
from finetune.cli import main


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Folder with six images of each of two classes."""
    for place in range(12):
        path = tmp_path / "pets" / ("cat", "dog")[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 20), (220 - 9 * place, 30, 30) if place % 2 else (30, 220 - 9 * place, 30)).save(path)
    return tmp_path / "pets"


def test_find_lr(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = pets.parent / "rates.png"
    options = ["--model", "squeezenet1_1", "--weights", "none", "--freeze", "backbone", "--batch-size", "2"]
    main(["find-lr", str(pets), *options, "--steps", "15", "--chart", str(chart)])
    said = capsys.readouterr().out
    tuner = FineTuner("squeezenet1_1", weights=None).replace_head(2).freeze()
    found = tuner.find_lr(pets, lr=1.0, batch_size=2, steps=15)
    assert said == f"--lr {found.lr:.2g}\nwrote {chart}\n"
    assert chart.read_bytes()[1:4] == b"PNG"


def test_find_lr_in_json(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "squeezenet1_1", "--weights", "none", "--batch-size", "2", "--steps", "15", "--json"]
    main(["find-lr", str(pets), *options])
    first, head = json.loads(capsys.readouterr().out)["lr"]
    assert head == pytest.approx(100 * first)


def test_advise_in_json(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["advise", str(pets), "--model", "squeezenet1_1", "--weights", "none", "--json"])
    found = json.loads(capsys.readouterr().out)["squeezenet1_1"]
    assert found["strategy"] == FineTuner("squeezenet1_1", weights=None).advise(pets).strategy
    assert found["evidence"]["class_sizes"] == [5, 5]


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ("check-data", "--sheet", "sheet.xyz"),
        ("check-data", "--out", "found.txt"),
        ("advise", "--chart", "chart.xyz"),
        ("find-lr", "--chart", "pets/chart.png/x.png"),
    ],
)
def test_a_file_that_cannot_be_written_is_said_before_the_work(
    command: str, option: str, name: str, pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pets / "chart.png").touch()
    with pytest.raises(SystemExit) as ended:
        main([command, str(pets), "--model", "squeezenet1_1", "--weights", "none", option, str(pets.parent / name)])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert re.fullmatch(r"finetune: .*(no format '\.\w+'|cannot be written).*\n", said.err), said.err
