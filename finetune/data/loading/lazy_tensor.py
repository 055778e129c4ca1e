"""Inputs that are not loaded until something reads them.

A step that only hands its inputs on to a model whose prefix is stored does not pay for decoding them.
Whatever else a step does with them loads them first, so that they behave as the tensor they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

# What reads a tensor's memory without an operation of torch's dispatcher, which would tell of it.
_READS_MEMORY = {
    Tensor.numpy,
    Tensor.tolist,
    Tensor.__array__,
    Tensor.data_ptr,
    Tensor.__dlpack__,
    Tensor.untyped_storage,
}
_SETS_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


class Unread(Tensor):
    """A tensor that is loaded when it is first read; its shape, type and device are known before.

    Args:
        size: of the tensor.
        like: a tensor of its type and device.
        load: returns it.
    """

    _load: Callable[[], Tensor]
    _loaded: Tensor | None

    @staticmethod
    def __new__(cls, size: tuple[int, ...], like: Tensor, load: Callable[[], Tensor]) -> Unread:
        made: Unread = Tensor._make_wrapper_subclass(cls, size, dtype=like.dtype, device=like.device)
        made._load, made._loaded = load, None
        return made

    def __init__(self, size: tuple[int, ...], like: Tensor, load: Callable[[], Tensor]) -> None: ...

    def read(self) -> Tensor:
        """Return the tensor, loaded once."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    @property
    def was_read(self) -> bool:
        """Whether it was loaded."""
        return self._loaded is not None

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.read())

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.read().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.read().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS_MEMORY:
            args, kwargs = tree_map_only(Unread, Unread.read, (args, kwargs))
        if func == _SETS_DATA:
            args[0]._loaded = args[1].detach()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(Unread, Unread.read, (args, kwargs or {}))
        return func(*args, **kwargs)
