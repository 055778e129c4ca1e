"""The complete training loop.

fit                                              on_fit_begin
  for phase in phases:                           on_phase_begin
      for epoch in phase:                        on_epoch_begin
          for window of batches:                 (one window is one update)
              training_step, backward            change_batch, then weigh_batch, before each training_step
              clip, optimizer, schedule          on_step_end; skip_update instead, if it is not finite
                                                 on_evaluate_begin
          evaluate the validation data           on_evaluate_end
          add a row to the history               on_epoch_end
                                                 on_phase_end
                                                 on_interrupt, if a signal ends the run
                                                 on_fit_end, also after an error
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.batch import num_samples_of, target_of
from finetune.data.loading.batches import Batches
from finetune.data.loading.parts import Parts, release, rows
from finetune.data.randomness import preserved_between_draws, reseed
from finetune.devices.allocator import freed_memory_kept
from finetune.display.numbers import Values
from finetune.display.progress.waits import announced
from finetune.errors import ArgumentError, NonFiniteError
from finetune.model.freezing import (
    eval_mode,
    modes_restored,
    single_sample,
    single_sample_explained,
    train_mode,
    trainable,
)
from finetune.nested import as_plain, map_tensors
from finetune.signals.stops import grant, is_stop, poll, requested, unbroken
from finetune.threads.locks import GENERATORS
from finetune.training.callbacks.base import evaluate_otherwise, skip_updates
from finetune.training.metrics import Meter, StepOutput, part_of, shares_of, weight_of
from finetune.training.numerics.finite import FiniteCheck
from finetune.training.numerics.precision import Precision
from finetune.training.resuming.position import Position
from finetune.training.run import Run

_NO_VAL_LOSS = (
    "val_loss is NaN or infinite, although all weights are finite: the outputs or the loss of some validation sample "
    "overflow. Such an epoch is never the best one. Look for extreme values in the validation data."
)


def fit(run: Run) -> None:
    """Train through the remaining phases. Modes and random state are restored on exit, also after an error."""
    at_once = nullcontext() if run.world.size == 1 else unbroken()  # several processes end at the same update
    with modes_restored(run.model), preserved_between_draws(), freed_memory_kept(run.train.device), at_once:
        try:
            with run.put_together():
                _fit_phases(run)
        finally:
            run.emit("on_fit_end")


def _fit_phases(run: Run) -> None:
    try:
        run.world.copy_from_first([*run.model.parameters(), *run.model.buffers()])
        run.finite = FiniteCheck(run.model)
        run.emit("on_fit_begin")
        while run.position.phase < len(run.phases):
            _fit_phase(run)
            run.position = Position(phase=run.position.phase + 1)
            run.end_phase = False
    except (KeyboardInterrupt, SystemExit) as error:
        if is_stop(error):
            run.interrupt()
        raise


def _fit_phase(run: Run) -> None:
    run.begin_phase()
    train_mode(run.model)
    run.cut_prefix()
    run.emit("on_phase_begin")
    with run.compiled():
        while run.position.epoch < run.phase.epochs and not run.end_phase:
            run.poll()
            _fit_epoch(run)
    run.emit("on_phase_end")
    run.check_finite()


def _fit_epoch(run: Run) -> None:
    train_mode(run.model)
    if run.position.window == 0:
        run.meter.reset()
    run.emit("on_epoch_begin")
    run.check_freeze_state()
    begun, seen = time.perf_counter(), run.world.agreed(run.meter.samples)  # the first process has those of before
    batches = run.train.epoch(run.epoch, start=run.position.window * run.accumulation)
    for window in windows(batches, run.accumulation):
        with unbroken():
            if update(run, window):
                run.emit("on_step_end")
        poll()
    run.share_statistics()
    run.check_finite(whole=False)
    run.check_freeze_state()
    run.task, run.metrics = run.meter.task, run.meter.metrics  # a custom step may return targets of its own
    whole = run.meter.of_all()
    training = whole.compute()  # waits for the device, so the time below covers all updates
    if not whole.samples:  # every update was skipped
        training["loss"] = nan
    seconds = run.world.agreed(time.perf_counter() - begun)
    run.row = Values({"epoch": run.epoch + 1, "phase": run.phase.name, **training})
    _evaluate_epoch(run)
    run.row |= {
        "lr": run.rates(),
        "lr_start": run.rates(run.position.begun),
        "seconds": seconds,
        "samples_per_second": (whole.samples - seen) / seconds,
    }
    run.steps_per_epoch = run.position.window
    run.history.append(run.row)
    run.history.learn(run.meter.metrics)
    run.position = run.position.next_epoch()
    run.emit("on_epoch_end")
    run.end_phase = run.world.any(run.end_phase)


def _evaluate_epoch(run: Run) -> None:
    """Add the validation values to the row. A signal ends the pass, unless a custom callback has changed the run."""
    run.emit("on_evaluate_begin")
    run.share_statistics()  # also those of weights that a callback has put in
    if run.val is not None:
        meter = run.new_meter(run.val.device)
        key = (run.seed, "evaluate", run.epoch)
        with run.validating(), unbroken() if evaluate_otherwise(run.callbacks) else nullcontext():
            step, together = run.replicas.around(run.tuner.validation_step), run.replicas.together
            values = evaluate(step, run.model, run.val, meter, run.precision, key, run.val_parts, together)
        run.metrics = {**run.metrics, **meter.metrics}
        run.row |= {f"val_{name}": value for name, value in values.items()}
        if not isfinite(values["loss"]):
            run.warn_once(_NO_VAL_LOSS)
        run.emit("on_evaluate_end")


def update(run: Run, window: list[Any]) -> bool:
    """Run one optimizer update over a window of batches, each weighted by its number of samples.

    The gradient equals that of a single batch of all their samples, even if the last batch is smaller.

    Returns:
        Whether the update was made; False if a callback skipped it, because it was not finite.

    Raises:
        NonFiniteError: If the loss or a gradient is NaN or infinite, in this update or in an earlier one that had not
            been checked yet. The model is restored to its state before that update.
    """
    run.set_rates(run.position.step)
    run.statistics.remember(run.precision.failed)
    results = _Results(run.meter, at_once=not skip_updates(run.callbacks))
    with GENERATORS.held():
        loss = run.loss = _gradients(run, window, results)
        if run.position.epoch == run.position.window == 0:
            _say_unreached(run)
        made = _step(run, loss)
    if made:
        results.count_rest()
    run.position.window += 1
    return made


def _gradients(run: Run, window: list[Any], results: _Results) -> Tensor:
    """Compute the gradients of a window, and return its loss. If memory runs out, start again in smaller parts."""
    while True:
        with run.parts.halved(window[0]):
            reseed(run.seed, "step", run.epoch, run.position.window, *run.own_draws)  # makes every update resumable
            with run.statistics.undone_on_error():
                return _accumulate(run, window, results)
        run.optimizer.zero_grad(set_to_none=True)
        release()


def _accumulate(run: Run, window: list[Any], results: _Results) -> Tensor:
    """Add up the gradients of the parts of a window, each by its share of the samples. Return the loss."""
    weights = [_weight(run, batch) for batch in window]
    shares = shares_of(weights, _total(run, weights))
    loss = torch.zeros((), device=run.train.device)
    for number, (own, share) in enumerate(zip(window, shares, strict=True)):
        batch, steps = run.train.stand_in() if own is None else own, []
        size, last = num_samples_of(batch), number == len(window) - 1
        for step, samples, targets, fraction in _training_steps(run, batch, size, synchronize=last):
            whole = torch.promote_types(step.loss.dtype, torch.float32)  # half precision rounds, or overflows
            part = part_of(step.loss.to(whole), share * fraction)
            run.precision.backward(run.replicas.scaled(part))
            loss += part.detach()
            steps.append((_detached(step), 0 if own is None else samples, targets))
        results.add(number, steps)
    run.replicas.finish()
    return run.world.sum(loss)


def _weight(run: Run, batch: Any) -> Tensor | float:
    """Return the weight of a batch in the loss of its window; 0 for a process without samples in this step."""
    return 0.0 if batch is None else weight_of(run.task, target_of(batch), num_samples_of(batch))


def _total(run: Run, weights: list[Tensor | float]) -> Tensor | float:
    """Return the sum of the weights of a window over all processes. A signal that reached one of them ends all here."""
    total = sum(weights)
    if run.world.size == 1:
        return total
    known = 0.0 if isinstance(total, Tensor) else total
    everyones, stops = run.world.sum(torch.tensor([known, requested()], dtype=torch.float64)).tolist()
    if stops:
        grant()
    return run.world.sum(total.float()) if isinstance(total, Tensor) else everyones


class _Results:
    """Results of the training steps of an update, each counted once, although a step may be repeated.

    Args:
        meter: Meter that counts them.
        at_once: Whether they are counted at once, or only after the update has been made.
    """

    def __init__(self, meter: Meter, *, at_once: bool) -> None:
        self._meter, self._at_once = meter, at_once
        self._counted = 0
        self._kept: dict[int, list[tuple[StepOutput, int, Any]]] = {}

    def add(self, number: int, steps: list[tuple[StepOutput, int, Any]]) -> None:
        """Add the results of the parts of a batch, by the number of the batch in its window."""
        self._kept[number] = steps
        if self._at_once:
            self.count_rest()

    def count_rest(self) -> None:
        """Count what has not been counted."""
        for number, steps in self._kept.items():
            if number == self._counted:
                self._counted += 1
                for step, size, targets in steps:
                    self._meter.update(step, size, targets)
        self._kept.clear()


def _step(run: Run, loss: Tensor) -> bool:
    """Step the optimizer. Return False if a callback skips the update instead, because it is not finite."""
    try:
        with run.updates_undone_if_not_finite():
            stepped = run.precision.step(run.optimizer, loss, run.max_grad_norm)
            if skip_updates(run.callbacks):
                run.precision.check()
    except NonFiniteError as error:
        if not any(callback.skip_update(run, error) for callback in run.callbacks):
            raise
        return False
    run.position.step += stepped
    return True


def _detached(step: StepOutput) -> StepOutput:
    return step._replace(loss=step.loss.detach(), outputs=map_tensors(Tensor.detach, step.outputs, None))


def _say_unreached(run: Run) -> None:
    """Log the trainable parameters that the first update of a phase does not change."""
    names = [name for name, parameter in trainable(run.model).items() if parameter.grad is None]
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        run.warn_once(
            f"{len(names)} trainable parameters ({shown}) got no gradient from the first batch, so they stay as they "
            f"are. The forward pass may not use them, or computes them under torch.no_grad or detach."
        )


def evaluate(
    step: Callable[[Any], Tensor | StepOutput],
    model: nn.Module,
    batches: Batches,
    meter: Meter,
    precision: Precision,
    key: Sequence[int | str] | None = None,
    parts: Parts | None = None,
    together: bool = False,
) -> dict[str, float]:
    """Return the loss and the metrics over all batches, with each sample counted once. See `outputs` for the rest."""
    for batch, output in outputs(step, model, batches, precision, "Evaluating", key, parts, together):
        meter.update(as_step_output(output, step), num_samples_of(batch), target_of(batch))
    return Values(meter.compute())


def predict(step: Callable[[Any], Any], model: nn.Module, batches: Batches, precision: Precision) -> list[Any]:
    """Return the output of `step` for every batch, in order."""
    return [as_plain(output) for _, output in outputs(step, model, batches, precision, "Predicting")]


def outputs(
    step: Callable[[Any], Any],
    model: nn.Module,
    batches: Batches,
    precision: Precision,
    what: str,
    key: Sequence[int | str] | None = None,
    parts: Parts | None = None,
    together: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """Yield every batch with its output of `step`, computed in eval mode. Modes are restored on exit.

    A batch that does not fit in the memory of a GPU is yielded in parts.

    Args:
        what: Word for the pass in the progress display.
        key: Key that, with the number of the batch, seeds the random draws of a step; None to leave them to the user.
        parts: Number of samples that run at once, which is lowered if memory runs out.
        together: Whether every process runs every step, also one without samples in it.
    """
    parts = parts or Parts(divides=batches.world.size == 1)  # the parts of all processes have an order
    with modes_restored(model):
        eval_mode(model)
        for number, batch in enumerate(announced(batches.epoch(0), f"{what} batches", batches.steps)):
            if batch is None and not together:
                continue

            def computed(part: Any, batch: Any = batch, number: int = number) -> Any:
                with torch.no_grad(), precision.autocast(), batches.serving(part), single_sample_explained():
                    return _drawn(step, part, key and (*key, number))

            if batch is None:
                computed(batches.stand_in())
            else:
                yield from parts.over(batch, computed)


def _drawn(step: Callable[[Any], Any], batch: Any, key: Sequence[int | str] | None) -> Any:
    """Return the output of a step, whose draws other threads do not interrupt."""
    with GENERATORS.held():
        if key is not None:
            reseed(*key)
        return step(batch)


def windows(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Group batches into lists of `size`; the last list may be shorter."""
    iterator = iter(batches)
    while window := list(islice(iterator, size)):
        yield window


def as_step_output(returned: Any, step: Callable[[Any], Any]) -> StepOutput:
    """Convert the return value of a step to a `StepOutput`.

    Raises:
        ArgumentError: If the value is neither a loss nor a `StepOutput`, or the loss is not a scalar.
    """
    output = returned if isinstance(returned, StepOutput) else StepOutput(returned)
    if not isinstance(output.loss, Tensor) or output.loss.dim() != 0:
        got = f"shape {list(output.loss.shape)}" if isinstance(output.loss, Tensor) else repr(output.loss)
        name = getattr(step, "__qualname__", "the step")
        raise ArgumentError(f"Expected {name} to return a scalar loss or a StepOutput, but the loss is {got}.")
    return output


def _training_steps(
    run: Run, batch: Any, size: int, *, synchronize: bool
) -> Iterator[tuple[StepOutput, int, Any, Tensor | float]]:
    """Run the training step on each part of a batch.

    Args:
        run: The run.
        batch: The batch.
        size: Number of samples in it.
        synchronize: Whether the backward pass adds up the gradients of all processes.

    Yields:
        The result, the number of samples, the targets that the metrics judge by, and the part's fraction of the batch.
    """
    changed = batch
    for callback in run.callbacks:
        changed = callback.change_batch(run, changed)
    weighed = changed
    for callback in run.callbacks:
        weighed = callback.weigh_batch(run, weighed)
    parts = run.parts.of(size)
    made: list[dict[int, Any]] = [{} for _ in parts]  # the same tensor has the same part in all three batches
    own, judged, given = (
        [rows(whole, size, part, known) for part, known in zip(parts, made, strict=True)]
        for whole in (batch, changed, weighed)
    )
    sizes = [part.stop - part.start for part in parts]
    weights = [weight_of(run.task, target_of(part), n) for part, n in zip(own, sizes, strict=True)]
    fractions = shares_of(weights) if len(parts) > 1 else [1.0]
    for part, n, changed, weighed, fraction in zip(own, sizes, judged, given, fractions, strict=True):
        targets = target_of(changed)
        yield _training_step(run, part, weighed, targets, n, synchronize=synchronize), n, targets, fraction


def _training_step(run: Run, batch: Any, given: Any, judged: Any, size: int, *, synchronize: bool) -> StepOutput:
    """Return the result of the training step on what callbacks made of a batch."""
    single = size == 1 and not run.replicas.joint_norms
    if single and run.moves_statistics:
        run.warn_once("A batch of one sample has no batch statistics, so batch norms use their running statistics.")
    alone = single_sample(run.model) if single else nullcontext()
    with alone, single_sample_explained(), run.precision.autocast(), run.train.serving(batch):
        output = as_step_output(run.replicas(given, synchronize=synchronize), run.tuner.training_step)
    if not output.loss.requires_grad:
        raise ArgumentError(
            "The loss of training_step does not depend on any trainable parameter. Compute it from the outputs of "
            "self.model, without detach() or no_grad()."
        )
    return output._replace(targets=judged) if output.targets is target_of(given) else output
