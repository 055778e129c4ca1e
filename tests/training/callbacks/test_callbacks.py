"""Callbacks, each by what it does to a run."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from finetune import FineTuner, Phase, StepOutput
from finetune.callbacks import Callback, CSVLogger, EarlyStopping, Logger, ModelCheckpoint, TensorBoard
from finetune.errors import ArgumentError, CheckpointError


class Scripted(FineTuner):
    """Give validation losses, and with them accuracies, from a list: a value an epoch."""

    script: Iterator[float]

    def validation_step(self, batch: Any) -> StepOutput:
        value = next(self.script)
        outputs, targets = self.model(batch[0]), batch[1]
        right = torch.arange(len(targets)) < round((0.0 if math.isnan(value) else value) * len(targets))
        guesses = torch.where(right, targets, (targets + 1) % 3)
        return StepOutput(outputs.sum() * 0 + value, nn.functional.one_hot(guesses, 3).float(), targets)


@pytest.fixture
def scripted(net, blobs):
    """Return a function that fits with these validation values, an epoch each, in one batch of 20 samples."""

    def fit(values: list[float], *callbacks: Callback, phases: int = 1, **kwargs: Any) -> Scripted:
        tuner = Scripted(net(), device="cpu")
        tuner.script = iter(values)
        plan = [Phase("*", len(values), 1e-2, "constant") for _ in range(phases)]
        tuner.fit(blobs(), blobs(20, seed=5), strategy=plan, batch_size=20, callbacks=callbacks, **kwargs)
        return tuner

    return fit


# ---------------------------------------------------------------------- EarlyStopping


@pytest.mark.parametrize(
    ("values", "kwargs", "epochs"),
    [
        ([5, 4, 3, 2, 1], {"patience": 1}, 5),
        ([5, 4, 4, 3, 2], {"patience": 1}, 3),
        ([5, 4, 4, 3, 3, 3, 1], {"patience": 2}, 6),
        ([5, 6, 7, 8, 9], {"patience": 3}, 4),
        ([5, 4.9, 4.8, 4.7], {"patience": 2, "min_delta": 0.5}, 3),
        ([5, 4.4, 3.8, 3.2], {"patience": 1, "min_delta": 0.5}, 4),
        ([5, math.nan, math.nan, 1], {"patience": 2}, 3),
        ([math.nan, math.nan, 5, 4], {"patience": 3}, 4),
        ([0.5, 0.6, 0.6, 0.9], {"patience": 1, "monitor": "val_accuracy"}, 3),
        ([0.5, 0.6, 0.7, 0.8], {"patience": 1, "monitor": "val_accuracy"}, 4),
        ([0.5, 0.4, 0.3, 0.9], {"patience": 2, "monitor": "val_accuracy"}, 3),
    ],
)
def test_when_early_stopping_stops(scripted, values: list[float], kwargs: dict[str, Any], epochs: int) -> None:
    assert len(scripted(values, EarlyStopping(**kwargs)).history) == epochs


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
@pytest.mark.parametrize("restore_best", [True, False])
def test_the_best_weights_come_back_bit_for_bit(scripted, state_of, same, monitor: str, restore_best: bool) -> None:
    class EachEpoch(Callback):
        states: list[dict[str, Tensor]]

        def on_epoch_end(self, run: Any) -> None:
            self.states.append(state_of(run.model))

    each = EachEpoch()
    each.states = []
    values = [0.5, 0.2, 0.4, 0.6] if monitor == "val_loss" else [0.4, 0.8, 0.5, 0.2]

    tuner = scripted(values, each, EarlyStopping(monitor, patience=2, restore_best=restore_best))

    assert len(each.states) == 4
    assert same(state_of(tuner.model), each.states[1 if restore_best else 3])
    assert not same(each.states[1]["1.running_mean"], each.states[3]["1.running_mean"])
    assert not same(each.states[1]["1.num_batches_tracked"], each.states[3]["1.num_batches_tracked"])


def test_the_best_weights_come_back_also_when_the_epochs_run_out(scripted, net, state_of, same, tmp_path) -> None:
    tuner = scripted([3.0, 1.0, 2.0], EarlyStopping(patience=9), checkpoint_dir=tmp_path)

    best = FineTuner.load_checkpoint(tmp_path / "best.safetensors", net(seed=1))
    assert same(state_of(tuner.model), state_of(best.model))


def test_what_never_improved_leaves_the_last_weights(scripted) -> None:
    tuner = scripted([math.nan, math.nan], EarlyStopping(patience=2))

    assert len(tuner.history) == 2


def test_trap_16_patience_and_best_are_per_phase(net, blobs) -> None:
    class Noted(EarlyStopping):
        noted: list[tuple[float, int]]

        def on_phase_begin(self, run: Any) -> None:
            super().on_phase_begin(run)
            self.noted = [*getattr(self, "noted", []), (self.best, self.waited)]

    tuner = Scripted(net(), device="cpu")
    tuner.script = iter([1.0, 2.0, 2.0, 9.0, 8.0, 7.0, 9.0])
    stopping = Noted(patience=2)

    tuner.fit(
        blobs(), blobs(20), strategy=[Phase("6", 5, name="a"), Phase("*", 4, name="b")], batch_size=20,
        callbacks=[stopping],
    )  # fmt: skip

    assert [row["phase"] for row in tuner.history] == ["a"] * 3 + ["b"] * 4
    assert stopping.noted == [(math.inf, 0), (math.inf, 0)]


@pytest.mark.parametrize("interrupted", [1, 2, 3, 4, 5])
def test_trap_16_patience_and_best_survive_a_resume(net, blobs, tmp_path, same, state_of, interrupted: int) -> None:
    values = [5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 3.8]

    class Cut(Callback):
        saves_run = True

        def on_epoch_end(self, run: Any) -> None:
            if run.epoch == interrupted:
                run.save(tmp_path / "cut.safetensors")

    def tuner(rest: list[float]) -> Scripted:
        made = Scripted(net(), device="cpu")
        made.script = iter(rest)
        return made

    arguments = {"epochs": 7, "batch_size": 20, "lr": 1e-2}
    whole, resumed = tuner(values), tuner(values[interrupted:])
    whole.fit(blobs(), blobs(20), callbacks=[EarlyStopping(patience=3), Cut()], **arguments)
    stopping = EarlyStopping(patience=3)
    resumed.fit(
        blobs(), blobs(20), callbacks=[stopping], resume_from=tmp_path / "cut.safetensors", **arguments
    )  # fmt: skip

    assert len(whole.history) == len(resumed.history) == 6
    assert stopping.best == 3.0
    assert same(state_of(whole.model), state_of(resumed.model))


@pytest.mark.parametrize("make", [EarlyStopping, lambda m: ModelCheckpoint("never", monitor=m)])
@pytest.mark.parametrize("monitor", ["val_acuracy", "val_los", "accuracy_val", "lr"])
def test_trap_17_a_monitored_value_that_will_be_missing_is_an_error_before_any_step(
    net, blobs, watch, state_of, same, monkeypatch, tmp_path, make: Any, monitor: str
) -> None:
    monkeypatch.chdir(tmp_path)
    seen, tuner = watch(), FineTuner(net(), device="cpu")
    before = state_of(tuner.model)

    with pytest.raises(ArgumentError, match=f"'{monitor}' to monitor.*loss, accuracy, val_loss, val_accuracy"):
        tuner.fit(blobs(), blobs(9), callbacks=[seen, make(monitor)])

    assert seen.hooks == ["on_fit_begin", "on_fit_end"]
    assert same(before, state_of(tuner.model))
    assert not (tmp_path / "never").exists()


def test_trap_17_without_validation_data_val_loss_is_missing(net, blobs) -> None:
    with pytest.raises(
        ArgumentError, match=r"run has loss, accuracy\. Values named val_\.\.\. require validation data"
    ):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[EarlyStopping()])


def test_trap_17_a_metric_that_a_step_of_ones_own_does_not_feed_is_an_error(net, blobs) -> None:
    class Own(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return self.model(batch[0]).square().mean()

    with pytest.raises(ArgumentError, match="no value 'accuracy' to monitor"):
        Own(net(), device="cpu").fit(blobs(), epochs=3, callbacks=[EarlyStopping("accuracy")])


# ---------------------------------------------------------------------- ModelCheckpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_last_and_best_are_kept(scripted, tmp_path, net, state_of, same) -> None:
    tuner = scripted([3.0, 1.0, 2.0], checkpoint_dir=tmp_path)

    last = FineTuner.load_checkpoint(tmp_path / "last.safetensors", net(seed=1))
    best = FineTuner.load_checkpoint(tmp_path / "best.safetensors", net(seed=1))
    assert names(tmp_path) == ["best.safetensors", "last.safetensors"]
    assert (len(last.history), len(best.history)) == (3, 2)
    assert same(state_of(last.model), state_of(tuner.model))
    assert not same(state_of(last.model), state_of(best.model))


def test_best_of_a_metric_that_rises(scripted, tmp_path, net) -> None:
    scripted([0.2, 0.9, 0.5], ModelCheckpoint(tmp_path, monitor="val_accuracy"))

    assert len(FineTuner.load_checkpoint(tmp_path / "best.safetensors", net()).history) == 2


def test_trap_37_a_value_that_is_no_number_is_never_best(scripted, tmp_path, net) -> None:
    scripted([math.nan, 2.0, math.nan], checkpoint_dir=tmp_path / "some")
    scripted([math.nan, math.nan], checkpoint_dir=tmp_path / "none")

    assert len(FineTuner.load_checkpoint(tmp_path / "some" / "best.safetensors", net()).history) == 2
    assert names(tmp_path / "none") == ["last.safetensors"]


def test_without_validation_data_the_loss_is_monitored(net, blobs, tmp_path) -> None:
    FineTuner(net(), device="cpu").fit(blobs(), checkpoint_dir=tmp_path / "deep" / "folder")

    assert names(tmp_path / "deep" / "folder") == ["best.safetensors", "last.safetensors"]


def test_the_newest_numbered_checkpoints_are_kept(scripted, tmp_path) -> None:
    scripted([1.0] * 5, ModelCheckpoint(tmp_path, keep=2))

    numbered = ["epoch-0004.safetensors", "epoch-0005.safetensors"]
    assert names(tmp_path) == ["best.safetensors", *numbered, "last.safetensors"]


def test_numbered_checkpoints_of_an_earlier_run_are_the_older_ones(scripted, tmp_path) -> None:
    scripted([1.0] * 5, ModelCheckpoint(tmp_path, keep=1))

    scripted([1.0] * 2, ModelCheckpoint(tmp_path, keep=1))

    assert [name for name in names(tmp_path) if name.startswith("epoch")] == ["epoch-0002.safetensors"]


def test_every_so_many_steps_the_last_is_written(net, blobs, tmp_path) -> None:
    class Look(Callback):
        saves_run = True  # after the other
        positions: list[int | None]

        def on_step_end(self, run: Any) -> None:
            path = tmp_path / "last.safetensors"
            written = path.stat().st_mtime_ns if path.exists() else None
            self.positions = [*getattr(self, "positions", []), written]

    look = Look()

    FineTuner(net(), device="cpu").fit(
        blobs(), batch_size=4, callbacks=[ModelCheckpoint(tmp_path, every_steps=2), look]
    )

    assert look.positions[0] is None
    assert look.positions[1] is not None
    assert len(set(look.positions)) == 4  # none, and after updates 2, 4 and 6


def test_trap_16_a_checkpoint_holds_what_later_callbacks_made_of_the_epoch(net, blobs, tmp_path) -> None:
    class Stop(Callback):
        def on_epoch_end(self, run: Any) -> None:
            run.end_phase = run.epoch == 2

    arguments = {"epochs": 4, "batch_size": 12}
    FineTuner(net(), device="cpu").fit(blobs(), callbacks=[ModelCheckpoint(tmp_path), Stop()], **arguments)
    resumed = FineTuner(net(), device="cpu")

    resumed.fit(blobs(), resume_from=tmp_path, **arguments)

    assert len(resumed.history) == 2


def test_best_of_a_resumed_run_is_that_of_the_whole(net, blobs, tmp_path) -> None:
    def fit(values: list[float], epochs: int, **kwargs: Any) -> None:
        tuner = Scripted(net(), device="cpu")
        tuner.script = iter(values)
        tuner.fit(blobs(), blobs(20), epochs=epochs, batch_size=20, checkpoint_dir=tmp_path, **kwargs)

    fit([2.0, 1.0], 2)
    fit([5.0], 3, resume_from="auto")

    assert len(FineTuner.load_checkpoint(tmp_path / "best.safetensors", net()).history) == 2
    assert len(FineTuner.load_checkpoint(tmp_path / "last.safetensors", net()).history) == 3


# ---------------------------------------------------------------------- the loggers


def test_the_csv_file_holds_the_history(net, blobs, tmp_path) -> None:
    path = tmp_path / "new" / "log.csv"
    history = FineTuner(net(), device="cpu").fit(
        blobs(), blobs(9), strategy=[Phase("6", 2, name="head"), Phase("*", 1, (1e-4, 1e-3), name="all")],
        callbacks=[CSVLogger(path)],
    )  # fmt: skip

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert list(rows[0])[:6] == ["epoch", "phase", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert [row["phase"] for row in rows] == ["head", "head", "all"]
    for written, row in zip(rows, history, strict=True):
        assert float(written["val_loss"]) == row["val_loss"]
        rates = {key[3:]: float(value) for key, value in written.items() if key.startswith("lr/") and value}
        assert rates == row["lr"]
    assert rows[0]["lr/0"] == ""


def test_without_tensorboard_the_callback_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    with pytest.raises(ArgumentError, match="needs the package tensorboard: pip install tensorboard"):
        TensorBoard(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own imports
def test_tensorboard_gets_every_number(net, blobs, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(tmp_path)
    tuner = FineTuner(net(), device="cpu")
    tuner.fit(blobs(), blobs(9), epochs=2, callbacks=[logger])
    tuner.fit(blobs(), blobs(9), epochs=1, callbacks=[logger])

    events = EventAccumulator(str(tmp_path)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "seconds", "lr/6"} <= tags
    assert not {"epoch", "phase"} & tags
    assert [(e.step, e.value) for e in events.Scalars("val_loss")] == [
        (row["epoch"], pytest.approx(row["val_loss"])) for row in tuner.history
    ]


class Wandb(Logger):
    """Collect what would be sent to a tracking service."""

    every_n_steps = 2

    def __init__(self) -> None:
        self.steps: dict[int, tuple[Tensor, dict[str, float]]] = {}
        self.epochs: dict[int, dict[str, Any]] = {}

    def log_step(self, step: int, loss: Tensor, lr: Mapping[str, float]) -> None:
        self.steps[step] = loss, dict(lr)

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        self.epochs[self.step] = dict(row)


def test_a_new_logger_gets_the_loss_and_the_rates_of_every_step_it_asks_for(net, blobs, watch, tmp_path) -> None:
    class Losses(FineTuner):
        losses: tuple[Tensor, ...] = ()

        def training_step(self, batch: Any) -> StepOutput:
            output = super().training_step(batch)
            self.losses += (output.loss.detach(),)
            return output

    logger, seen, tuner = Wandb(), watch(), Losses(net(), device="cpu", gradient_accumulation_steps=2)
    phases = [Phase("6", 1), Phase("*", 1)]

    history = tuner.fit(blobs(), strategy=phases, batch_size=4, callbacks=[logger, seen], checkpoint_dir=tmp_path)

    losses = torch.stack(tuner.losses).reshape(-1, 2).mean(1)
    assert list(logger.steps) == [2, 4, 6]
    for step, (loss, lr) in logger.steps.items():
        assert not loss.requires_grad
        torch.testing.assert_close(loss, losses[step - 1])
        assert lr == seen.rates[step - 1]
    assert list(logger.epochs) == [3, 6]
    assert [row["loss"] for row in logger.epochs.values()] == [row["loss"] for row in history]
    assert all(row["lr/6"] == kept["lr"]["6"] for row, kept in zip(logger.epochs.values(), history, strict=True))

    resumed = Wandb()
    FineTuner(net(), device="cpu", gradient_accumulation_steps=2).fit(
        blobs(), strategy=[*phases, Phase("*", 1)], batch_size=4, callbacks=[resumed], resume_from=tmp_path
    )
    assert list(resumed.steps) == [8]


class Forbidden(TorchDispatchMode):
    """Forbid every operation on tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called")


def test_logging_a_step_does_not_wait_for_the_device(net, blobs) -> None:
    class Guarded(Wandb):
        every_n_steps = 1

        def on_step_end(self, run: Any) -> None:
            with Forbidden():
                super().on_step_end(run)

    logger = Guarded()
    FineTuner(net(), device="cpu").fit(blobs(), batch_size=8, callbacks=[logger])

    assert list(logger.steps) == [1, 2, 3]


# ---------------------------------------------------------------------- one's own


def test_a_callback_of_ones_own_sees_the_run_and_may_end_a_phase(net, blobs) -> None:
    class Own(Callback):
        best = 0.0
        notes: list[str]

        def on_fit_begin(self, run: Any) -> None:
            self.notes = [type(run.model).__name__, str(len(run.phases))]

        def on_epoch_end(self, run: Any) -> None:
            self.best = max(self.best, run.row["accuracy"])
            assert run.history[-1] is run.row
            run.end_phase = True

    own = Own()
    history = FineTuner(net(), device="cpu").fit(
        blobs(), strategy=[Phase("6", 3, name="a"), Phase("*", 3, name="b")], callbacks=[own]
    )

    assert own.notes == ["Sequential", "2"]
    assert [row["phase"] for row in history] == ["a", "b"]
    assert own.best == max(row["accuracy"] for row in history)


def test_two_callbacks_of_a_kind_keep_their_own_state(net, blobs, tmp_path) -> None:
    class Counter(Callback):
        def __init__(self, start: int) -> None:
            self.count = start

        def on_epoch_end(self, run: Any) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: Any) -> None:
            self.count = state.get("count", self.count)

    FineTuner(net(), device="cpu").fit(blobs(), epochs=1, callbacks=[Counter(10), Counter(20)], checkpoint_dir=tmp_path)
    again = [Counter(0), Counter(0), Counter(7)]

    FineTuner(net(), device="cpu").fit(blobs(), epochs=2, callbacks=again, resume_from=tmp_path)

    assert [counter.count for counter in again] == [12, 22, 8]


def test_a_checkpoint_folder_that_is_a_file_is_said_before_training(net, blobs, tmp_path) -> None:
    (tmp_path / "taken").write_text("")
    tuner = FineTuner(net(), device="cpu")
    with pytest.raises(CheckpointError, match="cannot be kept in"):
        tuner.fit(blobs(), checkpoint_dir=tmp_path / "taken")
    assert len(tuner.history) == 0
