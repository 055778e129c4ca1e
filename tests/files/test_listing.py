"""`located` finds what asking for each path finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finetune.files.listing import Located, located, real_paths

MANY = 12  # names in one folder, so that it is listed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a" / "inner").mkdir(parents=True)
    for k in range(MANY):
        (tmp_path / "a" / f"{k}.png").touch()
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "broken.png").symlink_to(tmp_path / "none")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(path: Path) -> Path | None:
    return path if path.exists() else None


def of(folder: Path, cells: list[str], asked: list[str] | None = None) -> Located:
    def one(cell: str) -> Path | None:
        if asked is not None:
            asked.append(cell)
        return find(folder / cell)

    return located(cells, lambda head: str(folder / head), one)


def test_files_are_found_by_listing_and_everything_else_by_asking(folder: Path) -> None:
    files = [f"a/{k}.png" for k in range(MANY)]
    others = ["a/inner", "a/link.png", "a/broken.png", "a/none.png", "a/../a/1.png", "a/"]
    asked: list[str] = []
    found = of(folder, files + others, asked)
    assert asked == others
    assert [*found.paths] == [str(find(folder / cell) or "") for cell in files + others]
    assert [(files + others)[k] for k in found.missing] == ["a/broken.png", "a/none.png"]
    assert [(files + others)[k] for k in found.folders] == ["a/inner", "a/"]


def test_files_are_known_to_be_distinct_only_if_no_path_leads_to_another_one(folder: Path) -> None:
    files = [f"a/{k}.png" for k in range(MANY)]
    assert of(folder, files).distinct
    assert not of(folder, [*files, files[0]]).distinct
    assert not of(folder, [*files, "a/link.png"]).distinct
    assert not of(folder, [*files, *(f"b/{k}.png" for k in range(MANY))]).distinct


def test_few_files_of_a_large_folder_are_found_although_it_is_not_listed_to_its_end(folder: Path) -> None:
    for k in range(300):
        (folder / "a" / f"more{k}.png").touch()
    files = [f"a/{k}.png" for k in range(MANY)]
    assert [*of(folder, files).paths] == [os.path.join(folder, file) for file in files]


HEADS = ("", "./", "a/", "./a/", "a//", "a/../a/", "b/", "a/inner/", "ü/", "u\u0308/", "none/", "/")
NAMES = (*(f"{k}.png" for k in range(3)), "ü.png", "u\u0308.png", "link.png", "broken.png", "inner", "", "..", "\\.png")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(heads=st.lists(st.sampled_from(HEADS), min_size=1, max_size=4, unique=True), absolute=st.booleans())
@example(heads=["./", ""], absolute=False)
def test_paths_of_any_spelling_are_found_as_by_asking_for_each(folder: Path, heads: list[str], absolute: bool) -> None:
    for place in (folder, folder / "a", folder / "ü"):
        place.mkdir(exist_ok=True)
        for name in (*(f"{k}.png" for k in range(3)), "ü.png", "\\.png"):
            (place / name).touch()
    start = f"{folder}/" if absolute else ""
    cells = [start + head + name for head in heads for name in NAMES]  # enough of each folder to list it
    found = located(cells, lambda head: str(folder / head), lambda cell: find(folder / cell))
    plain = [find(folder / cell) for cell in cells]
    assert [*found.paths] == [str(path or "") for path in plain]
    assert found.missing == [k for k, path in enumerate(plain) if path is None]
    assert found.folders == [k for k, path in enumerate(plain) if path is not None and path.is_dir()]
    files = [cell for cell in cells if os.path.isfile(cell)]
    assert [*real_paths(files)] == [os.path.realpath(file) for file in files]
