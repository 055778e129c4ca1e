"""Whether a model still is what it was when its prefix was cut, so that what is stored is what it would compute.

Steps and callbacks of the user's own may change anything at any time: a frozen weight, for one call even, a mode,
a setting, a hook. Versions tell of most changes; a change through `.data` tells nobody, and shows in the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

from finetune.digests import checksum
from finetune.model.freezing import trainable

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (bool, int, float, str)


def hooks_on_all_modules() -> list[Any]:
    """Return the forward hooks that torch calls around every module."""
    return [*hooks_of_all._global_forward_hooks.values(), *hooks_of_all._global_forward_pre_hooks.values()]


class Watch:
    """What a prefix was cut from.

    Args:
        model: what the names are of.
        left_out: full names of the modules that are left out.
        around: of those that run, but on what the prefix leaves out.
        constants: every tensor that is read to compute what is stored.
    """

    def __init__(
        self, model: nn.Module, left_out: Sequence[str], around: Sequence[str], constants: Sequence[Tensor]
    ) -> None:
        self._model, self._left_out, self._around, self._constants = model, left_out, around, constants
        self._modes = [self._present_modes()]
        self._state = self._present()
        self._values = self._present_values()

    @property
    def depends_on_modes(self) -> bool:
        """Whether in eval mode something that is left out is in another mode than at the cut, as far as is known."""
        return any(map(any, self._modes)) and len(self._modes) == 1

    def allow_present_modes(self) -> None:
        """Take it that what is stored is the same in the modes that what is left out is in now."""
        self._modes.append(self._present_modes())

    def same(self) -> bool:
        """Tell whether all is as it was; takes some microseconds for each module that is left out."""
        return self._present_modes() in self._modes and _same(self._state, self._present())

    def same_values(self) -> bool:
        """Tell whether every value that is read is as it was; reads all of them, at the speed of memory."""
        return self._values == self._present_values()

    def _parts(self) -> Iterable[nn.Module]:
        return (module for name in self._left_out for module in self._model.get_submodule(name).modules())

    def _present_modes(self) -> list[bool]:
        return [module.training for module in self._parts()]

    def _present(self) -> list[Any]:
        state: list[Any] = [*trainable(self._model), *hooks_on_all_modules()]
        state += [(tensor, *_version(tensor)) for tensor in self._constants]
        for module in self._parts():
            for name, value in vars(module).items():
                if name not in ("training", "forward"):
                    state += [name, *_flat(value)]
        for name in ("", *self._around):
            module = self._model.get_submodule(name)
            settings = {key: value for key, value in vars(module).items() if type(value) in _PLAIN}
            state += [(key, value) for key, value in settings.items() if key != "training"]
            state += [value for value in module._parameters.values() if value is not None and not value.requires_grad]
            state += [hook for kind in _HOOKS if name for hook in vars(module)[kind].values()]
        return state

    def _present_values(self) -> list[Any]:
        return [checksum(tensor) for tensor in self._constants]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return [value, *_version(value)]
    if isinstance(value, dict):
        return [part for key, item in value.items() for part in (key, *_flat(item))]
    return [part for item in value for part in _flat(item)] if isinstance(value, (list, tuple)) else [value]


def _version(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.is_inference() or tensor.layout != torch.strided or tensor.is_meta:
        return ()
    return tensor._version, tensor.data_ptr(), tensor.requires_grad


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or (type(one) is type(other) and type(one) in _PLAIN and bool(one == other))
