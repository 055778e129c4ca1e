"""The progress display: the lines on a terminal and in the log."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
from rich.console import Console

from finetune import FineTuner, Phase
from finetune.callbacks import Callback
from finetune.training.progress import ProgressBar, SeriesProgress
from tests.helpers.tensors import NoTensorOperations


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=300, color_system=None)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_the_plan_and_a_line_per_epoch(net, blobs, terminal) -> None:
    tuner = FineTuner(net(), device="cpu")
    phases = [Phase("6", 1, 1e-3, name="probe"), Phase("*", 2, (1e-4, 1e-3), name="all")]

    history = tuner.fit(blobs(), blobs(9), strategy=phases, batch_size=8, callbacks=[ProgressBar(terminal)])

    shown = text_of(terminal)
    norms = ["1 of 1 norm layers frozen", "0 of 1 norm layers frozen"]
    assert shown.splitlines()[:4] == [
        "Plan: 2 phases, 3 epochs",
        f"probe: 1 epoch, training 6 (21 of 131 parameters), lr 0.001, {norms[0]}, fp32 on cpu",
        f"all: 2 epochs, training 0 to 6 (all 131 parameters), lr 0.0001 (0), 0.00032 (4), 0.001 (6), {norms[1]}, "
        f"fp32 on cpu",
        "Phase 1 of 2: probe",
    ]
    assert "Phase 2 of 2: all" in shown
    for number, row in zip(("1/1", "1/2", "2/2"), history, strict=True):
        values = "  ".join(f"{key} {row[key]:.4f}" for key in ("loss", "accuracy", "val_loss", "val_accuracy"))
        assert f"epoch {number}  {values}  " in shown
    assert "samples/s" in shown


def test_notes_come_first(net, blobs, terminal) -> None:
    FineTuner(net(), device="cpu").fit(blobs(30), 0.2, callbacks=[ProgressBar(terminal)])

    assert text_of(terminal).startswith("No validation data was given: 6 of 30 samples were held out")


def test_the_bar_counts_the_updates(net, blobs, terminal) -> None:
    class Look(Callback):
        saves_run = True  # after the bar
        seen: list[Any]

        def on_step_end(self, run: Any) -> None:
            task = bar._bar.tasks[-1]
            self.seen = [*getattr(self, "seen", []), (task.description, task.completed, task.total)]

    bar, look = ProgressBar(terminal, interval=-1.0), Look()
    FineTuner(net(), device="cpu").fit(blobs(), epochs=2, batch_size=8, callbacks=[bar, look])

    assert look.seen == [(f"epoch {epoch}/2", done, 3) for epoch in (1, 2) for done in (1, 2, 3)]
    assert bar._bar is None


def test_the_bar_of_a_resumed_epoch_starts_at_its_update(net, blobs, terminal, tmp_path) -> None:
    class Save(Callback):
        def on_step_end(self, run: Any) -> None:
            if run.position.window == 2:
                run.save(tmp_path / "two.safetensors")

    class Look(Callback):
        saves_run = True

        def on_epoch_begin(self, run: Any) -> None:
            self.completed = bar._bar.tasks[-1].completed

    FineTuner(net(), device="cpu").fit(blobs(), batch_size=8, callbacks=[Save()])
    bar, look = ProgressBar(terminal), Look()
    resume = tmp_path / "two.safetensors"

    FineTuner(net(), device="cpu").fit(blobs(), batch_size=8, callbacks=[bar, look], resume_from=resume)

    assert look.completed == 2


def test_an_error_removes_the_bar(net, blobs, terminal) -> None:
    class Broken(Callback):
        def on_step_end(self, run: Any) -> None:
            raise KeyError

    bar = ProgressBar(terminal)
    with pytest.raises(KeyError):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[bar, Broken()])

    assert bar._bar is None


def test_names_are_not_read_as_markup(net, blobs, terminal) -> None:
    FineTuner(net(), device="cpu").fit(
        blobs(), strategy=[Phase("*", name="[red]mine[/red]")], callbacks=[ProgressBar(terminal)]
    )

    assert "[red]mine[/red]: 1 epoch" in text_of(terminal)


def test_without_a_terminal_the_lines_are_only_logged(net, blobs, capfd, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="finetune"):
        FineTuner(net(), device="cpu").fit(blobs(), blobs(9), epochs=2)

    assert capfd.readouterr() == ("", "")
    lines = [record.getMessage() for record in caplog.records]
    lines = [line for line in lines if not line.startswith("cache:")]
    assert lines[0].startswith("fit: 2 epochs, training 0 to 6")
    assert [line[:9] for line in lines[1:]] == ["epoch 1/2", "epoch 2/2"]


def test_a_script_without_a_terminal_prints_nothing() -> None:
    script = (
        "import torch; from finetune import FineTuner; X = torch.randn(8, 3); y = torch.arange(8) % 2; "
        "FineTuner(torch.nn.Linear(3, 2), device='cpu').fit((X, y), (X, y), epochs=2)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("", "")


def test_a_step_runs_no_tensor_operation(net, blobs, terminal) -> None:
    class Guarded(ProgressBar):
        guarded = 0

        def on_step_end(self, run: Any) -> None:
            with NoTensorOperations():
                super().on_step_end(run)
            self.guarded += 1

    with pytest.raises(AssertionError, match="was called"), NoTensorOperations():
        torch.ones(1).item()
    bar = Guarded(terminal, interval=-1.0)
    FineTuner(net(), device="cpu").fit(blobs(), batch_size=8, callbacks=[bar])

    assert bar.guarded == 3


def test_groups_without_names_are_called_all(net, blobs, terminal) -> None:
    def factory(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=0.1)

    history = FineTuner(net(), device="cpu", optimizer=factory).fit(blobs(), callbacks=[ProgressBar(terminal)])

    assert set(history[0]["lr"]) == {"all"}
    assert "training all 131 parameters, lr 0.1," in text_of(terminal)


def test_of_many_groups_only_first_and_last_are_listed(blobs, terminal) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(11)), torch.nn.Linear(4, 3))

    FineTuner(model, device="cpu").fit(blobs(), lr=(1e-5, 1e-3), callbacks=[ProgressBar(terminal)])

    assert "lr 1e-05 (0) to 0.001 (11) in 12 groups, fp32 on cpu" in text_of(terminal)


def test_the_plan_names_the_starting_weights(net, blobs, terminal) -> None:
    FineTuner(net(), device="cpu").fit(blobs(), strategy="from_scratch", callbacks=[ProgressBar(terminal)])

    assert "from_scratch: 1 epoch from scratch, training 0 to 6" in text_of(terminal)


def test_a_series_of_runs_shows_its_epochs_and_a_line_per_run(terminal, caplog) -> None:
    with caplog.at_level(logging.INFO, "finetune"), SeriesProgress(2, 3, console=terminal) as series:
        series.begin("resnet18")
        series.epoch()
        (task,) = series._bar.tasks
        assert (task.description, task.completed, task.total) == ("1 of 2: resnet18", 1, 6)
        series.end("resnet18: failed")  # after one of three
        assert task.completed == 3
        series.end("resnet34: found")
        assert task.completed == 6

    lines = ["1 of 2: resnet18: failed", "2 of 2: resnet34: found"]
    assert all(line in text_of(terminal) for line in lines)
    assert caplog.messages == lines


def test_a_hidden_series_is_only_logged(terminal, caplog) -> None:
    with caplog.at_level(logging.INFO, "finetune"), SeriesProgress(1, 1, shown=False, console=terminal) as series:
        series.begin("resnet18")
        series.end("resnet18: 0.9")

    assert text_of(terminal) == ""
    assert caplog.messages == ["1 of 1: resnet18: 0.9"]
