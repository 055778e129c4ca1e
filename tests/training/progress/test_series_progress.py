"""The bar of a series of runs."""

from __future__ import annotations

import logging

from finetune import FineTuner
from finetune.display.progress.bar import Bar
from finetune.display.progress.display import Display
from finetune.training.progress.series_progress import SeriesProgress


class Kept(Display):
    """Display that keeps its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    @property
    def bar(self) -> Bar:
        return self._bars[0]

    def show(self, line: str, cells: object = None) -> None:
        self.lines.append(line)


def test_a_series_of_runs_shows_its_epochs_and_a_line_per_run() -> None:
    display = Kept()
    with SeriesProgress(2, 3, display=display) as series:
        series.begin("resnet18", 0)
        series.epoch()
        assert (display.bar.label, display.bar.count()) == ("1 of 2: resnet18", "1/6")
        assert display.bar.doing == "Epoch 2/3"
        series.end("resnet18: failed")  # after one of three
        assert display.bar.count() == "3/6"
        series.begin("resnet34", 1)
        assert display.bar.doing == "Epoch 1/3"
        series.end("resnet34: found")
        assert display.bar.count() == "6/6"

    assert display.lines == ["1 of 2: resnet18: failed", "2 of 2: resnet34: found"]


def test_a_series_shows_its_own_lines_only(net, blobs, capsys) -> None:
    with SeriesProgress(1, 1) as series:
        FineTuner(net(), device="cpu").fit(blobs(), progress=False)
        series.end("done")

    assert capsys.readouterr().out == "1 of 1: done\n"


def test_a_hidden_series_is_only_logged(caplog, capsys) -> None:
    with caplog.at_level(logging.INFO, "finetune"), SeriesProgress(1, 1, shown=False) as series:
        series.begin("resnet18", 0)
        series.end("resnet18: 0.9")

    assert capsys.readouterr().out == ""
    assert caplog.messages == ["1 of 1: resnet18: 0.9"]
