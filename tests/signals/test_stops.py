"""Signals: where they end the work, what is kept, and how it goes on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from finetune import FineTuner, Phase, advise, compare
from finetune.callbacks import EMA, SWA, Callback, EarlyStopping
from finetune.errors import DataError
from finetune.signals.stops import interruptible, poll, polled, signals_heeded, unbroken
from tests.helpers.models import small_mlp
from tests.helpers.processes import signalled
from tests.helpers.tensors import gaussian_blobs

STOPS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.fixture(autouse=True)
def _handlers_return() -> Iterator[None]:
    """Check that the handlers are as before, and that no request is left."""
    before = [signal.getsignal(number) for number in STOPS]
    yield
    assert [signal.getsignal(number) for number in STOPS] == before
    poll()


class Signalled(FineTuner):
    """A tuner that signals its own process in its nth call of a step."""

    step, call, number, calls = "training_step", 0, signal.SIGTERM, 0

    def training_step(self, batch: Any) -> Any:
        self._count("training_step")
        return super().training_step(batch)

    def validation_step(self, batch: Any) -> Any:
        self._count("validation_step")
        return super().validation_step(batch)

    def predict_step(self, batch: Any) -> Tensor:
        self._count("predict_step")
        return super().predict_step(batch)

    def _count(self, step: str) -> None:
        if step == self.step:
            self.calls += 1
            if self.calls == self.call:
                signal.raise_signal(self.number)


class Samples(Dataset[tuple[Tensor, int]]):
    """Samples whose nth read signals the process, from `armed` on."""

    def __init__(self, read: int = 0, number: signal.Signals = signal.SIGTERM, count: int = 24) -> None:
        self.inputs, self.targets = gaussian_blobs(count)
        self.left, self.number, self.armed, self.reads_after = read, number, True, 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.armed and self.left:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(self.number)
        elif self.armed:
            self.reads_after += 1
        return self.inputs[index], int(self.targets[index])


def tuned(
    folder: Path | None, step: str = "training_step", call: int = 0, callbacks: Any = (), number: Any = signal.SIGTERM
) -> Signalled:
    """Train two phases of two epochs with three updates each, with a signal in one of the calls of a step."""
    tuner = Signalled(small_mlp(), device="cpu")
    tuner.step, tuner.call, tuner.number = step, call, number
    fit(tuner, folder, callbacks)
    return tuner


def fit(tuner: FineTuner, folder: Path | None, callbacks: Any = (), **options: Any) -> None:
    phases = [Phase("6", 2, 1e-2, "constant"), Phase("*", 2, 1e-2, "constant")]
    train, val = gaussian_blobs(), gaussian_blobs(20, seed=5)
    given: dict[str, Any] = {"strategy": phases, "batch_size": 8, "progress": False, **options}
    tuner.fit(train, val, callbacks=callbacks, checkpoint_dir=folder, **given)


def averages() -> list[Callback]:
    return [EMA(0.9), EarlyStopping(patience=9)]


class Halved(Callback):
    """Evaluates with half of the head's bias, and keeps nothing that says so."""

    def on_evaluate_begin(self, run: Any) -> None:
        with torch.no_grad():
            run.model[6].bias.mul_(0.5)

    def on_evaluate_end(self, run: Any) -> None:
        with torch.no_grad():
            run.model[6].bias.mul_(2)


@pytest.mark.parametrize(
    ("step", "call", "reached"),
    [
        ("training_step", 1, "after epoch 1, update 1"),
        ("training_step", 3, "after epoch 1, update 3"),
        ("training_step", 8, "after epoch 3, update 2"),
        ("validation_step", 1, "after epoch 1, update 3"),
        ("validation_step", 8, "after epoch 3, update 3"),
    ],
)
@pytest.mark.parametrize("callbacks", [averages, lambda: [SWA(0.0)], lambda: [Halved()]], ids=["EMA", "SWA", "custom"])
def test_trap_38_a_run_that_a_signal_ended_goes_on_as_if_it_had_not(
    step: str, call: int, reached: str, callbacks: Any, tmp_path, same, timeless, caplog
) -> None:
    caplog.set_level("INFO", "finetune")
    whole = tuned(tmp_path / "whole", callbacks=callbacks())

    with pytest.raises(SystemExit) as ended:
        tuned(tmp_path / "ended", step, call, callbacks())
    resumed = Signalled(small_mlp(), device="cpu")
    fit(resumed, tmp_path / "ended", callbacks(), resume_from="auto")

    assert ended.value.code == 143
    if not (callbacks()[0].__class__ is Halved and step == "validation_step"):
        assert f"Stopped by SIGTERM {reached}; saved to {tmp_path / 'ended' / 'last.safetensors'}." in caplog.messages
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert timeless(resumed.history) == timeless(whole.history)


def test_in_a_notebook_the_tuner_goes_on_after_ctrl_c(tmp_path, same, timeless) -> None:
    whole = tuned(tmp_path / "whole")
    tuner = Signalled(small_mlp(), device="cpu")
    tuner.call, tuner.number = 5, signal.SIGINT

    with pytest.raises(KeyboardInterrupt):
        fit(tuner, tmp_path / "ended")
    assert tuner.predict(gaussian_blobs()[0]).isfinite().all()
    fit(tuner, tmp_path / "ended", resume_from="auto")

    assert same(tuner.model.state_dict(), whole.model.state_dict())
    assert timeless(tuner.history) == timeless(whole.history)


def test_without_a_folder_the_line_says_that_nothing_is_saved(caplog) -> None:
    caplog.set_level("INFO", "finetune")
    with pytest.raises(SystemExit):
        tuned(None, call=4)

    assert caplog.messages[-1] == "Stopped by SIGTERM after epoch 2, update 1; not saved."


def test_a_checkpoint_that_cannot_be_written_does_not_keep_the_process(tmp_path, monkeypatch, caplog) -> None:
    class Full(Callback):
        def on_step_end(self, run: Any) -> None:
            monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left")))

    with pytest.raises(SystemExit):
        tuned(tmp_path, call=2, callbacks=Full())

    assert "The run could not be saved" in caplog.text


def test_the_last_checkpoint_is_not_written_twice(tmp_path) -> None:
    with pytest.raises(SystemExit):
        tuned(tmp_path, callbacks=End())
    # the one before is of the epoch before, and not a copy of the same
    assert (tmp_path / "last.safetensors").read_bytes() != (tmp_path / "previous.safetensors").read_bytes()


class End(Callback):
    def on_epoch_end(self, run: Any) -> None:
        if run.epoch == 2:
            signal.raise_signal(signal.SIGTERM)


def test_the_hooks_of_an_ended_run(watch) -> None:
    seen = watch()
    with pytest.raises(SystemExit):
        tuned(None, call=2, callbacks=seen)

    assert seen.hooks[-3:] == ["on_step_end", "on_interrupt", "on_fit_end"]


def test_a_signal_in_the_last_hook_ends_the_process_after_the_work(tmp_path) -> None:
    class Last(Callback):
        def on_fit_end(self, run: Any) -> None:
            signal.raise_signal(signal.SIGINT)

    tuner = Signalled(small_mlp(), device="cpu")
    with pytest.raises(KeyboardInterrupt):
        fit(tuner, tmp_path, Last())
    assert len(tuner.history) == 4


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("read", [1, 20, 30, 60])
@pytest.mark.parametrize("own_loader", [False, True])
def test_a_signal_ends_the_audit_and_the_loading_of_data_at_once(number, read: int, own_loader: bool, tmp_path) -> None:
    samples, tuner = Samples(read, number), FineTuner(small_mlp(), device="cpu")
    data = DataLoader(samples, batch_size=8) if own_loader else samples
    with pytest.raises(STOPS[number]):
        tuner.fit(data, epochs=4, batch_size=8, checkpoint_dir=tmp_path, progress=False)
    assert (samples.left, samples.reads_after) == (0, 0)

    samples.armed = False
    tuner.fit(data, epochs=4, batch_size=8, checkpoint_dir=tmp_path, resume_from="auto", progress=False)
    assert len(tuner.history) == 4


def verbs() -> dict[str, Callable[[Any], Any]]:
    data = gaussian_blobs(40)
    return {
        "evaluate": lambda tuner: tuner.evaluate(data, batch_size=4),
        "predict": lambda tuner: tuner.predict(data[0], batch_size=4),
        "find_lr": lambda tuner: tuner.find_lr(data, batch_size=4),
        "advise": lambda tuner: tuner.advise(data, batch_size=4),
    }


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize(
    ("verb", "step"),
    [
        ("evaluate", "validation_step"),
        ("predict", "predict_step"),
        ("find_lr", "training_step"),
        ("advise", "predict_step"),
    ],
)  # fmt: skip
def test_a_signal_ends_every_verb_and_leaves_the_model(number, verb: str, step: str, same, state_of) -> None:
    tuner = Signalled(small_mlp().eval(), device="cpu")
    tuner.step, tuner.call, tuner.number = step, 3, number
    before = state_of(tuner.model)

    with pytest.raises(STOPS[number]):
        verbs()[verb](tuner)

    assert tuner.calls in (0, 3)  # the batch is finished, and no other begun
    assert same(tuner.model.state_dict(), before)
    assert not any(module.training for module in tuner.model.modules())
    tuner.call = 0
    verbs()[verb](tuner)


def test_a_signal_ends_the_computation_of_the_frozen_prefix(tmp_path, same) -> None:
    calls: list[int] = []
    ends_in = [0]

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            if len(calls) == ends_in[0]:
                signal.raise_signal(signal.SIGTERM)
            return x

    def run(call: int, **options: Any) -> FineTuner:
        tuner = FineTuner(nn.Sequential(Watched(), *small_mlp()), device="cpu").freeze().unfreeze("7")
        calls.clear()
        ends_in[0] = call
        data = gaussian_blobs(64)
        tuner.fit(data, data, epochs=2, batch_size=8, cache="memory", progress=False, **options)
        return tuner

    whole = run(0)
    for call in range(2, len(calls), 3):
        with pytest.raises(SystemExit):
            run(call, checkpoint_dir=tmp_path / str(call))
        resumed = run(0, checkpoint_dir=tmp_path / str(call), resume_from="auto")
        assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_compare_keeps_the_finished_runs(tmp_path) -> None:
    sent: list[int] = []

    def finished() -> int:
        return len(list((tmp_path / "runs").glob("*.json")))

    class Ends(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if finished() == 1 and not sent:
                sent.append(1)
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    def run() -> Any:
        return compare(
            lambda: Ends(*small_mlp()), gaussian_blobs(30), strategies=["full_finetune"], seeds=3, budget=2,
            batch_size=8, folder=tmp_path, progress=False,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run()
    assert finished() == 1
    kept = next((tmp_path / "runs").glob("*.json")).stat().st_mtime_ns
    assert len(run().rows) == 3
    assert kept in [path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")]


def test_advise_on_several_models_ends() -> None:
    built = []

    def model() -> nn.Module:
        built.append(small_mlp())
        signal.raise_signal(signal.SIGTERM)
        return built[-1]

    with pytest.raises(SystemExit):
        advise({"a": model, "b": model}, gaussian_blobs(40))
    assert len(built) == 1


@pytest.mark.parametrize("first", STOPS)
@pytest.mark.parametrize("second", STOPS)
def test_a_second_signal_ends_at_once_and_saves_nothing(first, second, tmp_path) -> None:
    reached = []

    class Twice(FineTuner):
        def training_step(self, batch: Any) -> Any:
            signal.raise_signal(first)
            reached.append("after the first")
            signal.raise_signal(second)
            reached.append("after the second")
            return super().training_step(batch)

    with pytest.raises(STOPS[second]):
        Twice(small_mlp(), device="cpu").fit(gaussian_blobs(), checkpoint_dir=tmp_path, progress=False)
    assert reached == ["after the first"]
    assert not (tmp_path / "last.safetensors").exists()


def test_the_users_own_handler_decides(tmp_path) -> None:
    called = []

    def note(number: int, frame: Any) -> None:
        called.append(number)

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(7)

    before = signal.signal(signal.SIGTERM, note)
    try:
        assert len(tuned(tmp_path / "noted", call=3).history) == 4  # it goes on
        assert called == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, leave)
        with pytest.raises(SystemExit) as ended:
            tuned(tmp_path / "left", call=3)
        assert ended.value.code == 7
        assert (tmp_path / "left" / "last.safetensors").exists()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert len(tuned(tmp_path / "ignored", call=3).history) == 4
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_request_outlives_code_that_swallows_exceptions() -> None:
    class Closed:
        def __del__(self) -> None:  # as a pool of workers that closes
            signal.raise_signal(signal.SIGINT)

    done = []

    @signals_heeded()
    def work() -> None:
        for number in polled(range(5)):
            done.append(number)
            if number == 1:
                Closed()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [0, 1]


def test_an_error_of_loading_gives_way_to_the_stop() -> None:
    def items() -> Iterator[int]:
        with unbroken():  # as if the signal came just before the error
            signal.raise_signal(signal.SIGTERM)
        yield from range(0)
        raise DataError("A worker has ended.")

    with pytest.raises(SystemExit):
        signals_heeded()(list)(polled(items()))


def test_a_part_that_is_finished_first_and_one_that_ends_at_once() -> None:
    reached = []

    @signals_heeded()
    def finished_first() -> None:
        with unbroken(), interruptible():
            signal.raise_signal(signal.SIGTERM)
            reached.append("finished")
        poll()
        reached.append("too far")

    @signals_heeded()
    @interruptible()
    def at_once() -> None:
        signal.raise_signal(signal.SIGTERM)
        reached.append("too far")

    for work in (finished_first, at_once):
        with pytest.raises(SystemExit):
            work()
    assert reached == ["finished"]


def test_other_threads_neither_heed_nor_raise() -> None:
    ended = threading.Event()

    def work() -> None:
        FineTuner(small_mlp(), device="cpu").fit(gaussian_blobs(), progress=False)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended.is_set()


# ---------------------------------------------------------------- processes

SCRIPT = """
import os, signal, sys, time
import tests.helpers.lean
import torch
from torch.utils.data import DataLoader, Dataset
from finetune import FineTuner
from finetune.callbacks import Callback

class Slow(Dataset):
    def __len__(self): return 32
    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.full((4,), float(index)), index % 2

class Interrupt(Callback):
    def on_step_end(self, run): os.killpg(0, signal.SIGINT)  # the workers too, as from a terminal

class Say(Callback):
    def on_step_end(self, run): print("step", flush=True)

def fit(callback, persistent, folder):
    data = DataLoader(Slow(), batch_size=4, num_workers=2, persistent_workers=persistent)
    tuner.fit(data, epochs=200, callbacks=[callback], checkpoint_dir=folder, progress=False)

torch.manual_seed(0)
tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
try:
    fit(Interrupt(), False, sys.argv[1])
except KeyboardInterrupt:
    fit(Say(), True, sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_trap_38_workers_neither_end_first_nor_hang(tmp_path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    ended = signalled([script, tmp_path / "first", tmp_path / "second"], "step", signal.SIGTERM, delay=0.1)

    assert ended.code == 143, ended.output
    assert "DataLoader worker" not in ended.output
    for name in ("first", "second"):
        assert (tmp_path / name / "last.safetensors").exists()
    assert not ended.left
    assert ended.seconds < 15
