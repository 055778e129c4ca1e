"""The frozen prefix of a model: computed once for each sample, and left out of every later step.

What comes before the first trainable parameter, and draws no random numbers, gives the same result in
every epoch. `cut_prefix` (`cutting.py`) finds it in any model, by what the model does and not by what it is made of:

1. One forward pass is traced (`trace.py`). Each operation that follows from a trainable parameter, from
   a random draw or from statistics of the batch must run in every step; every other need not.
2. The boundary is planned (`boundary.py`). Outermost calls of modules in which nothing must run are left
   out whole, operations outside of them one by one. What is read past the boundary is stored.
3. `Prefix.compute` runs the model on a batch up to the last tensor that is stored, and returns these.
4. `Prefix.serving` makes the model's own forward pass replay: its inputs are placeholders, tensors with
   a shape and without memory. A module that is left out gives back what is stored, or a placeholder if
   nothing past the boundary reads it; an operation that meets a placeholder does the same. Everything
   that sees real tensors only is past the boundary, and runs as ever: train mode, dropout, gradients.
5. Before it is used, all of that is proved against the plain forward and backward pass on real samples.

The model is never swapped. Overrides of `forward` last as long as a context manager, and placeholders no
longer than one call of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from finetune.caching.prefix.agreement import alike, close
from finetune.caching.prefix.arguments import arguments, batch_of, checksums, like, same_argument, versions
from finetune.caching.prefix.boundary import Boundary
from finetune.caching.prefix.guard import Watch
from finetune.caching.prefix.replay import DivergedError, Filled, Keeper, Pass, Placeholder
from finetune.caching.prefix.trace import intercepted
from finetune.caching.store.memory import Spec
from finetune.model.freezing import eval_mode, modes_restored
from finetune.model.inspection.probing import undisturbed

__all__ = ["DivergedError", "Prefix", "Spec"]


class Prefix:
    """A model's frozen prefix, as `cut_prefix` found and proved it.

    Attributes:
        specs: one `Spec` for each tensor that crosses the boundary.
        modules: full names of the modules that are left out.
        reads_inputs: whether anything past the boundary reads the model's inputs; if not, a batch of
            any values does for a step that only hands it on.
        share: what part of the forward pass's multiply-adds is left out, from 0 to 1.
        recipe: how what is stored follows from the inputs, to tell whether it was stored before.
        cause: what ends the prefix, such as "the trainable parameter 'fc.weight'".
    """

    def __init__(self, model: nn.Module, boundary: Boundary, example: Any) -> None:
        self._model, self._boundary = model, boundary
        self._example, self._structure = arguments(example)
        self._keepers = [Keeper(layout, copy) for layout, copy in zip(boundary.stored, boundary.copied, strict=True)]
        self._autocast = _autocast()
        self._watch = Watch(model, boundary.modules, boundary.around, boundary.recipe.constants)
        self._strict = True  # until it is proved
        self.specs = tuple(Spec(keeper.shape, keeper.dtype) for keeper in self._keepers)
        self.modules = tuple(boundary.modules)
        self.reads_inputs = any(boundary.inputs)
        self.share = boundary.share
        self.recipe = boundary.recipe
        self.cause = boundary.cause

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of all that is stored of one sample."""
        return sum(spec.bytes for spec in self.specs)

    @property
    def overridden(self) -> set[nn.Module]:
        """The modules whose `forward` is overridden while the prefix is computed or replayed."""
        return {self._model, *self._boundary.calls}

    def accepts(self, inputs: Any) -> bool:
        """Tell whether a batch is like the one that the prefix was cut on, but for the number of samples."""
        return self._samples_of(inputs) is not None

    def holds(self, *, values: bool = False) -> bool:
        """Tell whether what trains, and what is left out with its weights, modes and hooks, are as at the cut.

        With `values` also what was changed through `.data`, for which every weight that is left out is read.
        """
        return self._watch.same() and (not values or self._watch.same_values())

    def compute(self, inputs: Any) -> tuple[Tensor, ...]:
        """Run the prefix on a batch; return what is stored of it, `[N, *spec.shape]` for each of `specs`.

        The random state and the model's buffers stay as they are.

        Raises:
            DivergedError: the batch, or what the model does on it, is unlike that of the cut.
        """
        samples = self._samples_of(inputs)
        if samples is None:
            raise DivergedError("the batch is not like the one that the prefix was cut on")
        running = Pass(self._boundary, self._keepers, samples)
        # Nothing here needs a gradient; yet torch takes other kernels under `no_grad` (an LSTM's) than in a step.
        with torch.enable_grad(), ExitStack() as protection, suppress(Filled):
            if self._boundary.disturbs:
                protection.enter_context(undisturbed(self._model))
            self._run(running, self._model, arguments(inputs)[0])
        return running.computed()

    def agrees(self, inputs: Any, activations: tuple[Tensor, ...]) -> bool:
        """Tell whether the last samples give, but for rounding, the same at the beginning of a small batch, turned."""
        leaves, structure = arguments(inputs)
        turned = [leaf[-2:].flip(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        other = self.compute(batch_of(turned, structure))
        return all(close(one[-2:], two.flip(0)) for one, two in zip(activations, other, strict=True))

    def trust(self) -> None:
        """Take it for proved: where the model does something else from now on, it runs whole, and that is no error."""
        self._strict = False

    def try_in_eval_mode(self, inputs: Any, activations: tuple[Tensor, ...]) -> None:
        """Have the prefix hold in eval mode too, if it gives the same there, as pooling does."""
        if self._watch.depends_on_modes:
            with modes_restored(self._model), suppress(DivergedError):
                eval_mode(self._model)
                if all(map(alike, activations, self.compute(inputs))):
                    self._watch.allow_present_modes()

    @contextmanager
    def serving(
        self, inputs: Any, activations: tuple[Tensor, ...] | None, *, guarded: bool = True
    ) -> Iterator[list[nn.Module]]:
        """Replay every call of the model with exactly `inputs` from `activations`, which `compute` gave for them.

        That is the same tensors, changed by nobody since. Any other call of the model runs whole, as
        does one under another autocast, or one that asks for a gradient of its inputs. Where a step of the
        user's own may have changed the model, or an input through `.data`, that is looked for (`guarded`).

        Returns:
            The context gives a list, which has an entry for each such call; without activations too, where they run
            whole.
        """
        samples = self._samples_of(inputs)
        expected, structure = arguments(inputs)
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
                return self._run(Pass(self._boundary, self._keepers, samples, activations), forward, leaves)
            except DivergedError:
                if self._strict:
                    raise
                return forward(*args, **kwargs)

        with intercepted([self._model], enter):
            yield calls

    def _run(self, running: Pass, forward: Callable[..., Any], leaves: list[Any]) -> Any:
        args, kwargs = tree_unflatten(running.placed(leaves), self._structure)
        with intercepted(self._boundary.calls, running.call):
            output = forward(*args, **kwargs)
        if any(isinstance(leaf, Placeholder) for leaf in tree_leaves(output)):
            raise DivergedError("the output holds what the prefix leaves out")
        return output

    def _samples_of(self, inputs: Any) -> int | None:
        """Return the number of samples of a batch; None if it is not like that of the cut."""
        leaves, structure = arguments(inputs)
        if structure != self._structure or not all(map(like, leaves, self._example)):
            return None
        lengths = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor)}
        return lengths.pop() if len(lengths) == 1 else None


def _autocast() -> tuple[Any, ...]:
    kinds = ("cpu", "cuda")
    return tuple(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in kinds)
