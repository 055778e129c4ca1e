"""The bar of a run: its place, its values and the time left."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import FineTuner, Phase
from finetune.callbacks import Callback
from finetune.display.progress.bar import Bar
from finetune.display.progress.display import Display
from finetune.display.progress.waits import waits_shown
from finetune.training.progress.progress_bar import ProgressBar
from tests.helpers.tensors import NoTensorOperations

ROOT = Path(__file__).resolve().parents[3]


class Always(Display):
    """Display that is drawn at every step instead of by a thread, and keeps the bars."""

    def __init__(self) -> None:
        super().__init__()
        self.interval = -1.0
        self.drawn: list[tuple[Any, ...]] = []
        self.lines: list[tuple[str, Any]] = []

    @contextmanager
    def under_way(self, bar: Bar) -> Iterator[Bar]:
        self._bars.append(bar)
        yield bar
        self._bars.remove(bar)

    @property
    def bars(self) -> Sequence[Bar]:
        return self._bars

    def show(self, line: str, cells: Any = None) -> None:
        self.lines.append((line, cells))


class Look(Callback):
    """Callback that reads the bar of a run after each update and while it is evaluated."""

    saves_run = True  # after the bar

    def __init__(self, display: Always) -> None:
        self.display, self.seen = display, []

    def on_step_end(self, run: Any) -> None:
        bar = self.display.bars[0]
        self.seen.append((bar.label, bar.count(), bar.doing))

    def on_evaluate_begin(self, run: Any) -> None:
        self.on_step_end(run)


@pytest.fixture
def display() -> Iterator[Always]:
    """Return the display of all verbs of a test."""
    made = Always()
    with waits_shown(display=made):
        yield made


def test_the_bar_tells_epoch_and_phase(net, blobs, display) -> None:
    phases = [Phase("6", 1, 1e-3, name="probe"), Phase("*", 2, 1e-3, name="all")]
    look = Look(display)

    FineTuner(net(), device="cpu").fit(blobs(), blobs(9), strategy=phases, batch_size=16, callbacks=look)

    assert look.seen == [
        (place, *count)
        for place in ("epoch 1/1, probe 1/2", "epoch 1/2, all 2/2", "epoch 2/2, all 2/2")
        for count in (("1/2", "Training"), ("2/2", "Training"), ("2/2", "Evaluating"))
    ]
    assert display.bars == []


def test_the_values_are_those_of_the_line(net, blobs, display) -> None:
    class Values(Look):
        def on_evaluate_begin(self, run: Any) -> None:
            self.seen.append(self.display.bars[0].values)

        def on_step_end(self, run: Any) -> None:
            pass

    look = Values(display)
    history = FineTuner(net(), device="cpu").fit(blobs(), blobs(9), epochs=3, batch_size=8, callbacks=look)

    best = [max(row["val_accuracy"] for row in history[: n + 1]) for n in range(3)]
    for n, (row, values) in enumerate(zip(history, look.seen, strict=True)):
        assert values[0] == f"loss {row['loss']:.4f}"
        assert values[1] == f"lr {max(row['lr'].values()):.2g}"
        assert values[2:] == ([f"best val_accuracy {best[n - 1]:.4f}"] if n else [])


@pytest.mark.parametrize("metrics", [[], ["accuracy"]])
def test_the_best_loss_is_the_lowest(metrics, net, blobs, display) -> None:
    bar = ProgressBar()
    tuner = FineTuner(net(), device="cpu", metrics=metrics)
    history = tuner.fit(blobs(), blobs(9), epochs=3, lr=0.5, progress=False, callbacks=[bar])

    name, best = ("val_accuracy", max) if metrics else ("val_loss", min)
    assert bar._best == (name, best(row[name] for row in history))


def test_later_phases_make_the_time_left_a_lower_bound(net, blobs, display) -> None:
    class Times(Look):
        def on_step_end(self, run: Any) -> None:
            self.seen.append(self.display.bars[0].time(time.monotonic())[-7:])

    look = Times(display)
    phases = [Phase("6", 1, 1e-3), Phase("*", 1, 1e-3)]
    FineTuner(net(), device="cpu").fit(blobs(), strategy=phases, batch_size=16, callbacks=look)

    assert [seen[-7:].lstrip("0:") for seen in look.seen] == ["+ left"] * 3 + [" left"] * 3


def test_the_bar_of_a_resumed_epoch_starts_at_its_update(net, blobs, tmp_path, display) -> None:
    class Save(Callback):
        only_watches = True

        def on_step_end(self, run: Any) -> None:
            if run.position.window == 2:
                run.save(tmp_path / "two.safetensors")

    class Begin(Look):
        def on_epoch_begin(self, run: Any) -> None:
            self.seen.append(self.display.bars[0].count())

    FineTuner(net(), device="cpu").fit(blobs(), batch_size=8, callbacks=[Save()])
    look = Begin(display)

    FineTuner(net(), device="cpu").fit(blobs(), batch_size=8, callbacks=look, resume_from=tmp_path / "two.safetensors")

    assert look.seen[0] == "2/3"


def test_the_epoch_that_fills_the_cache_says_so(net, blobs, display) -> None:
    look = Look(display)
    FineTuner(net(), device="cpu").freeze().fit(blobs(), epochs=2, batch_size=8, cache="memory", callbacks=look)
    filling = {(label, doing) for label, _, doing in look.seen if "filling the cache" in doing}
    assert filling == {("epoch 1/2", "Training, filling the cache")}


def test_an_error_removes_the_bar(net, blobs, display) -> None:
    class Broken(Callback):
        def on_step_end(self, run: Any) -> None:
            raise KeyError

    with pytest.raises(KeyError):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[Broken()])

    assert display.bars == []


def test_a_step_runs_no_tensor_operation_until_the_bar_is_drawn(net, blobs) -> None:
    class Guarded(ProgressBar):
        guarded = 0

        def on_step_end(self, run: Any) -> None:
            with NoTensorOperations():
                super().on_step_end(run)
            self.guarded += 1

    with pytest.raises(AssertionError, match="was called"), NoTensorOperations():
        torch.ones(1).item()
    bar, display = Guarded(), Always()
    display.interval = 1000.0
    with waits_shown(display=display):
        FineTuner(net(), device="cpu").fit(blobs(), batch_size=8, progress=False, callbacks=[bar])

    assert bar.guarded == 3


def test_the_line_of_an_epoch_has_its_values_as_cells(net, blobs, display) -> None:
    history = FineTuner(net(), device="cpu").fit(blobs(), blobs(9), epochs=2)

    lines = [(line, cells) for line, cells in display.lines if cells is not None]
    assert [line[:9] for line, _ in lines] == ["epoch 1/2", "epoch 2/2"]
    for row, (line, cells) in zip(history, lines, strict=True):
        assert [*cells] == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "samples/s"]
        assert cells["val_loss"] == f"{row['val_loss']:.4f}"
        assert all(cell in line for cell in cells.values())


def test_a_run_within_a_run_shares_its_display(net, blobs, display) -> None:
    class Inner(Callback):
        only_watches = True

        def on_epoch_end(self, run: Any) -> None:
            look = Look(display)
            FineTuner(net(), device="cpu").fit(blobs(), callbacks=look)
            self.depth = len(look.seen), len(display.bars)

    inner = Inner()
    FineTuner(net(), device="cpu").fit(blobs(), callbacks=inner)

    assert inner.depth == (2, 1)
    assert sum(line.startswith("epoch 1/1") for line, _ in display.lines) == 2


def epochs_in(text: str) -> list[str]:
    return [line[:9] for line in text.splitlines() if line.startswith("epoch ")]


def test_without_a_terminal_the_lines_are_printed(net, blobs, capsys) -> None:
    FineTuner(net(), device="cpu").fit(blobs(), blobs(9), epochs=2)

    said = capsys.readouterr()
    assert epochs_in(said.out) == ["epoch 1/2", "epoch 2/2"]
    assert said.out.startswith("Model     Sequential, 131 parameters")
    assert said.err == ""


def test_progress_false_prints_nothing(net, blobs, capsys) -> None:
    FineTuner(net(), device="cpu").fit(blobs(), blobs(9), epochs=2, progress=False)

    assert capsys.readouterr() == ("", "")


def test_a_script_writes_its_lines_to_standard_output() -> None:
    script = (
        "import tests.helpers.lean; import torch; from finetune import FineTuner; "
        "X = torch.randn(8, 3); y = torch.arange(8) % 2; "
        "FineTuner(torch.nn.Linear(3, 2), device='cpu').fit((X, y), (X, y), epochs=2)"
    )

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert (epochs_in(done.stdout), done.stderr) == (["epoch 1/2", "epoch 2/2"], "")
