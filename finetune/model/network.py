"""The user's module, and everything known about its structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from finetune.distributed.divided import is_divided
from finetune.errors import ArgumentError, DataError, HeadError
from finetune.model.channels_last import gains_from_channels_last, same_in_channels_last
from finetune.model.families import family_of
from finetune.model.freezing import eval_mode, trainable
from finetune.model.inspection.bounds import Bounds
from finetune.model.inspection.exported import free_exported_modes, program_of
from finetune.model.inspection.forward_graph import feeds_other_results, reading_order
from finetune.model.inspection.probing import accepted_example, samples_of_size, undisturbed, without_autocast
from finetune.model.outputs import (
    call,
    check_logits,
    logits_not_first,
    logits_of,
    outputs_in,
    results_of,
    takes_names,
)
from finetune.model.stages import Stage, stages
from finetune.model.surgery import adapters, heads
from finetune.model.surgery.changes import HeadReplacement, ModelChange
from finetune.model.surgery.head_search import find_head
from finetune.nested import described, tensors_of
from finetune.threads.cached import cached_property

# The attribute in which each wrapper keeps the model. By class name, so that none has to be imported.
_ATTRIBUTES = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
}

_FIXED = "Export the model with dynamic_shapes for whatever may vary, the number of samples above all."

# Over fewer samples, changing the memory format of the weights costs more than it saves.
_FEW_SAMPLES = 32


@dataclass(frozen=True, eq=False)
class Network:
    """A module with its heads, stages and parameter order, each found on first use.

    A `Network` is immutable: surgery on the module returns a new one, so a failed verb is undone by
    restoring the previous one.

    Attributes:
        wrapped: The module as the user calls it, possibly inside DataParallel or `torch.compile`.
        origin: Plain data from which checkpoints rebuild the module by name; None for the user's own module.
        changes: Surgery on the module so far, which checkpoints repeat.
        scope: Names of the parameters that PEFT allows to train; None if all may train.
        synchronized: Parameters whose gradients DistributedDataParallel synchronizes; None without it.
        example: Inputs of two samples of the user's data; None before any data has been seen.
        known_heads: Full names of the heads, the main one first; empty if not known yet.
        known_order: Parameters in the order in which the forward pass reads them; empty if not known yet.
        seen_outputs: Number of outputs that the model gave for its data; None before it has been tried.
        logits: Logits [N, ...] of the samples that it was tried on; None before that, or if they are no tensor.
    """

    wrapped: nn.Module
    origin: dict[str, Any] | None = None
    changes: tuple[ModelChange, ...] = ()
    scope: frozenset[str] | None = None
    synchronized: Mapping[str, nn.Parameter] | None = None
    example: Any = None
    known_heads: tuple[str, ...] = ()
    known_order: tuple[str, ...] = ()
    seen_outputs: int | None = None
    logits: Tensor | None = None

    @classmethod
    def of(
        cls, module: nn.Module, origin: dict[str, Any] | None = None, changes: Sequence[ModelChange] = ()
    ) -> Network:
        """Return the network of a module from the user.

        Raises:
            ArgumentError: If the module is divided among processes.
        """
        if _is_divided(module):
            raise ArgumentError(
                "The model is divided among processes already, as by FSDP. Pass the whole model to FineTuner, which "
                "divides it itself with distributed='fsdp'."
            )
        inner, scope = unwrapped(module), adapters.scope(unwrapped(module))
        free_exported_modes(inner)
        return cls(
            module,
            origin,
            tuple(changes),
            scope=None if scope is None else frozenset(scope),
            synchronized=trainable(inner) if is_synchronized(module) else None,
        )

    @cached_property
    def module(self) -> nn.Module:
        """Module inside all wrappers. All layer and parameter names refer to it."""
        return unwrapped(self.wrapped)

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Full names of the heads, the main one first; empty if the head is ambiguous."""
        if not self.known_heads:
            with suppress(HeadError, ArgumentError):  # the latter for lazy layers before any data
                return self._search_heads()
        return self.known_heads

    @cached_property
    def parameter_order(self) -> tuple[str, ...]:
        """Parameter names in the order of the forward pass; empty if it cannot run or the family has its own order."""
        if self.known_order or family_of(self.module).depth(self.module) is not None:
            return self.known_order
        with without_autocast():
            example = accepted_example(self.module, self.example)
            with undisturbed(self.module), suppress(Exception):
                eval_mode(self.module)
                return tuple(reading_order(self.module, example))
        return ()

    @property
    def num_outputs(self) -> int | None:
        """Number of outputs that the model gave for its data, else that of its main head; None if unknown."""
        return self._head_outputs() if self.seen_outputs is None else self.seen_outputs

    def _head_outputs(self) -> int | None:
        with suppress(HeadError):
            return heads.num_outputs(self.module.get_submodule(self.heads[0])) if self.heads else None
        return None

    @property
    def found_heads(self) -> tuple[str, ...]:
        """Full names of the heads found so far, without a search."""
        found: tuple[str, ...] = vars(self).get("heads", self.known_heads)
        return found

    def required_heads(self) -> tuple[str, ...]:
        """Return the full names of the heads, the main one first.

        Raises:
            HeadError: If the head is ambiguous.
        """
        return self.heads or self._search_heads()

    def _search_heads(self) -> tuple[str, ...]:
        with without_autocast():
            return find_head(self.module, self.example)

    def stages(self) -> list[Stage]:
        """Return the stages from the stem to the head, in the order of the forward pass."""
        return stages(self.module, self.heads, self.parameter_order)

    def trainable_stages(self) -> list[Stage]:
        """Return the stages restricted to parameters in `scope`; the head may always train.

        Raises:
            HeadError: If the head is ambiguous.
        """
        self.required_heads()
        *below, top = self.stages()
        if self.scope is None:
            return [*below, top]
        kept = [replace(s, parameters=tuple(name for name in s.parameters if name in self.scope)) for s in below]
        return [*(stage for stage in kept if stage.parameters), top]

    def everything(self) -> list[str] | None:
        """Return the parameters that PEFT allows to train, or None if the whole model may train."""
        return None if self.scope is None else sorted(self.scope)

    # ------------------------------------------------------------------ updated copies

    def with_example(self, example: Any) -> Network:
        """Return the network with an example of the user's data, which may run even if no guessed input did."""
        return self._knowing(example=example)

    def with_module(self, module: nn.Module) -> Network:
        """Return the network of a module in the place of this one: a copy, a wrapper, or a teacher for a while.

        Everything known so far is kept, so that a checkpoint still tells how to build the model by name. Heads are
        found again if the module has no layers of their names.
        """
        seen = self.seen_outputs if unwrapped(module) is self.module else None
        network = self._knowing(wrapped=module, seen_outputs=seen)
        if {name for name, _ in network.module.named_modules()} >= {*network.known_heads}:
            return network
        return replace(network, known_heads=(), known_order=())

    def with_head(self, names: tuple[str, ...], change: ModelChange) -> Network:
        """Return the network with its heads replaced."""
        return self._knowing(known_heads=names, changes=(*self.changes, change), seen_outputs=None)

    def with_adapters(self, change: ModelChange) -> Network:
        """Return the network with LoRA adapters, which rename the parameters inside adapted layers."""
        return self._knowing(known_order=(), changes=(*self.changes, change))

    def with_trainable(self) -> Network:
        """Return the network with all currently trainable parameters in its scope, so that checkpoints include them.

        Raises:
            ArgumentError: If DistributedDataParallel would not synchronize the gradients of these parameters.
        """
        training = trainable(self.module)
        shared = training if self.synchronized is None else self.synchronized
        if {*map(id, training.values())} != {*map(id, shared.values())}:
            raise ArgumentError(
                "DistributedDataParallel synchronizes only the gradients of the parameters that were trainable when it "
                "was created, and others are trainable now. Replace the head and freeze first, then wrap the model."
            )
        return self if self.scope is None else self._knowing(scope=self.scope | training.keys())

    def _knowing(self, **changes: Any) -> Network:
        order = vars(self).get("parameter_order", self.known_order)
        return replace(self, **{"known_heads": self.found_heads, "known_order": order, **changes})

    def tell_task(self, kind: str | None, classes: Sequence[str] | None) -> None:
        """Record the task and the class names in the model itself, if its family supports it."""
        base, known = adapters.base(self.module), classes is not None and len(classes) == self.num_outputs
        family_of(base).tell_task(base, kind, classes if known else None)

    # ------------------------------------------------------------------ trial runs on data

    def try_on(self, example: Any, *, channels_last: bool, trains: bool) -> bool | None:
        """Run the model once on two samples in eval mode, and restore modes, buffers and random state.

        The network keeps the number of outputs that the model gave.

        Args:
            example: Inputs of two samples.
            channels_last: Whether to try the channels_last memory format too.
            trains: Whether to try a backward pass in channels_last too.

        Returns:
            Whether the model gives the same results in channels_last; None if not tried.

        Raises:
            DataError: If the model does not accept the samples.
            HeadError: If the model returns several results and it is unclear which ones are the logits.
        """
        same = None
        with undisturbed(self.module):
            eval_mode(self.module)
            try:
                with torch.no_grad():
                    output = call(self.module, example)
                    if program_of(self.module) == "torch.export":  # which may have fixed the number of samples, too
                        call(self.module, tree_map(lambda value: torch.cat([value, value]), example))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                raise not_accepted(self.module, example, error) from error
            if channels_last:
                same = same_in_channels_last(self.module, example, output, trains=trains)
        if not tensors_of(output) and type(output).__module__ in ("builtins", "numpy"):
            raise HeadError(
                f"{type(self.module).__name__} returns a {type(output).__name__}. Expected tensors. Return the outputs "
                f"[N, ...] from its forward."
            )
        self._check_new_head(output)
        of_head = self._head_outputs()
        check_logits(self.module, output, of_head if self.heads else 0)
        if not self.heads and len(results_of(output)) > 1:
            self._check_order_of_results(example)
        logits = logits_of(output)
        # Kept, like what else is found on first use.
        vars(self).update(
            seen_outputs=outputs_in(output, of_head), logits=logits if isinstance(logits, Tensor) else None
        )
        return same

    def _check_new_head(self, output: Any) -> None:
        """Check that the outputs follow the last `replace_head`, which may not have had an input to check it with.

        Raises:
            HeadError: If they do not.
        """
        n = next((change.n for change in reversed(self.changes) if isinstance(change, HeadReplacement)), None)
        logits = logits_of(output)
        if n is None or not isinstance(logits, Tensor) or n in (outputs_in(logits), outputs_in(logits, n)):
            return
        if logits.shape[1:].numel() != n:
            raise HeadError(
                f"After replace_head({n}), {type(self.module).__name__} gives outputs of shape "
                f"{list(logits.shape)}, so {self.heads[0]!r} is not its head. Name another layer: "
                f"replace_head({n}, layer=...)."
            )

    def _check_order_of_results(self, example: Any) -> None:
        """Check that no other result of the model is computed from the one that is taken for the logits.

        Raises:
            HeadError: If there is one, so that the first result are features rather than logits.
        """
        with undisturbed(self.module):
            eval_mode(self.module)
            if feeds_other_results(self.module, example):
                raise logits_not_first(self.module, "another result is computed from the first")

    def bounds(self) -> Bounds:
        """Return the bounds of the outputs, none for a library's own models, which are right.

        None are known without an example, or if its pass cannot be recorded.
        """
        family = family_of(self.module)
        if self.example is not None and not family.prefix and not family.heads(self.module):
            with suppress(Exception):
                return Bounds.of(self.module, self.example)
        return Bounds()

    def gains_from_channels_last(self, device: torch.device, samples: int | None, *, trains_all: bool = False) -> bool:
        """Return whether channels_last weights make passes over the data faster.

        Args:
            device: Device on which the model runs.
            samples: Samples per pass, or None if unknown.
            trains_all: Whether gradients reach the first stage.
        """
        plain = self.wrapped is self.module and (samples is None or samples >= _FEW_SAMPLES)
        return plain and gains_from_channels_last(self.module, device, trains_all=trains_all)

    def example_of_size(self, size: Sequence[int] | None, image: tuple[int, ...] | None) -> Any:
        """Return two samples of `size`, or if it is None, samples of the user's data or guessed ones.

        Args:
            size: Shape of one sample, without the batch dimension.
            image: [C, H, W] that the preprocessing produces, or None.

        Returns:
            The inputs, or None if the model accepts neither the data nor a guess.
        """
        if size is not None:
            return samples_of_size(self.module, size)
        if self.example is not None:
            return accepted_example(self.module, self.example)  # a custom step may pass the model other inputs
        if image is not None:
            images = samples_of_size(self.module, image)
            if accepted_example(self.module, images) is not None:
                return images
        return accepted_example(self.module)


def not_accepted(model: nn.Module, inputs: Any, error: Exception) -> DataError:
    """Return the error for a model that failed with `error` on samples of the user's data, with the likeliest fix."""
    tensors, shown = tensors_of(inputs), described(inputs)
    if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], str):
        shown = "texts"
    said = str(error).strip().splitlines() or [type(error).__name__]
    if said[0].startswith("Guard failed"):
        hint = _FIXED
    elif isinstance(inputs, Mapping) and not takes_names(model, inputs):
        hint = _named_hint(model, inputs)
    elif not tensors and any(isinstance(leaf, np.ndarray) for leaf in tree_leaves(inputs)):
        hint = "Convert NumPy arrays in the collate_fn; use torch.as_tensor(array)."
    else:
        first = tensors[0] if tensors else torch.empty(0)
        hint = ("type" in said[0] and _dtype_hint(model, first)) or _hint(shown, first)
    name = type(model).__name__
    return DataError(f"{name} does not accept the data, whose first inputs are {shown}: {said[0]}. {hint}")


def _named_hint(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    taken = ", ".join(name for name in signature(model.forward).parameters)
    return (
        f"The items have the inputs {', '.join(map(str, inputs))}, which are passed by name, and forward() takes "
        f"{taken}. Rename or remove the others, or return pairs (input, target)."
    )


def _dtype_hint(model: nn.Module, first: Tensor) -> str:
    """Return the fix for floats of another dtype than the weights, or "" if they are of the same one, or no floats."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if not first.is_floating_point() or len(dtypes) != 1 or first.dtype in dtypes or torch.float32 in dtypes:
        return ""
    dtype = dtypes.pop()
    return f"The weights are {str(dtype).removeprefix('torch.')}. Pass X.to({dtype}), or model.float()."


def _hint(shown: str, first: Tensor) -> str:
    if shown == "texts":
        return "Pass the model's tokenizer: FineTuner(model, preprocessing=tokenizer)."
    if first.dim() == 4 and first.shape[-1] in (1, 3) and first.shape[1] not in (1, 3):
        return "The images look channels-last. Expected [N, C, H, W]: X.transpose(0, 3, 1, 2)."
    if first.dtype == torch.uint8:
        return (
            "uint8 inputs are scaled only as images [N, C, H, W], by a preprocessing: FineTuner(model, "
            "preprocessing=Preprocessing(...)). Otherwise, pass floats."
        )
    if first.dtype == torch.float64:
        return "Most models expect float32: X.float()."
    return "Pass inputs of the shape and dtype that the model expects."


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside all wrappers, or the model itself if it is not wrapped.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(model)) is model
        True
    """
    while (attribute := _wrapper_attribute(model)) is not None:
        model = model.get_submodule(attribute)
    return model


def is_synchronized(model: nn.Module) -> bool:
    """Return whether a wrapper is DistributedDataParallel, which fixes the trainable parameters when it is created."""
    while (attribute := _wrapper_attribute(model)) is not None:
        if "DistributedDataParallel" in (cls.__name__ for cls in type(model).__mro__):
            return True
        model = model.get_submodule(attribute)
    return False


def _is_divided(model: nn.Module) -> bool:
    """Return whether processes share the parameters, as `DTensor`s or in a wrapper that flattens them."""
    wrappers = ("FullyShardedDataParallel" in (cls.__name__ for cls in type(part).__mro__) for part in model.modules())
    return any(map(is_divided, model.parameters())) or any(wrappers)


def _wrapper_attribute(model: nn.Module) -> str | None:
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__)
    return next((_ATTRIBUTES[name] for name in names if name in _ATTRIBUTES), None)
