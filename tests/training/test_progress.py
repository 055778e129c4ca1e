"""The progress display: the lines on a terminal and in the log."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from finetune import FineTuner, Phase
from finetune.callbacks import Callback
from finetune.training.progress import ProgressBar, SeriesProgress
from tests.helpers.tensors import NoTensorOperations

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=300, color_system=None)


def drawn_on(console: Console) -> dict[str, Any]:
    """Return arguments of `fit` that draw the progress on a console, and only there."""
    return {"progress": False, "callbacks": [ProgressBar(console)]}


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_the_plan_and_a_line_per_epoch(net, blobs, terminal) -> None:
    tuner = FineTuner(net(), device="cpu")
    phases = [Phase("6", 1, 1e-3, name="probe"), Phase("*", 2, (1e-4, 1e-3), name="all")]

    history = tuner.fit(blobs(), blobs(9), strategy=phases, batch_size=8, **drawn_on(terminal))

    shown = text_of(terminal)
    assert [line.rstrip() for line in shown.splitlines()[:10]] == [
        "Model     Sequential, 131 parameters, fp32 on cpu",
        "Head      6: Linear(6, 3)",
        "Task      Classification with cross-entropy: the labels are classes and the model has 3 outputs. Pass",
        "          loss='mse' to train on the numbers instead.",
        "Data      24 samples for training, 9 samples for validation",
        "Phases    probe: 1 epoch, training 6 (21 of 131 parameters), lr 0.001, 1 of 1 norm layers frozen",
        "          all: 2 epochs, training 0 to 6 (all 131 parameters), lr 0.0001 (0), 0.00032 (4), 0.001 (6), 0 of 1",
        "          norm layers frozen",
        "cache: off, because no sample is seen twice",
        "Phase 1 of 2: probe",
    ]
    assert "Phase 2 of 2: all" in shown
    for number, row in zip(("1/1", "1/2", "2/2"), history, strict=True):
        values = "  ".join(f"{key} {row[key]:.4f}" for key in ("loss", "accuracy", "val_loss", "val_accuracy"))
        assert f"epoch {number}  {values}  " in shown
    assert "samples/s" in shown


def test_the_overview_says_what_was_decided(class_folder, blobs, terminal) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.append(torch.nn.Linear(4, 1000))
    data = class_folder(**{f"{k:02}": 5 for k in range(12)})
    tuner = FineTuner(model, device="cpu", preprocessing={"crop_size": 8}).replace_head(12)

    tuner.fit(data, **drawn_on(terminal))

    lines = [line.rstrip() for line in text_of(terminal).splitlines()]
    assert lines[:2] == ["Model     Sequential, 172 parameters, fp32 on cpu", "Head      3: Linear(4, 12), replaced"]
    assert lines[2].startswith("Task      Classification with cross-entropy: the labels are names")
    start = next(number for number, line in enumerate(lines) if line.startswith("Classes"))
    assert lines[start : start + 2] == [
        "Classes   00, 01, 02, 03, 04, 05, 06, 07, 08, ... (12 in all), 11",
        "Data      48 samples for training, 12 samples for validation",
    ]
    assert lines[start + 2].startswith("          No validation data was given: 12 of 60 samples were held out")


def test_the_overview_lists_what_is_left_out(class_folder, terminal) -> None:
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    data = class_folder(a=6, b=6)
    (data / "a" / "notes.txt").write_text("")
    (data / "a" / "0.png").write_bytes(b"")
    (data / "loose.png").write_bytes((data / "b" / "0.png").read_bytes())
    tuner = FineTuner(model, device="cpu", preprocessing={"crop_size": 8})

    tuner.fit(data, val=False, skip_corrupt=True, **drawn_on(terminal))

    lines = [line.rstrip() for line in text_of(terminal).splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("Left out"))
    assert " ".join(" ".join(lines[start : start + 2]).split()) == (
        "Left out 1 image beside the class folders, 1 of 13 files in 'train' (1 .txt), 1 of the 12 images of the "
        "training data (damaged)"
    )


@pytest.mark.parametrize(
    ("more", "row"),
    [((), None), ((1.0,), "Left out  part 3 of each sample"), ((1.0, 2.0), "Left out  parts 3 to 4 of each sample")],
)
def test_the_overview_lists_parts_of_samples_that_are_left_out(more, row, blobs, net, terminal) -> None:
    data = [(x, int(y), *more) for x, y in zip(*blobs(), strict=True)]
    FineTuner(net(), device="cpu").fit(data, **drawn_on(terminal))
    rows = [line.rstrip() for line in text_of(terminal).splitlines() if line.startswith("Left out")]
    assert rows == ([row] if row else [])


def test_a_replaced_head_is_shown_unless_the_logger_is_quiet(net, capsys) -> None:
    tuner = FineTuner(net(), device="cpu").replace_head(5)
    assert capsys.readouterr().out == "Head 6: Linear(6, 3) -> Linear(6, 5), 5 outputs\n"
    logging.getLogger("finetune").setLevel(logging.WARNING)
    try:
        tuner.replace_head(1)
    finally:
        logging.getLogger("finetune").setLevel(logging.NOTSET)
    assert capsys.readouterr().out == ""


def test_the_bar_counts_the_updates(net, blobs, terminal) -> None:
    class Look(Callback):
        saves_run = True  # after the bar
        seen: list[Any]

        def on_step_end(self, run: Any) -> None:
            task = bar._bar.tasks[-1]
            self.seen = [*getattr(self, "seen", []), (task.description, task.completed, task.total)]

    bar, look = ProgressBar(terminal, interval=-1.0), Look()
    FineTuner(net(), device="cpu").fit(blobs(), epochs=2, batch_size=8, progress=False, callbacks=[bar, look])

    assert look.seen == [(f"epoch {epoch}/2", done, 3) for epoch in (1, 2) for done in (1, 2, 3)]
    assert bar._bar is None


def test_the_bar_of_a_resumed_epoch_starts_at_its_update(net, blobs, terminal, tmp_path) -> None:
    class Save(Callback):
        only_watches = True

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

    FineTuner(net(), device="cpu").fit(blobs(), batch_size=8, progress=False, callbacks=[bar, look], resume_from=resume)

    assert look.completed == 2


def test_an_error_removes_the_bar(net, blobs, terminal) -> None:
    class Broken(Callback):
        def on_step_end(self, run: Any) -> None:
            raise KeyError

    bar = ProgressBar(terminal)
    with pytest.raises(KeyError):
        FineTuner(net(), device="cpu").fit(blobs(), progress=False, callbacks=[bar, Broken()])

    assert bar._bar is None


def test_names_are_not_read_as_markup(net, blobs, terminal) -> None:
    FineTuner(net(), device="cpu").fit(blobs(), strategy=[Phase("*", name="[red]mine[/red]")], **drawn_on(terminal))

    assert "[red]mine[/red]: 1 epoch" in text_of(terminal)


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
        "import torch; import tests.helpers.lean; from finetune import FineTuner; "
        "X = torch.randn(8, 3); y = torch.arange(8) % 2; "
        "FineTuner(torch.nn.Linear(3, 2), device='cpu').fit((X, y), (X, y), epochs=2)"
    )

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert (epochs_in(done.stdout), done.stderr) == (["epoch 1/2", "epoch 2/2"], "")


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
    FineTuner(net(), device="cpu").fit(blobs(), batch_size=8, progress=False, callbacks=[bar])

    assert bar.guarded == 3


def test_groups_without_names_are_called_all(net, blobs, terminal) -> None:
    def factory(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=0.1)

    history = FineTuner(net(), device="cpu", optimizer=factory).fit(blobs(), **drawn_on(terminal))

    assert set(history[0]["lr"]) == {"all"}
    assert "training all 131 parameters, lr 0.1" in text_of(terminal)


def test_of_many_groups_only_first_and_last_are_listed(blobs, terminal) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(11)), torch.nn.Linear(4, 3))

    FineTuner(model, device="cpu").fit(blobs(), lr=(1e-5, 1e-3), **drawn_on(terminal))

    assert "lr 1e-05 (0) to 0.001 (11) in 12 groups" in text_of(terminal)


def test_the_plan_names_the_starting_weights(net, blobs, terminal) -> None:
    FineTuner(net(), device="cpu").fit(blobs(), strategy="from_scratch", **drawn_on(terminal))

    assert "from_scratch: 1 epoch from scratch, training 0 to 6" in text_of(terminal)


def test_a_series_of_runs_shows_its_epochs_and_a_line_per_run(terminal) -> None:
    with SeriesProgress(2, 3, console=terminal) as series:
        series.begin("resnet18")
        series.epoch()
        (task,) = series._bar.tasks
        assert (task.description, task.completed, task.total) == ("1 of 2: resnet18", 1, 6)
        series.end("resnet18: failed")  # after one of three
        assert task.completed == 3
        series.end("resnet34: found")
        assert task.completed == 6

    lines = ["1 of 2: resnet18: failed", "2 of 2: resnet34: found"]
    assert all(text_of(terminal).count(line) == 1 for line in lines)


def test_a_series_shows_its_own_lines_only(net, blobs, capsys) -> None:
    with SeriesProgress(1, 1) as series:
        FineTuner(net(), device="cpu").fit(blobs(), progress=False)
        series.end("done")

    assert capsys.readouterr().out == "1 of 1: done\n"


def test_a_hidden_series_is_only_logged(terminal, caplog) -> None:
    with caplog.at_level(logging.INFO, "finetune"), SeriesProgress(1, 1, shown=False, console=terminal) as series:
        series.begin("resnet18")
        series.end("resnet18: 0.9")

    assert text_of(terminal) == ""
    assert caplog.messages == ["1 of 1: resnet18: 0.9"]


def test_a_lazy_model_is_described_before_it_has_seen_data() -> None:
    assert repr(FineTuner(torch.nn.Sequential(torch.nn.LazyLinear(3)))) == (
        "FineTuner(Sequential, with lazy layers that have seen no data)"
    )
