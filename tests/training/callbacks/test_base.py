"""Custom callbacks, and callbacks together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from finetune import FineTuner, Phase, callbacks
from finetune.callbacks import EMA, L2SP, Callback, ClassWeights, CSVLogger, EarlyStopping, Mixup
from finetune.errors import ArgumentError
from tests.helpers.image_files import labeled_images
from tests.helpers.models import plain_cnn
from tests.helpers.tuners import BatchRecorder


def test_a_custom_callback_sees_the_run_and_may_end_a_phase(net, blobs) -> None:
    class Custom(Callback):
        best = 0.0
        notes: list[str]

        def on_fit_begin(self, run: Any) -> None:
            self.notes = [type(run.model).__name__, str(len(run.phases))]

        def on_epoch_end(self, run: Any) -> None:
            self.best = max(self.best, run.row["accuracy"])
            assert run.history[-1] is run.row
            run.end_phase = True

    custom = Custom()
    history = FineTuner(net(), device="cpu").fit(
        blobs(), strategy=[Phase("6", 3, name="a"), Phase("*", 3, name="b")], callbacks=[custom]
    )

    assert custom.notes == ["Sequential", "2"]
    assert [row["phase"] for row in history] == ["a", "b"]
    assert custom.best == max(row["accuracy"] for row in history)


def test_a_custom_callback_may_change_the_batch(state_of) -> None:
    class Custom(Callback):
        def change_batch(self, run: Any, batch: Any) -> Any:
            return v2.MixUp(num_classes=3)(*batch)

    tuner = BatchRecorder(plain_cnn(), device="cpu")
    tuner.fit(labeled_images(), batch_size=12, callbacks=[Custom()])

    assert tuner.batches[0][1].shape == (12, 3)


def test_two_callbacks_of_one_class_keep_their_own_state(net, blobs, tmp_path) -> None:
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

    FineTuner(net(), device="cpu").fit(blobs(), epochs=2, callbacks=again, resume_from=tmp_path, resume_changed=True)

    assert [counter.count for counter in again] == [12, 22, 8]


def test_callbacks_combine() -> None:
    tuner = FineTuner(plain_cnn(), device="cpu", loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    added = [Mixup(0.4, 1.0), ClassWeights(), L2SP(), EMA(), EarlyStopping(patience=2)]

    history = tuner.fit(labeled_images(), labeled_images(), strategy="lp_ft", epochs=4, batch_size=4, callbacks=added)

    assert len(history) == 4
    assert all(torch.isfinite(value).all() for value in tuner.model.state_dict().values())
    assert set(callbacks.__all__) >= {"EMA", "L2SP", "SWA", "ClassWeights", "Mixup"}


def test_a_callback_may_change_the_norm_that_gradients_are_clipped_to(net, blobs, state_of, same) -> None:
    class Clip(Callback):
        def on_fit_begin(self, run: Any) -> None:
            assert (run.max_grad_norm, run.accumulation, run.seed, run.backend) == (None, 2, 3, None)
            run.max_grad_norm = 0.01

    def fitted(norm: float | None, *added: Callback) -> Any:
        tuner = FineTuner(
            net(), device="cpu", optimizer="sgd", max_grad_norm=norm, gradient_accumulation_steps=2, seed=3
        )
        tuner.fit(blobs(), callbacks=added)
        return state_of(tuner.model)

    assert same(fitted(None, Clip()), fitted(0.01))
    assert not same(fitted(None), fitted(0.01))


@pytest.mark.parametrize("given", [EMA(), [EMA()], (EMA(),), None, [], iter([EMA()])])
def test_one_callback_is_a_list_of_one(net, blobs, given: Any) -> None:
    assert len(FineTuner(net(), device="cpu").fit(blobs(), callbacks=given)) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (EMA, r"Pass EMA\(\), an instance"),
        ([EarlyStopping], r"Pass EarlyStopping\(\), an instance"),
        ([EMA(), EMA], r"Pass EMA\(\), an instance"),
        ("ema", "but got 'ema'"),
        ([lambda run: None], "pass an instance"),
        (3, "but got 3"),
        ([None], "but got None"),
    ],
)
def test_what_is_no_callback_is_an_error_before_training(net, blobs, state_of, same, given: Any, message: str) -> None:
    tuner = FineTuner(net(), device="cpu")
    before = state_of(tuner.model)

    with pytest.raises(ArgumentError, match=message):
        tuner.fit(blobs(), blobs(9), callbacks=given)

    assert same(before, state_of(tuner.model))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("on_epoch_ends", "on_epoch_end"), ("on_train_begin", "on_fit_begin"), ("on_epoch_finish", ""),
        ("on_batch_end", ""), ("on_validation_end", ""), ("on_x", ""),
        ("weight_batch", "weigh_batch"), ("change_batches", "change_batch"), ("load_states_dict", "load_state_dict"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["class", "base", "instance"])
def test_a_method_that_is_nearly_a_hook_is_an_error(net, blobs, name: str, meant: str, where: str) -> None:
    base = type("Base", (Callback,), {name: lambda *given: None} if where == "base" else {})
    given = type("Given", (base,), {name: lambda *given: None} if where == "class" else {})()
    if where == "instance":
        setattr(given, name, lambda *given: None)
    with pytest.raises(
        ArgumentError, match=rf"Given has a method '{name}', which is no hook.*{meant}.*hooks are on_fit"
    ):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[EMA(), given])


def test_other_names_and_the_hooks_of_other_trainers_are_left_alone(net, blobs) -> None:
    class Other:
        def on_train_begin(self, logs: Any = None) -> None: ...

    class Own(Other, Callback):
        on_time = True

        def change_batches(self) -> None: ...

        def change_batch(self, run: Any, batch: Any) -> Any:
            return batch

        def report(self) -> None: ...

        def on_epoch_end(self, *args: Any, **options: Any) -> None: ...

        @staticmethod
        def on_fit_end(run: Any, extra: int = 0) -> None: ...

        @classmethod
        def on_fit_begin(cls, run: Any) -> None: ...

    FineTuner(net(), device="cpu").fit(blobs(), callbacks=Own())


def waiting(self: Any, run: Any) -> Any:
    yield


async def later(self: Any, run: Any) -> None: ...


@pytest.mark.parametrize(
    ("name", "hook", "expected"),
    [
        ("on_epoch_end", lambda self: None, r"\(\) cannot.*def on_epoch_end\(self, run\)"),
        ("on_epoch_end", lambda self, epoch, logs: None, r"\(epoch, logs\) cannot"),
        ("on_step_end", lambda self, *, run: None, r"\(\*, run\) cannot"),
        ("change_batch", lambda self, batch: batch, r"def change_batch\(self, run, batch\)"),
        ("state_dict", lambda self, run: {}, r"def state_dict\(self\)"),
        ("load_state_dict", lambda self: None, r"def load_state_dict\(self, state\)"),
        ("on_fit_begin", waiting, "with yield or async"),
        ("on_fit_end", later, "with yield or async"),
        ("on_epoch_begin", None, " = None cannot"),
    ],
)
def test_a_hook_of_other_arguments_is_an_error_before_training(net, blobs, name: str, hook: Any, expected: str) -> None:
    given = type("Given", (Callback,), {name: hook})()
    with pytest.raises(ArgumentError, match=rf"Given\.{name}.*{expected}"):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=given)


@pytest.mark.parametrize("value", ["x", None, [1, 2], {"a": 1.0}, 0.5, True])
@pytest.mark.parametrize("hook", ["on_evaluate_begin", "on_evaluate_end", "on_epoch_end"])
def test_a_callback_adds_to_the_row(net, blobs, tmp_path, hook: str, value: Any) -> None:
    class Note(Callback):
        pass

    setattr(Note, hook, lambda self, run: run.row.update(note=value))
    tuner = FineTuner(net(), device="cpu")

    history = tuner.fit(
        blobs(), blobs(9), callbacks=[Note(), CSVLogger(tmp_path / "log.csv")], checkpoint_dir=tmp_path / "run"
    )

    assert history[0]["note"] == value
    assert "note" in (tmp_path / "log.csv").read_text()
    loaded = FineTuner.load_checkpoint(tmp_path / "run" / "last.safetensors", net())
    assert loaded.history[0]["note"] == value
