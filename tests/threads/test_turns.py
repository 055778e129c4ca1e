"""Threads at one model, verbs within verbs, and copies: compared with one thread alone, bit for bit."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import FineTuner
from finetune.callbacks import Callback
from finetune.errors import ArgumentError
from finetune.threads.turns import Turns

X = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
y = torch.arange(24) % 3


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(128, 3)
    return nn.Sequential(*layers)


def tuner(seed: int = 0) -> FineTuner:
    return FineTuner(convolutional(), device="cpu", seed=seed)


def fitted(one: FineTuner, *callbacks: Callback, **arguments: Any) -> list[Tensor]:
    one.fit((X, y), (X[:9], y[:9]), epochs=2, batch_size=8, progress=False, callbacks=callbacks, **arguments)
    return [value.clone() for value in one.model.state_dict().values()]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(map(torch.equal, left, right))


class Within(Callback):
    """Call a function of the tuner at the end of each epoch."""

    def __init__(self, action: Callable[[Any], Any]) -> None:
        self.action = action

    def on_epoch_end(self, run: Any) -> None:
        self.action(run.tuner)


def test_predictions_from_eight_threads_are_those_of_one() -> None:
    one = tuner()
    one.model.train()
    outputs, values = one.predict(X), one.evaluate((X, y))
    before = copy.deepcopy(one.model.state_dict())

    def ask(number: int) -> bool:
        return one.evaluate((X, y)) == values if number % 4 == 0 else torch.equal(one.predict(X), outputs)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))
    assert equal([*one.model.state_dict().values()], [*before.values()])
    assert all(module.training for module in one.model.modules())


def test_two_tuners_of_one_model_take_turns() -> None:
    model = convolutional()
    two = FineTuner(model, device="cpu"), FineTuner(model, device="cpu")
    expected = two[0].predict(X)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(outputs, expected) for outputs in pool.map(lambda i: two[i % 2].predict(X), range(16)))


def test_tuners_trained_in_threads_end_as_if_trained_alone() -> None:
    alone = [fitted(tuner(seed)) for seed in range(3)]
    at_start, others = torch.get_rng_state(), [tuner(seed) for seed in range(3)]
    torch.set_rng_state(at_start)
    with ThreadPoolExecutor(3) as pool:
        assert all(map(equal, pool.map(fitted, others), alone))
    assert torch.equal(torch.get_rng_state(), at_start)


class Sampled(nn.Module):
    """Draws random numbers in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(nn.functional.dropout(x, training=True))


def test_predictions_that_draw_leave_a_run_in_another_thread_alone() -> None:
    drawing, stop = FineTuner(Sampled(), device="cpu"), threading.Event()
    alone, one = fitted(tuner()), tuner()

    def draw() -> None:
        while not stop.is_set():
            drawing.predict(X[:, 0, 0, :4])

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(draw)
        try:
            assert equal(fitted(one), alone)
        finally:
            stop.set()
        done.result()


def test_the_draws_of_a_validation_do_not_depend_on_other_threads() -> None:
    data = X[:, 0, 0, :4], y

    def losses(one: FineTuner) -> list[float]:
        history = one.fit(data, data, epochs=2, batch_size=4, progress=False)
        return [row["val_loss"] for row in history]

    drawing = FineTuner(Sampled(), device="cpu")
    others = [FineTuner(copy.deepcopy(drawing.model), device="cpu") for _ in range(2)]
    expected = losses(drawing)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(losses, others)) == [expected] * 2


VERBS: dict[str, Callable[[FineTuner], Any]] = {
    "predict": lambda one: one.predict(X),
    "evaluate": lambda one: one.evaluate((X, y)),
    "fit": lambda one: one.fit((X, y)),
    "find_lr": lambda one: one.find_lr((X, y)),
    "advise": lambda one: one.advise((X, y)),
    "replace_head": lambda one: one.replace_head(3),
    "summary": lambda one: one.summary(),
    "freeze": lambda one: one.freeze("0"),
    "unfreeze": lambda one: one.unfreeze("0"),
    "copy": copy.deepcopy,
}


@pytest.mark.parametrize("verb", VERBS)
def test_other_threads_are_refused_while_fit_runs(verb: str) -> None:
    def refused(one: Any) -> None:
        with ThreadPoolExecutor(1) as pool, pytest.raises(ArgumentError, match=f"{verb} was called while fit trains"):
            pool.submit(VERBS[verb], one).result(20)

    assert equal(fitted(tuner(), Within(refused)), fitted(tuner()))


@pytest.mark.parametrize("verb", ["fit", "find_lr", "advise", "replace_head"])
def test_verbs_that_would_break_a_run_are_refused_within_it(verb: str) -> None:
    def refused(one: Any) -> None:
        with pytest.raises(ArgumentError, match=f"{verb} was called within fit"):
            VERBS[verb](one)

    assert equal(fitted(tuner(), Within(refused)), fitted(tuner()))


SETTERS: dict[str, Callable[[FineTuner], Any]] = {
    "model": lambda one: setattr(one, "model", convolutional()),
    "history": lambda one: setattr(one, "history", []),
    "classes": lambda one: setattr(one, "classes", ("a", "b", "c")),
    "preprocessing": lambda one: setattr(one, "preprocessing", None),
}


@pytest.mark.parametrize("name", SETTERS)
def test_properties_are_not_set_in_another_thread_while_fit_runs(name: str) -> None:
    def refused(one: Any) -> None:
        with (
            ThreadPoolExecutor(1) as pool,
            pytest.raises(ArgumentError, match=f"{name} = ... was set while fit trains"),
        ):
            pool.submit(SETTERS[name], one).result(20)

    assert equal(fitted(tuner(), Within(refused)), fitted(tuner()))


@pytest.mark.parametrize("name", ["history", "classes", "preprocessing"])
def test_properties_are_not_set_within_fit_and_may_be_in_other_verbs(name: str) -> None:
    class Setting(FineTuner):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            SETTERS["classes"](self)

        def predict_step(self, batch: Any) -> Tensor:
            SETTERS[name](self)
            return super().predict_step(batch)

    def refused(one: Any) -> None:
        with pytest.raises(ArgumentError, match=f"{name} = ... was set within fit"):
            SETTERS[name](one)

    one = tuner()
    assert equal(fitted(one, Within(refused)), fitted(tuner()))
    SETTERS[name](one)
    Setting(convolutional(), device="cpu").predict(X)


def test_a_checkpoint_is_not_loaded_into_a_model_in_training(tmp_path: Any) -> None:
    path = tuner().save_checkpoint(tmp_path / "model.safetensors")

    def refused(one: Any) -> None:
        with pytest.raises(ArgumentError, match="load_checkpoint was called within fit"):
            FineTuner.load_checkpoint(path, one.model)

    assert equal(fitted(tuner(), Within(refused)), fitted(tuner()))


@pytest.mark.parametrize("verb", ["predict", "evaluate", "summary", "copy"])
def test_verbs_that_read_may_run_within_fit(verb: str) -> None:
    assert equal(fitted(tuner(), Within(VERBS[verb])), fitted(tuner()))


def test_a_copy_made_within_fit_is_no_part_of_the_run() -> None:
    copies: list[FineTuner] = []
    one = tuner()
    after = fitted(one, Within(lambda running: copies.append(copy.deepcopy(running))))
    assert not equal([*copies[0].model.state_dict().values()], after)
    assert torch.equal(copies[-1].predict(X), one.predict(X))
    assert len(copies[-1].fit((X, y), progress=False)) == 3


def test_a_step_may_ask_a_model_that_another_thread_uses() -> None:
    """One thread holds the generators and waits for the teacher; the other one has the teacher and waits for them."""
    teacher = tuner(1)

    class Student(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            inputs, _ = batch
            return nn.functional.mse_loss(self.model(inputs), teacher.predict(inputs))

    def student() -> FineTuner:
        return Student(convolutional(), device="cpu")

    alone, students = fitted(student()), [student() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert all(equal(weights, alone) for weights in pool.map(fitted, students, timeout=60))


def outputs_of(pickled: bytes) -> list[Any]:
    return pickle.loads(pickled).predict(X).tolist()  # type: ignore[no-any-return]


def test_copies_and_pickles_go_on_alike() -> None:
    one = tuner()
    fitted(one)
    copied, pickled = copy.deepcopy(one), pickle.loads(pickle.dumps(one))
    assert list(copied.history) == list(pickled.history) == list(one.history)
    assert torch.equal(copied.predict(X), one.predict(X))
    weights = fitted(one)
    assert equal(fitted(copied), weights)
    assert equal(fitted(pickled), weights)


def test_a_tuner_that_cannot_be_pickled_says_why() -> None:
    one = FineTuner(convolutional(), loss=lambda outputs, targets: targets[0] * outputs.mean(), device="cpu")
    fitted(one)
    with pytest.raises(ArgumentError, match=r"pickled with loss=.*lambda.*top level of a module"):
        pickle.dumps(one)
    assert torch.equal(copy.deepcopy(one).predict(X), one.predict(X))


@pytest.mark.slow
def test_a_tuner_predicts_in_a_spawned_process() -> None:
    one = tuner()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(outputs_of, (pickle.dumps(one),)) == one.predict(X).tolist()


def test_turns_end_after_an_error() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.taken("fit", alone=True):
        1 / 0  # noqa: B018
    with ThreadPoolExecutor(1) as pool, turns.taken("predict"):
        waiting = pool.submit(lambda: turns.taken("evaluate").__enter__())
        assert not waiting.done()
    waiting.result(10)


def test_a_waiting_verb_is_refused_once_fit_begins() -> None:
    turns = Turns()

    def ask() -> None:
        with turns.taken("predict"):
            pass

    with ThreadPoolExecutor(1) as pool, turns.taken("evaluate"):
        waiting = pool.submit(ask)
        while not turns._changed._waiters:  # type: ignore[attr-defined]
            pass
        turns.verbs[:] = ["fit"]  # as if fit had been faster
        with turns._changed:
            turns._changed.notify_all()
        with pytest.raises(ArgumentError, match="while fit trains"):
            waiting.result(10)
