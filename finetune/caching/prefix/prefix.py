"""The frozen prefix of a model: computed once per sample, and skipped in every later step.

Layers before the first trainable parameter that draw no random numbers give the same result in every epoch.
`cut_prefix` (`cut.py`) finds them in any model by its operations, not by its architecture:

1. Trace one forward pass (`trace.py`). Only operations that depend on a trainable parameter, a random draw or batch
   statistics must run in every step.
2. Find the boundary (`boundary.py`). The outermost module calls without such operations are skipped whole, operations
   outside of them one by one. Tensors that are read past the boundary are stored.
3. `Prefix.compute` runs the model on a batch up to the last stored tensor, and returns the stored ones.
4. `Prefix.serving` makes the model's own forward pass a replay: its inputs become placeholders, tensors with a shape
   but no memory. A skipped module returns its stored activations, or a placeholder if nothing past the boundary reads
   them, and so does an operation on a placeholder. Code that sees only real tensors is past the boundary and runs
   normally: train mode, dropout, gradients.
5. Before use, verify the replay against the plain forward and backward pass on real samples (`cut.py`).

The model is never replaced. Overrides of `forward` last as long as a context manager, and placeholders as long as one
call of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from finetune.caching.prefix.agreement import close_results, equal_results
from finetune.caching.prefix.arguments import (
    checksums,
    flatten_inputs,
    matches_example,
    same_argument,
    unflatten_inputs,
    versions,
)
from finetune.caching.prefix.boundary import Boundary
from finetune.caching.prefix.guard import PrefixGuard
from finetune.caching.prefix.replay import ActivationCodec, DivergedError, ForwardPass, Placeholder, PrefixComputed
from finetune.caching.prefix.trace import intercepted
from finetune.caching.store.store import Spec
from finetune.devices.device import device_types
from finetune.model.freezing import eval_mode, modes_restored
from finetune.model.inspection.probing import undisturbed


class Prefix:
    """A model's frozen prefix, as found and verified by `cut_prefix`.

    Attributes:
        specs: Shape and dtype per sample of each tensor that crosses the boundary.
        modules: Full names of the skipped modules.
        reads_inputs: Whether the model's inputs are read past the boundary. If not, a replay needs no input values.
        share: Skipped share of the forward pass's multiply-adds, 0 to 1.
        derivation: Derivation of the stored activations from the inputs, to find activations of earlier runs.
        cause: Description of the operation or parameter that ends the prefix, such as "the trainable parameter
            'fc.weight'".
        strict: Whether a replay raises an error if the model takes a different path. A verified prefix is not strict
            and runs the whole model instead.
    """

    def __init__(self, model: nn.Module, boundary: Boundary, example: Any) -> None:
        self._model, self._boundary = model, boundary
        self._example, self._structure = flatten_inputs(example)
        pairs = zip(boundary.stored, boundary.copied, strict=True)
        self._codecs = [ActivationCodec(layout, copied=copied) for layout, copied in pairs]
        self._autocast = _autocast()
        self._guard = PrefixGuard(model, boundary.modules, boundary.enclosing, boundary.derivation.constants)
        self.strict = True
        self.specs = tuple(Spec(codec.shape, codec.dtype) for codec in self._codecs)
        self.modules = tuple(boundary.modules)
        self.reads_inputs = any(boundary.inputs)
        self.share = boundary.share
        self.derivation = boundary.derivation
        self.cause = boundary.cause

    @property
    def bytes_per_sample(self) -> int:
        """Bytes stored per sample."""
        return sum(spec.bytes for spec in self.specs)

    @property
    def overridden(self) -> set[nn.Module]:
        """Modules whose `forward` is overridden while the prefix is computed or replayed."""
        return {self._model, *self._boundary.calls}

    def accepts(self, inputs: Any) -> bool:
        """Return whether a batch matches the one that the prefix was cut on, except for the number of samples."""
        return self._samples_of(inputs) is not None

    def holds(self, *, values: bool = False) -> bool:
        """Return whether the trainable parameters and the skipped modules are unchanged since the cut.

        Args:
            values: Whether to also detect changes through `.data`, which reads every skipped weight.
        """
        return self._guard.unchanged() and (not values or self._guard.values_unchanged())

    def compute(self, inputs: Any) -> tuple[Tensor, ...]:
        """Return the activations of a batch, `[N, *spec.shape]` for each of `specs`.

        The random state and the model's buffers are left unchanged.

        Raises:
            DivergedError: If the batch does not match the one of the cut, or the model takes a different path.
        """
        samples = self._samples_of(inputs)
        if samples is None:
            raise DivergedError("the batch does not match the one that the prefix was cut on")
        forward_pass = ForwardPass(self._boundary, self._codecs, samples)
        # No gradient is needed, but under `no_grad` torch picks different kernels from those in a step (LSTM).
        with torch.enable_grad(), ExitStack() as protection, suppress(PrefixComputed):
            if self._boundary.disturbs:
                protection.enter_context(undisturbed(self._model))
            self._run(forward_pass, self._model, flatten_inputs(inputs)[0])
        return forward_pass.computed()

    def agrees(self, inputs: Any, activations: tuple[Tensor, ...]) -> bool:
        """Return whether the last two samples, swapped in a separate batch, give the same results up to rounding."""
        leaves, structure = flatten_inputs(inputs)
        swapped = [leaf[-2:].flip(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        other = self.compute(unflatten_inputs(swapped, structure))
        return all(close_results(one[-2:], two.flip(0)) for one, two in zip(activations, other, strict=True))

    def try_in_eval_mode(self, inputs: Any, activations: tuple[Tensor, ...]) -> None:
        """Allow the prefix in eval mode too, if its activations are the same there."""
        if self._guard.depends_on_modes:
            with modes_restored(self._model), suppress(DivergedError):
                eval_mode(self._model)
                if all(map(equal_results, activations, self.compute(inputs))):
                    self._guard.allow_present_modes()

    @contextmanager
    def serving(
        self, inputs: Any, activations: tuple[Tensor, ...] | None, *, guarded: bool = True
    ) -> Iterator[list[nn.Module]]:
        """Replay calls of the model with exactly `inputs`, from the activations that `compute` returned for them.

        Only calls with the same, unmodified tensors are replayed. Any other call runs the whole model, and so does a
        call under a different autocast or with inputs that require a gradient.

        Args:
            inputs: Inputs of the batch.
            activations: Activations of the batch; None to run the whole model and only count the calls.
            guarded: Whether to check for changes of the model, and of inputs through `.data`, by custom steps or
                callbacks.

        Yields:
            A list with an entry for each call of the model with `inputs`.
        """
        samples = self._samples_of(inputs)
        expected, structure = flatten_inputs(inputs)
        at_first = versions(expected)
        sums = checksums(expected) if guarded else []
        calls: list[nn.Module] = []

        def enter(model: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            leaves, actual = tree_flatten((args, kwargs))
            untouched = actual == structure and all(map(same_argument, leaves, expected))
            if samples is None or not untouched or versions(leaves) != at_first or _autocast() != self._autocast:
                return forward(*args, **kwargs)
            if guarded and not (checksums(leaves) == sums and self.holds()):
                return forward(*args, **kwargs)
            calls.append(model)
            if activations is None:
                return forward(*args, **kwargs)
            try:
                return self._run(ForwardPass(self._boundary, self._codecs, samples, activations), forward, leaves)
            except DivergedError:
                if self.strict:
                    raise
                return forward(*args, **kwargs)

        with intercepted([self._model], enter):
            yield calls

    def _run(self, forward_pass: ForwardPass, forward: Callable[..., Any], leaves: list[Any]) -> Any:
        args, kwargs = tree_unflatten(forward_pass.replace_unread(leaves), self._structure)
        with intercepted(self._boundary.calls, forward_pass.call):
            output = forward(*args, **kwargs)
        if any(isinstance(leaf, Placeholder) for leaf in tree_leaves(output)):
            raise DivergedError("the output contains a tensor that the prefix skips")
        return output

    def _samples_of(self, inputs: Any) -> int | None:
        """Return the number of samples of a batch, or None if the batch does not match the one of the cut."""
        leaves, structure = flatten_inputs(inputs)
        if structure != self._structure or not all(map(matches_example, leaves, self._example)):
            return None
        lengths = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor)}
        return lengths.pop() if len(lengths) == 1 else None


def _autocast() -> tuple[Any, ...]:
    return tuple(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in device_types())
