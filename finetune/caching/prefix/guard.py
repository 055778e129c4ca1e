"""Detect changes of a model since its prefix was cut, which invalidate stored activations.

Custom steps and callbacks may change anything at any time, even for a single call: a frozen weight, a mode, a setting,
a hook. Version counters reveal most changes of tensors; changes through `.data` show only in the values.
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
    """Return the forward hooks that torch calls for every module."""
    return [*hooks_of_all._global_forward_hooks.values(), *hooks_of_all._global_forward_pre_hooks.values()]


class PrefixGuard:
    """A snapshot of everything that a prefix depends on, to compare with the model's current state.

    Args:
        model: Model that was cut.
        skipped: Full names of the modules that a replay skips.
        enclosing: Full names of the modules that run, but receive or return placeholders.
        constants: Tensors that the prefix reads.
    """

    def __init__(
        self, model: nn.Module, skipped: Sequence[str], enclosing: Sequence[str], constants: Sequence[Tensor]
    ) -> None:
        self._model, self._skipped, self._enclosing, self._constants = model, skipped, enclosing, constants
        self._modes = [self._present_modes()]
        self._state = self._present()
        self._values = self._present_values()

    @property
    def depends_on_modes(self) -> bool:
        """Whether eval mode, not yet allowed, would change a skipped module's mode."""
        return any(map(any, self._modes)) and len(self._modes) == 1

    def allow_present_modes(self) -> None:
        """Also accept the current modes of the skipped modules, in which the stored activations are valid too."""
        self._modes.append(self._present_modes())

    def unchanged(self) -> bool:
        """Return whether modes, settings, hooks and tensor versions are unchanged. Takes microseconds per module."""
        return self._present_modes() in self._modes and _same(self._state, self._present())

    def values_unchanged(self) -> bool:
        """Return whether all values that the prefix reads are unchanged. Reads each of them, at memory speed."""
        return self._values == self._present_values()

    def _parts(self) -> Iterable[nn.Module]:
        return (module for name in self._skipped for module in self._model.get_submodule(name).modules())

    def _present_modes(self) -> list[bool]:
        return [module.training for module in self._parts()]

    def _present(self) -> list[Any]:
        state: list[Any] = [*trainable(self._model), *hooks_on_all_modules()]
        state += [(tensor, *_version(tensor)) for tensor in self._constants]
        for module in self._parts():
            for name, value in vars(module).items():
                if name not in ("training", "forward"):
                    state += [name, *_flat(value)]
        for name in ("", *self._enclosing):
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
