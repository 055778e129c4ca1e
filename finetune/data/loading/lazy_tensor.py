"""A tensor that loads its values on first use.

If the frozen prefix of a model is cached, a training step that only passes its inputs on to the model does
not need their values. Any other use loads the values first, so the inputs behave like an ordinary tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

# Functions that access memory without an operation that torch dispatches.
_READS_MEMORY = {
    Tensor.numpy,
    Tensor.tolist,
    Tensor.__array__,
    Tensor.data_ptr,
    Tensor.__dlpack__,
    Tensor.untyped_storage,
}
_SETS_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


class LazyTensor(Tensor):
    """A tensor of known shape, dtype and device whose values are loaded on first use.

    Args:
        size: Shape of the tensor.
        like: Any tensor of its dtype and device.
        load: Function that returns the values.
    """

    _load: Callable[[], Tensor]
    _loaded: Tensor | None

    @staticmethod
    def __new__(cls, size: tuple[int, ...], like: Tensor, load: Callable[[], Tensor]) -> LazyTensor:
        made: LazyTensor = Tensor._make_wrapper_subclass(cls, size, dtype=like.dtype, device=like.device)
        made._load, made._loaded = load, None
        return made

    def __init__(self, size: tuple[int, ...], like: Tensor, load: Callable[[], Tensor]) -> None: ...

    def materialize(self) -> Tensor:
        """Return the values as an ordinary tensor, loaded once."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    @property
    def is_materialized(self) -> bool:
        """Whether the values are loaded."""
        return self._loaded is not None

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.materialize())

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.materialize().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.materialize().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS_MEMORY:
            args, kwargs = tree_map_only(LazyTensor, LazyTensor.materialize, (args, kwargs))
        if func == _SETS_DATA:
            args[0]._loaded = args[1].detach()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(LazyTensor, LazyTensor.materialize, (args, kwargs or {}))
        return func(*args, **kwargs)
