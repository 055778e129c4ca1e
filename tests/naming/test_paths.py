from __future__ import annotations

import ast
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune import FineTuner, Phase, greedy_soup
from finetune.callbacks import CSVLogger, ModelCheckpoint, TensorBoard
from finetune.checkpoint.file import check_writable
from finetune.cli import main
from finetune.comparison.compare import compare
from finetune.data.sources.folders import find_split
from finetune.data.sources.open_source import open_source
from finetune.errors import ArgumentError, DataError, FineTuneError
from finetune.naming.paths import existing, exists, local_path
from tests.helpers.image_files import picture

PACKAGE = Path(__file__).resolve().parents[2] / "finetune"
DATA = torch.randn(12, 4), torch.arange(12) % 2


def _tuner(**settings: Any) -> FineTuner:
    return FineTuner(nn.Linear(4, 2), device="cpu", **settings)


def _fit(**arguments: Any) -> FineTuner:
    tuner = _tuner()
    tuner.fit(DATA, progress=False, **arguments)
    return tuner


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a home folder with a checkpoint, weights and data, and be in another folder."""
    for name in ("home", "elsewhere"):
        (tmp_path / name).mkdir()
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(tmp_path / "elsewhere")
    _fit(checkpoint_dir=home / "run").save_checkpoint(home / "model.safetensors")
    torch.save(nn.Linear(4, 2).state_dict(), home / "weights.pth")
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            (home / "data" / part / label).mkdir(parents=True)
            picture(1).save(home / "data" / part / label / "0.png")
    return home


WRITTEN: dict[str, Callable[[], Any]] = {
    "new.safetensors": lambda: _tuner().save_checkpoint("~/new.safetensors"),
    "kept/last.safetensors": lambda: _fit(checkpoint_dir="~/kept"),
    "own/last.safetensors": lambda: _fit(callbacks=[ModelCheckpoint("~/own")]),
    "log.csv": lambda: _fit(callbacks=[CSVLogger("~/log.csv")]),
    "history.png": lambda: _fit().history.plot("~/history.png"),
    "rates.png": lambda: _tuner().find_lr(DATA, steps=12).plot("~/rates.png"),
    "advice.png": lambda: _tuner().advise((torch.randn(60, 4), torch.arange(60) % 2)).plot("~/advice.png"),
    "runs": lambda: compare(nn.Linear(4, 2), DATA, strategies=["full_finetune"], seeds=1, budget=1, folder="~/runs"),
    "deep": lambda: check_writable(Path("~/deep/model.safetensors")),
}

READ: dict[str, Callable[[], Any]] = {
    "load_checkpoint": lambda: FineTuner.load_checkpoint("~/model.safetensors", model=nn.Linear(4, 2)),
    "weights": lambda: _tuner(weights="~/weights.pth"),
    "resume_from": lambda: _fit(epochs=2, resume_from="~/run/last.safetensors"),
    "resume_from a folder": lambda: _fit(epochs=2, resume_from="~/run"),
    "resume_from='auto'": lambda: _fit(epochs=2, resume_from="auto", checkpoint_dir="~/run"),
    "start_from": lambda: _fit(strategy=[Phase("*", 1, lr=1e-3, start_from="~/model.safetensors")]),
    "greedy_soup": lambda: greedy_soup(["~/model.safetensors"], DATA, model=nn.Linear(4, 2)),
    "find_split": lambda: find_split("~/data") or pytest.fail("not found"),
    "a folder": lambda: open_source("~/data/train"),
    "a list of paths": lambda: open_source(["~/data/train/cat/0.png"], labeled=False),
    "summary in the command line": lambda: _succeeds(["summary", "~/data.safetensors"]),
}


def _succeeds(arguments: list[str]) -> None:
    FineTuner("resnet18", weights=None).save_checkpoint("~/data.safetensors")
    main(arguments)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_lands_in_the_home_folder(home: Path, name: str) -> None:
    WRITTEN[name]()
    assert (home / name).exists()
    assert not Path("~").exists()


def test_tensorboard_writes_to_the_home_folder(home: Path) -> None:
    pytest.importorskip("tensorboard")
    _fit(callbacks=[TensorBoard("~/board")])
    assert any((home / "board").iterdir())


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_found_in_the_home_folder(home: Path, name: str) -> None:
    READ[name]()
    assert not Path("~").exists()


def test_home_is_expanded_in_one_place_only() -> None:
    places = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "expanduser"
    }
    assert places == {"naming/paths.py"}


@pytest.mark.parametrize("path", [5, None, ["a"], object()])
def test_what_is_no_path_is_said(path: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected a path, but got"):
        local_path(path)


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0b.png", "a" * 5000, "https://host/a.png", "{'bytes': b''}"])
def test_names_that_no_file_can_have_do_not_exist(name: str) -> None:
    assert not exists(name)
    with pytest.raises((DataError, ArgumentError)):
        open_source([name], labeled=False, takes="picture")
    with pytest.raises((DataError, ArgumentError)):
        open_source(name)


TOO_LONG: dict[str, Callable[[str], Any]] = {
    "checkpoint_dir": lambda path: _fit(checkpoint_dir=path),
    "auto": lambda path: _fit(checkpoint_dir=path, resume_from="auto"),
    "resume_from": lambda path: _fit(resume_from=path),
    "callback": lambda path: _fit(callbacks=[ModelCheckpoint(path)]),
    "log": lambda path: _fit(callbacks=[CSVLogger(path)]),
    "cache": lambda path: _fit(cache=path),
    "data": lambda path: _tuner().fit(path),
    "weights": lambda path: _tuner(weights=path),
    "weights of a name": lambda path: FineTuner("resnet18", weights=path),
    "a name": FineTuner,
    "a folder of a name": lambda path: FineTuner(f"hf/{path}"),
    "load_checkpoint": FineTuner.load_checkpoint,
    "save_checkpoint": lambda path: _tuner().save_checkpoint(path),
    "start_from": lambda path: _fit(strategy=[Phase("*", 1, start_from=path)]),
    "plot": lambda path: _tuner().history.plot(path=path),
    "greedy_soup": lambda path: greedy_soup([path], DATA, model=nn.Linear(4, 2)),
    "compare": lambda path: compare(nn.Linear(4, 2), DATA, folder=path),
    "find_split": find_split,
    "a cell": lambda path: open_source({"path": [path] * 4, "label": ["a", "b"] * 2}),
}


@pytest.mark.parametrize("path", ["d" * 300, "d/" * 3000, "missing/" + "é" * 130])
@pytest.mark.parametrize("place", TOO_LONG)
def test_a_path_that_is_too_long_is_a_clear_error(tmp_path: Path, monkeypatch: Any, place: str, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FineTuneError):
        TOO_LONG[place](path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("written", "asked"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_names_are_found_in_every_unicode_form(tmp_path: Path, written: str, asked: str) -> None:
    path = Path("고양이", "tête", "é.png")
    there = tmp_path / unicodedata.normalize(written, str(path))
    there.parent.mkdir(parents=True)
    there.touch()
    assert existing(tmp_path / unicodedata.normalize(asked, str(path))) == there
    assert existing(tmp_path / "고양이" / "ê.png") is None
