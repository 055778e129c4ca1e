"""A run that is interrupted and resumed equals an uninterrupted run bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from finetune import CheckpointError, FineTuner, Phase
from finetune.callbacks import Callback, EarlyStopping, ModelCheckpoint
from finetune.errors import ArgumentError
from finetune.training.optim.schedules import get_schedule
from tests.helpers.datasets import Flow


class SaveEach(Callback):
    """Write a checkpoint after every update and every epoch."""

    saves_run = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[Path] = []

    def save(self, run: Any) -> None:
        self.saved.append(self.folder / f"{len(self.saved):03d}.safetensors")
        run.save(self.saved[-1])

    on_step_end = on_epoch_end = save


def tuner(model: torch.nn.Module, **settings: Any) -> FineTuner:
    metrics = ["accuracy", "f1", "auroc"]  # auroc keeps every score in a list state
    return FineTuner(model, device="cpu", metrics=metrics, gradient_accumulation_steps=2, **settings)


def assert_each_resumes(
    make: Any, fit: Any, same: Any, state_of: Any, timeless: Any, watch: Any, tmp_path: Path, saved: int
) -> None:
    """Compare an uninterrupted run with a new run resumed from each of its checkpoints."""
    writer, seen, whole = SaveEach(tmp_path), watch(), make()
    fit(whole, [EarlyStopping(patience=1), seen, writer], None)
    assert len(writer.saved) == saved

    for path in writer.saved:
        other, resumed = watch(), make()
        fit(resumed, [EarlyStopping(patience=1), other], path)

        assert same(state_of(whole.model), state_of(resumed.model)), path
        assert same(seen.moments, other.moments), path
        assert timeless(resumed.history) == timeless(whole.history), path
        assert [p.requires_grad for p in resumed.model.parameters()] == [
            p.requires_grad for p in whole.model.parameters()
        ]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", torch.optim.Adam])
def test_trap_15_every_interruption_of_two_phases_resumes_bit_for_bit(
    net, blobs, same, state_of, timeless, watch, tmp_path, optimizer: Any
) -> None:
    phases = [Phase("6", 3, 0.05, "one_cycle", "head"), Phase(["4", "6", "1"], 2, (1e-3, 1e-2), name="more")]
    train, val = blobs(21), blobs(9, seed=4)

    def fit(one: FineTuner, callbacks: list[Callback], resume_from: Path | None) -> None:
        one.fit(train, val, strategy=phases, batch_size=4, callbacks=callbacks, resume_from=resume_from)

    # 21 samples: five batches of 4 and one of 1, three updates per epoch
    assert_each_resumes(
        lambda: tuner(net(), optimizer=optimizer, max_grad_norm=1.0), fit, same, state_of, timeless, watch, tmp_path, 20
    )


def test_trap_15_a_manual_freeze_state_is_resumed(net, blobs, same, state_of, tmp_path) -> None:
    whole, first, resumed = tuner(net()), tuner(net()), tuner(net())
    for one in (whole, first):
        one.freeze(["0", "1"])
    whole.fit(blobs(21), epochs=2, batch_size=4, schedule="constant")
    first.fit(blobs(21), epochs=1, batch_size=4, schedule=lambda p: min(1.0, p / 0.1), checkpoint_dir=tmp_path)

    resumed.fit(blobs(21), epochs=2, batch_size=4, schedule="constant", resume_from=tmp_path, resume_changed=True)

    before = state_of(net())
    assert {name for name, parameter in resumed.model.named_parameters() if not parameter.requires_grad} == {
        "0.weight", "0.bias", "1.weight", "1.bias",
    }  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in state_of(resumed.model).items() if name < "2")
    assert same(state_of(whole.model), state_of(resumed.model))


def test_an_early_stop_resumes_bit_for_bit(net, blobs, same, state_of, timeless, watch, tmp_path) -> None:
    train, val = blobs(21), blobs(9, seed=4)

    def fit(one: FineTuner, callbacks: list[Callback], resume_from: Path | None) -> None:
        phases = [Phase("*", 9, 0.5, "constant", "stops"), Phase("6", 1, 1e-3, name="rest")]
        one.fit(train, val, strategy=phases, batch_size=7, callbacks=callbacks, resume_from=resume_from)

    whole = tuner(net())
    fit(whole, [EarlyStopping(patience=1)], None)
    assert 2 <= len(whole.history) < 10  # it stopped early

    assert_each_resumes(
        lambda: tuner(net()), fit, same, state_of, timeless, watch, tmp_path, saved=3 * len(whole.history)
    )


def test_a_random_validation_step_resumes_bit_for_bit(net, blobs, same, state_of, timeless, watch, tmp_path) -> None:
    class Noisy(FineTuner):
        def validation_step(self, batch: Any) -> Any:
            output = super().validation_step(batch)
            return output._replace(loss=torch.nn.functional.dropout(output.outputs, 0.5).square().mean())

    def fit(one: FineTuner, callbacks: list[Callback], resume_from: Path | None) -> None:
        torch.seed()  # the global random state must not matter
        one.fit(blobs(12), blobs(9), epochs=2, batch_size=4, callbacks=callbacks, resume_from=resume_from)

    assert_each_resumes(lambda: Noisy(net(), device="cpu"), fit, same, state_of, timeless, watch, tmp_path, saved=8)


def test_a_run_interrupted_by_an_error_resumes_from_its_folder(net, blobs, same, state_of, timeless, tmp_path) -> None:
    class Cut(Callback):
        only_watches = True

        def __init__(self, at: int) -> None:
            self.left = at

        def on_step_end(self, run: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    arguments = {"epochs": 3, "batch_size": 4, "lr": 1e-2}
    whole = tuner(net())
    whole.fit(blobs(21), blobs(9), **arguments)

    for at in range(2, 10):
        broken, resumed = tuner(net()), tuner(net())
        folder = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            broken.fit(blobs(21), blobs(9), callbacks=[ModelCheckpoint(folder, every_steps=1), Cut(at)], **arguments)
        resumed.fit(blobs(21), blobs(9), resume_from=folder, **arguments)

        assert same(state_of(whole.model), state_of(resumed.model))
        assert timeless(whole.history) == timeless(resumed.history)


def test_fp16_resumes_with_the_loss_scale(net, blobs, same, state_of, timeless, watch, tmp_path) -> None:
    class Huge(FineTuner):
        def training_step(self, batch: Any) -> Any:
            output = super().training_step(batch)
            overflows = len(self.history) == 0 and len(batch[1]) == 3  # the last batch of the first epoch
            return output._replace(loss=output.loss * (1e30 if overflows else 1))

    def fit(one: FineTuner, callbacks: list[Callback], resume_from: Path | None) -> None:
        one.fit(blobs(19), blobs(9), epochs=2, batch_size=4, callbacks=callbacks, resume_from=resume_from)

    assert_each_resumes(
        lambda: Huge(net(), device="cpu", precision="fp16"), fit, same, state_of, timeless, watch, tmp_path, 12
    )


@pytest.mark.parametrize("form", ["stream", "loader"])
def test_streams_and_loaders_resume_bit_for_bit(
    net, blobs, same, state_of, timeless, watch, tmp_path, form: str
) -> None:
    X, y = blobs(21)

    def fit(one: FineTuner, callbacks: list[Callback], resume_from: Path | None) -> None:
        loader = DataLoader(TensorDataset(X, y), batch_size=4, shuffle=True)
        data = loader if form == "loader" else Flow(list(zip(X, y, strict=True)))
        one.fit(data, blobs(9), epochs=3, batch_size=4, lr=1e-2, callbacks=callbacks, resume_from=resume_from)

    assert_each_resumes(
        lambda: FineTuner(net(), device="cpu", loss="cross_entropy", gradient_accumulation_steps=2),
        fit, same, state_of, timeless, watch, tmp_path, 12,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "optimizer"), [("fp32", torch.optim.Adam), ("bf16", "sgd"), ("fp16", "adamw")], ids=str
)
def test_on_a_gpu_a_run_resumes(
    net, blobs, same, state_of, timeless, watch, tmp_path, accelerator, precision, optimizer
) -> None:
    def fit(one: FineTuner, callbacks: list[Callback], resume_from: Path | None) -> None:
        one.fit(blobs(21), blobs(9), epochs=2, batch_size=4, callbacks=callbacks, resume_from=resume_from)

    assert_each_resumes(
        lambda: FineTuner(net(), device=accelerator, precision=precision, optimizer=optimizer),
        fit, same, state_of, timeless, watch, tmp_path, 14,
    )  # fmt: skip


def test_resuming_with_another_plan_is_an_error(net, blobs, tmp_path) -> None:
    phases = [Phase("6", 1, name="head"), Phase("*", 1, name="all")]
    writer = SaveEach(tmp_path)
    FineTuner(net(), device="cpu").fit(blobs(9), strategy=phases, batch_size=4, callbacks=[writer])
    in_epoch, in_last_phase = writer.saved[0], writer.saved[-2]

    def resume(path: Path, phases: list[Phase], batch_size: int) -> None:
        FineTuner(net(), device="cpu").fit(blobs(9), strategy=phases, batch_size=batch_size, resume_from=path)

    with pytest.raises(CheckpointError, match="batch_size 4"):
        resume(in_epoch, phases, 3)
    with pytest.raises(CheckpointError, match="had phases"):
        resume(in_last_phase, [Phase("*", 2, name="all")], 4)
    resume(in_epoch, [*phases, Phase("*", 1, name="more")], 4)


# ---------------------------------------------------------------------- progress


class Cut(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_begin(self, run: Any) -> None:
        if run.epoch == self.epoch:
            raise KeyboardInterrupt


def resumed_rates(tmp_path: Path, net: Any, watch: Any, first: dict[str, Any], then: dict[str, Any]) -> list[float]:
    """Return the rate of every update after a run of 8 epochs was cut in half and resumed with other arguments."""

    def fit(arguments: dict[str, Any], *callbacks: Any, **more: Any) -> None:
        given = {**arguments, **more}
        tuner = FineTuner(net(), device="cpu", gradient_accumulation_steps=given.pop("accumulation", 1))
        tuner.fit(given.pop("data"), epochs=8, lr=1.0, callbacks=callbacks, checkpoint_dir=tmp_path, **given)

    seen = watch()
    with pytest.raises(KeyboardInterrupt):
        fit(first, Cut(4))
    fit(then, seen, resume_from="auto", resume_changed=True)
    return [next(iter(rates.values())) for rates in seen.rates]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "one_cycle"])
@pytest.mark.parametrize(
    ("first", "then", "updates"),
    [
        ({"batch_size": 4}, {"batch_size": 16}, 2),
        ({"batch_size": 8}, {"batch_size": 24}, 1),
        ({"batch_size": 24}, {"batch_size": 3}, 8),
        ({"batch_size": 4, "accumulation": 1}, {"batch_size": 4, "accumulation": 3}, 2),
        ({"batch_size": 4, "accumulation": 6}, {"batch_size": 4}, 6),
        ({"batch_size": 4}, {"batch_size": 4, "samples": 60}, 15),
        ({"batch_size": 4, "samples": 60}, {"batch_size": 4}, 6),
        ({"batch_size": 4, "stream": True}, {"batch_size": 12, "stream": True}, 2),
        ({"batch_size": 4}, {"batch_size": 4}, 6),
    ],
)
def test_the_schedule_goes_on_where_it_was_whatever_the_number_of_updates(
    net, blobs, watch, tmp_path, first: dict[str, Any], then: dict[str, Any], updates: int, schedule: str
) -> None:
    def arguments(given: dict[str, Any]) -> dict[str, Any]:
        X, y = blobs(given.get("samples", 24))
        stream = Flow([(X[i], int(y[i])) for i in range(len(X))])
        rest = {name: value for name, value in given.items() if name not in ("samples", "stream")}
        return {**rest, "schedule": schedule, "data": stream if given.get("stream") else (X, y)}

    rates = resumed_rates(tmp_path, net, watch, arguments(first), arguments(then))

    factor = get_schedule(schedule)
    expected = [factor((4 + epoch + (k + 0.5) / updates) / 8) for epoch in range(4) for k in range(updates)]
    assert rates == pytest.approx([rates[0] / expected[0] * value for value in expected])


def test_an_epoch_longer_than_announced_never_trains_at_a_rate_of_zero(net, blobs, watch) -> None:
    X, y = blobs(24)

    class Short(Flow):
        def __len__(self) -> int:
            return 8

    seen = watch()
    FineTuner(net(), device="cpu").fit(
        Short([(X[i], int(y[i])) for i in range(24)]), epochs=3, batch_size=4, callbacks=[seen]
    )

    assert all(rate > 0 for rates in seen.rates for rate in rates.values())


# ---------------------------------------------------------------------- the freeze state within a phase


class Refreeze(Callback):
    """Change the freeze state in a hook of the first epoch."""

    def __init__(self, hook: str, verb: str) -> None:
        self.hook, self.verb = hook, verb

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") and name == object.__getattribute__(self, "hook"):
            return lambda run: getattr(run.tuner, self.verb)("0") if run.epoch <= 1 else None
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    "hook", ["on_phase_begin", "on_epoch_begin", "on_step_end", "on_evaluate_begin", "on_epoch_end"]
)
@pytest.mark.parametrize(("verb", "became"), [("unfreeze", "trainable"), ("freeze", "frozen")])
def test_trap_07_a_callback_cannot_change_what_trains(net, blobs, hook: str, verb: str, became: str) -> None:
    tuner = FineTuner(net(), device="cpu")
    if verb == "unfreeze":
        tuner.freeze("0")
    with pytest.raises(ArgumentError, match=rf"0\.bias, 0\.weight became {became} within phase 'fit'"):
        tuner.fit(blobs(), val=blobs(), epochs=3, callbacks=[Refreeze(hook, verb)])


@pytest.mark.parametrize("hook", ["on_phase_begin", "on_epoch_begin", "on_step_end", "on_epoch_end"])
@pytest.mark.parametrize("change", ["a layer", "the model"])
def test_a_callback_cannot_replace_what_trains(net, blobs, hook: str, change: str) -> None:
    class Swap(Callback):
        pass

    def swap(self: Any, run: Any) -> None:
        if change == "the model":
            run.tuner.model = net()
        elif run.epoch < 2:
            run.model[6] = torch.nn.Linear(6, 3)

    setattr(Swap, hook, swap)
    which = r"6\.weight, 6\.bias" if change == "a layer" else r"0\.weight, .* more"
    with pytest.raises(ArgumentError, match=f"{which} became another parameter within phase 'fit'"):
        FineTuner(net(), device="cpu").fit(blobs(), epochs=3, callbacks=Swap())


def test_a_step_may_freeze_for_a_moment(net, blobs) -> None:
    class Adversarial(FineTuner):
        def training_step(self, batch: Any) -> Any:
            self.freeze("0")
            super().training_step(batch)
            self.unfreeze("0")
            return super().training_step(batch)

    assert len(Adversarial(net(), device="cpu").fit(blobs(), epochs=2)) == 2
