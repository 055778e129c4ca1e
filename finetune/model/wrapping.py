"""Models that come wrapped: by `torch.compile`, `nn.DataParallel` or DistributedDataParallel.

A wrapper is what is called; the model within has the names, the weights and the freeze state.
"""

from __future__ import annotations

from torch import nn

# Where each keeps the model within. By name, so that none has to be imported.
_WITHIN = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within all wrappers; the model itself where there is none."""
    while (within := _within(model)) is not None:
        model = model.get_submodule(within)
    return model


def is_synchronized(model: nn.Module) -> bool:
    """Tell whether one of the wrappers is DistributedDataParallel, which fixes what trains when it is made."""
    while (within := _within(model)) is not None:
        if "DistributedDataParallel" in (cls.__name__ for cls in type(model).__mro__):
            return True
        model = model.get_submodule(within)
    return False


def _within(model: nn.Module) -> str | None:
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__)
    return next((_WITHIN[name] for name in names if name in _WITHIN), None)
