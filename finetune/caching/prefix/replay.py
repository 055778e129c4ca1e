"""Run one forward pass from stored activations without its prefix, or run only the prefix to compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from finetune.caching.prefix.boundary import ArgumentResult, BatchLayout, Boundary, Skip, StoredResult, UnreadResult


class DivergedError(RuntimeError):
    """The model took a different path from the one that its prefix was cut on."""


class PrefixComputed(BaseException):
    """All activations of a batch are computed. Raised through the model's code to end its forward pass."""


class Placeholder(Tensor):
    """A tensor with a shape but no memory, whose operations are handled by its forward pass.

    It stands for `value` while the prefix is computed, and has no value in a replay.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    forward_pass: ForwardPass
    value: Tensor | None

    @staticmethod
    def __new__(cls, forward_pass: ForwardPass, size: Any, stride: Any, like: Any, value: Tensor | None) -> Placeholder:
        made: Placeholder = Tensor._make_wrapper_subclass(
            cls, size, strides=stride, dtype=like.dtype, device=like.device
        )
        made.forward_pass, made.value = forward_pass, value
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Placeholder(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        forward_pass: ForwardPass = next(leaf.forward_pass for leaf in leaves if isinstance(leaf, Placeholder))
        return forward_pass.operation(func, leaves, args, kwargs)


class ActivationCodec:
    """Conversion of a tensor of the model to its stored form, `[N, ...]` by sample and in memory order, and back.

    Args:
        layout: Layout of the tensor in the model.
        copied: Whether `unpack` returns a copy, because the model writes the tensor in place or returns it.
    """

    def __init__(self, layout: BatchLayout, *, copied: bool) -> None:
        size, stride = layout.at(layout.samples)
        dimension = layout.sample_dimension
        assert dimension is not None
        self._layout, self._copied, self._dimension = layout, copied, dimension
        self._per_sample = size[dimension] // layout.samples  # more than 1 for windows of an image, for example
        example = self._by_sample(torch.empty_strided(size, stride, device="meta"), layout.samples)
        strides = example.stride()
        rest = sorted(range(1, example.dim()), key=lambda dim: -strides[dim])
        self._order = [0, *rest]
        self._back = [self._order.index(dim) for dim in range(example.dim())]
        reach = 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        self._dense = reach == torch.Size(size).numel()
        self.shape = tuple(example.permute(self._order).shape[1:])
        self.dtype = layout.dtype

    def pack(self, tensor: Tensor, samples: int) -> Tensor:
        """Return a copy of the model's tensor in its stored form."""
        arranged = self._by_sample(tensor.detach(), samples).permute(self._order)
        return arranged.clone(memory_format=torch.contiguous_format)

    def unpack(self, stored: Tensor, samples: int) -> Tensor:
        """Return the model's tensor, with its original strides, from its stored form."""
        tensor = stored.permute(self._back)
        if self._per_sample > 1:
            tensor = tensor.flatten(0, 1)
        tensor = tensor.movedim(0, self._dimension)
        size, stride = self._layout.at(samples)
        if self._dense and not _same_strides(size, stride, tensor.stride()):
            return torch.empty_strided(size, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        return tensor.clone() if self._copied else tensor.data  # `data` is neither a view nor the caller's tensor

    def _by_sample(self, tensor: Tensor, samples: int) -> Tensor:
        tensor = tensor.movedim(self._dimension, 0)
        return tensor.unflatten(0, (samples, self._per_sample)) if self._per_sample > 1 else tensor


def _same_strides(size: list[int], one: Any, other: Any) -> bool:
    return all(length == 1 or a == b for length, a, b in zip(size, one, other, strict=True))


class ForwardPass:
    """One forward pass: a replay from stored activations, or their computation.

    Args:
        boundary: The boundary at which the model was cut.
        codecs: A codec for each stored tensor.
        samples: Batch size.
        stored: Stored activations, `[N, ...]` each; None to compute them.
    """

    def __init__(
        self, boundary: Boundary, codecs: list[ActivationCodec], samples: int, stored: tuple[Tensor, ...] | None = None
    ) -> None:
        self._boundary, self._codecs, self._samples, self._stored = boundary, codecs, samples, stored
        self._operations = iter(boundary.operations)
        self._calls: dict[nn.Module, Iterator[Skip | None]] = {
            module: iter(skips) for module, skips in boundary.calls.items()
        }
        self._computed: dict[int, Tensor] = {}
        self._inside = False  # a skipped call that runs because the prefix is being computed

    def replace_unread(self, leaves: list[Any]) -> list[Any]:
        """Return the model's arguments with placeholders for tensors that are not read past the boundary."""
        read = iter(self._boundary.inputs)
        return [self._placeholder(leaf) if isinstance(leaf, Tensor) and not next(read) else leaf for leaf in leaves]

    def computed(self) -> tuple[Tensor, ...]:
        """Return the activations to store, after the pass.

        Raises:
            DivergedError: If the pass ended early.
        """
        if len(self._computed) < len(self._codecs):
            raise DivergedError("the forward pass ended before all activations were computed")
        return tuple(self._computed[index] for index in range(len(self._codecs)))

    def call(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for a call of a module with skipped calls."""
        if self._inside:
            return forward(*args, **kwargs)
        skip = next(self._calls[module], _MISSING)
        if skip is _MISSING:
            raise DivergedError("a module was called more often than in the traced pass")
        if skip is None:
            return forward(*args, **kwargs)
        return self._results(skip, tree_leaves((args, kwargs)), forward, args, kwargs)

    def operation(self, func: Any, leaves: list[Any], args: Any, kwargs: Any) -> Any:
        """Stand in for an operation on a placeholder."""
        if self._inside:
            return func(*tree_map(_value, args), **tree_map(_value, kwargs))
        skip = next(self._operations, None)
        if skip is None or skip.func is not func:
            raise DivergedError(f"{func} reads a tensor that the prefix skips")
        return self._results(skip, leaves, func, args, kwargs)

    def _results(self, skip: Skip, leaves: list[Any], run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return the results of a skipped node: the stored ones in a replay, or else by running the node."""
        made: list[Any] = []
        if self._stored is None:
            self._inside = True
            made = tree_leaves(run(*tree_map(_value, args), **tree_map(_value, kwargs)))
            self._inside = False
        results: list[Any] = []
        for position, result in enumerate(skip.results):
            value = made[position] if made else None
            if isinstance(result, ArgumentResult):
                results.append(leaves[result.position])
            elif isinstance(result, StoredResult):
                results.append(self._unpacked(result.index, value))
            elif isinstance(result, UnreadResult):
                results.append(self._unread(result.layout, value))
            else:
                results.append(result)
        if self._stored is None and len(self._computed) == len(self._codecs):
            raise PrefixComputed
        return tree_unflatten(results, skip.structure)

    def _unpacked(self, index: int, value: Tensor | None) -> Tensor:
        codec = self._codecs[index]
        if self._stored is not None:
            return codec.unpack(self._stored[index], self._samples)
        assert value is not None
        self._computed[index] = codec.pack(value, self._samples)
        return value

    def _unread(self, layout: BatchLayout, value: Tensor | None) -> Placeholder:
        if value is not None:
            return Placeholder(self, value.shape, value.stride(), layout, value)
        size, stride = layout.at(self._samples)
        return Placeholder(self, size, stride, layout, None)

    def _placeholder(self, tensor: Tensor) -> Placeholder:
        value = tensor if self._stored is None else None
        return Placeholder(self, tensor.shape, tensor.stride(), tensor, value)


_MISSING: Any = object()


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Placeholder) else leaf
