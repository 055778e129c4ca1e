"""One forward pass without its prefix, or with the prefix alone: placeholders, and what is given back for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from finetune.caching.prefix.boundary import Boundary, Layout, Left, Step, Stored, Through


class DivergedError(RuntimeError):
    """The model did something else than in the pass that its prefix was cut on."""


class Filled(BaseException):
    """All that is stored of a batch has been computed; raised through the model's own code to end its pass."""


class Placeholder(Tensor):
    """A tensor with a shape and without memory; what is done with it is up to its pass.

    While the prefix is computed it stands for `value`; while it is replayed it has none.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    running: Pass
    value: Tensor | None

    @staticmethod
    def __new__(cls, running: Pass, size: Any, stride: Any, like: Any, value: Tensor | None) -> Placeholder:
        made: Placeholder = Tensor._make_wrapper_subclass(
            cls, size, strides=stride, dtype=like.dtype, device=like.device
        )
        made.running, made.value = running, value
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Placeholder(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        running: Pass = next(leaf.running for leaf in leaves if isinstance(leaf, Placeholder))
        return running.operation(func, leaves, args, kwargs)


class Keeper:
    """How one tensor is stored: `[N, ...]`, by sample and in the order in which it lies in memory."""

    def __init__(self, layout: Layout, copied: bool) -> None:
        size, stride = layout.at(layout.samples)
        dimension = layout.sample_dimension
        assert dimension is not None
        self._layout, self._copied, self._dimension = layout, copied, dimension
        self._several = size[dimension] // layout.samples  # such as the windows of a picture, side by side
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
        """Return a copy of a tensor of the model as it is stored."""
        arranged = self._by_sample(tensor.detach(), samples).permute(self._order)
        return arranged.clone(memory_format=torch.contiguous_format)

    def unpack(self, stored: Tensor, samples: int) -> Tensor:
        """Return a tensor of the model, with the strides that it had, from what is stored."""
        tensor = stored.permute(self._back)
        if self._several > 1:
            tensor = tensor.flatten(0, 1)
        tensor = tensor.movedim(0, self._dimension)
        size, stride = self._layout.at(samples)
        if self._dense and not _same_strides(size, stride, tensor.stride()):
            return torch.empty_strided(size, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        return tensor.clone() if self._copied else tensor.data  # `data`: neither a view nor the caller's own

    def _by_sample(self, tensor: Tensor, samples: int) -> Tensor:
        tensor = tensor.movedim(self._dimension, 0)
        return tensor.unflatten(0, (samples, self._several)) if self._several > 1 else tensor


def _same_strides(size: list[int], one: Any, other: Any) -> bool:
    return all(length == 1 or a == b for length, a, b in zip(size, one, other, strict=True))


class Pass:
    """One forward pass over `samples` samples: a replay of `stored`, or without it a pass that computes it."""

    def __init__(
        self, boundary: Boundary, keepers: list[Keeper], samples: int, stored: tuple[Tensor, ...] | None = None
    ) -> None:
        self._boundary, self._keepers, self._samples, self._stored = boundary, keepers, samples, stored
        self._operations = iter(boundary.operations)
        self._calls: dict[nn.Module, Iterator[Step | None]] = {
            module: iter(steps) for module, steps in boundary.calls.items()
        }
        self._computed: dict[int, Tensor] = {}
        self._inside = False  # a call that is left out, while the prefix is computed

    def placed(self, leaves: list[Any]) -> list[Any]:
        """Return the model's arguments with placeholders for the tensors that nothing past the boundary reads."""
        read = iter(self._boundary.inputs)
        return [self._placeholder(leaf) if isinstance(leaf, Tensor) and not next(read) else leaf for leaf in leaves]

    def computed(self) -> tuple[Tensor, ...]:
        """Return what is stored of the batch, once the pass is over."""
        if len(self._computed) < len(self._keepers):
            raise DivergedError("the model ended before all that is stored was computed")
        return tuple(self._computed[index] for index in range(len(self._keepers)))

    def call(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for a call of a module that is left out, be it at times."""
        if self._inside:
            return forward(*args, **kwargs)
        step = next(self._calls[module], _MISSING)
        if step is _MISSING:
            raise DivergedError("a module was called more often than before")
        if step is None:
            return forward(*args, **kwargs)
        return self._give_back(step, tree_leaves((args, kwargs)), forward, args, kwargs)

    def operation(self, func: Any, leaves: list[Any], args: Any, kwargs: Any) -> Any:
        """Stand in for an operation that meets a placeholder."""
        if self._inside:
            return func(*tree_map(_value, args), **tree_map(_value, kwargs))
        step = next(self._operations, None)
        if step is None or step.func is not func:
            raise DivergedError(f"{func} reads what the prefix leaves out")
        return self._give_back(step, leaves, func, args, kwargs)

    def _give_back(self, step: Step, leaves: list[Any], run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        made: list[Any] = []
        if self._stored is None:
            self._inside = True
            made = tree_leaves(run(*tree_map(_value, args), **tree_map(_value, kwargs)))
            self._inside = False
        results: list[Any] = []
        for position, result in enumerate(step.results):
            value = made[position] if made else None
            if isinstance(result, Through):
                results.append(leaves[result.position])
            elif isinstance(result, Stored):
                results.append(self._take(result.index, value))
            elif isinstance(result, Left):
                results.append(self._left(result.layout, value))
            else:
                results.append(result)
        if self._stored is None and len(self._computed) == len(self._keepers):
            raise Filled
        return tree_unflatten(results, step.structure)

    def _take(self, index: int, value: Tensor | None) -> Tensor:
        keeper = self._keepers[index]
        if self._stored is not None:
            return keeper.unpack(self._stored[index], self._samples)
        assert value is not None
        self._computed[index] = keeper.pack(value, self._samples)
        return value

    def _left(self, layout: Layout, value: Tensor | None) -> Placeholder:
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
