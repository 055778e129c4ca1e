"""Wrapped models: `torch.compile`, `nn.DataParallel` and DistributedDataParallel.

The wrapper is called, while the model inside has the names, the weights and the freeze state.
"""

from __future__ import annotations

from torch import nn

# The attribute in which each wrapper keeps the model. By class name, so that none has to be imported.
_ATTRIBUTES = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside all wrappers, or the model itself if it is not wrapped.

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


def _wrapper_attribute(model: nn.Module) -> str | None:
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__)
    return next((_ATTRIBUTES[name] for name in names if name in _ATTRIBUTES), None)
