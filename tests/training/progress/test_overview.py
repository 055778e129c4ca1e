"""The lines about a run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from finetune import FineTuner, Phase


def test_the_lines_tell_the_plan_and_a_line_per_epoch(net, blobs, capsys) -> None:
    tuner = FineTuner(net(), device="cpu")
    phases = [Phase("6", 1, 1e-3, name="probe"), Phase("*", 2, (1e-4, 1e-3), name="all")]

    history = tuner.fit(blobs(), blobs(9), strategy=phases, batch_size=8)

    shown = capsys.readouterr().out
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


def test_the_overview_says_what_was_decided(class_folder, blobs, capsys) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.append(torch.nn.Linear(4, 1000))
    data = class_folder(**{f"{k:02}": 5 for k in range(12)})
    tuner = FineTuner(model, device="cpu", preprocessing={"crop_size": 8}).replace_head(12)
    capsys.readouterr()

    tuner.fit(data)

    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["Model     Sequential, 172 parameters, fp32 on cpu", "Head      3: Linear(4, 12), replaced"]
    assert lines[2].startswith("Task      Classification with cross-entropy: the labels are names")
    start = next(number for number, line in enumerate(lines) if line.startswith("Classes"))
    assert lines[start : start + 2] == [
        "Classes   00, 01, 02, 03, 04, 05, 06, 07, 08, ... (12 in all), 11",
        "Data      48 samples for training, 12 samples for validation",
    ]
    assert lines[start + 2].startswith("          No validation data was given: 12 of 60 samples were held out")


def test_the_overview_lists_what_is_left_out(class_folder, capsys) -> None:
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    data = class_folder(a=6, b=6)
    (data / "a" / "notes.txt").write_text("")
    (data / "a" / "0.png").write_bytes(b"")
    (data / "loose.png").write_bytes((data / "b" / "0.png").read_bytes())
    tuner = FineTuner(model, device="cpu", preprocessing={"crop_size": 8})

    tuner.fit(data, val=False, skip_corrupt=True)

    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("Left out"))
    assert " ".join(" ".join(lines[start : start + 2]).split()) == (
        "Left out 1 image beside the class folders, 1 of 13 files in 'train' (1 .txt), 1 of the 12 images of the "
        "training data (damaged)"
    )


@pytest.mark.parametrize(
    ("more", "row"),
    [((), None), ((1.0,), "Left out  part 3 of each sample"), ((1.0, 2.0), "Left out  parts 3 to 4 of each sample")],
)
def test_the_overview_lists_parts_of_samples_that_are_left_out(more, row, blobs, net, capsys) -> None:
    data = [(x, int(y), *more) for x, y in zip(*blobs(), strict=True)]
    FineTuner(net(), device="cpu").fit(data)
    rows = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.startswith("Left out")]
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


def test_groups_without_names_are_called_all(net, blobs, capsys) -> None:
    def factory(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=0.1)

    history = FineTuner(net(), device="cpu", optimizer=factory).fit(blobs())

    assert set(history[0]["lr"]) == {"all"}
    assert "training all 131 parameters, lr 0.1" in capsys.readouterr().out


def test_of_many_groups_only_first_and_last_are_listed(blobs, capsys) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(11)), torch.nn.Linear(4, 3))

    FineTuner(model, device="cpu").fit(blobs(), lr=(1e-5, 1e-3))

    assert "lr 1e-05 (0) to 0.001 (11) in 12 groups" in capsys.readouterr().out


def test_the_plan_names_the_starting_weights(net, blobs, capsys) -> None:
    FineTuner(net(), device="cpu").fit(blobs(), strategy="from_scratch")

    assert "from_scratch: 1 epoch from scratch, training 0 to 6" in capsys.readouterr().out


def test_a_lazy_model_is_described_before_it_has_seen_data() -> None:
    assert repr(FineTuner(torch.nn.Sequential(torch.nn.LazyLinear(3)))) == (
        "FineTuner(Sequential, with lazy layers that have seen no data)"
    )
