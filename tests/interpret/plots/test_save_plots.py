"""The plots that suit each task."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune import Interpretation
from finetune.errors import ArgumentError
from finetune.interpret.plots.save_plots import folder_for_plots, save_plots
from tests.helpers.answers import random_answers


@pytest.mark.parametrize("kind", ["classification", "binary", "multilabel", "regression"])
def test_every_plot_of_a_task_is_written(kind: str, tmp_path: Path) -> None:
    found = random_answers(kind, 12, 1 if kind == "binary" else 3, 0)
    written = save_plots(found, folder_for_plots(tmp_path / "a" / "b"))
    assert sorted((tmp_path / "a" / "b").iterdir()) == sorted(written)
    plots = [name.removeprefix("plot_") for name in dir(Interpretation) if name.startswith("plot_")]
    for name in {*plots} - {path.stem for path in written}:
        with pytest.raises(ArgumentError, match="is for"):
            getattr(found, f"plot_{name}")()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="cannot be made"):
        folder_for_plots(tmp_path / "file")
