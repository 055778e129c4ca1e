"""Finite weights: what an update that fails takes back, and the check of everything that a checkpoint saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from finetune.distributed.divided import local
from finetune.errors import NonFiniteError, some_of
from finetune.model.freezing import moving_statistics, trainable


class BatchStatistics:
    """The batch statistics that training updates, with a copy to restore if an update fails.

    Args:
        model: Model in the freeze state of a phase; None for no statistics.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._own: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        self._remembered: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        for buffer in [] if model is None else moving_statistics(model):
            self._own.setdefault((buffer.dtype, buffer.device), []).append(buffer)

    def __bool__(self) -> bool:
        return bool(self._own)

    def remember(self, failed: Tensor | None) -> None:
        """Copy the statistics before an update.

        Args:
            failed: Boolean tensor that is True if an earlier update failed, so that the copy from before it is kept.
                None if none did.
        """
        for kind, statistics in self._own.items():
            now = torch.cat([buffer.reshape(-1) for buffer in statistics])
            if failed is not None:
                now = torch.where(failed.to(now.device), self._remembered[kind], now)
            self._remembered[kind] = now

    def restore(self) -> None:
        """Copy the remembered statistics back into the model."""
        for kind, statistics in self._own.items():
            parts = self._remembered[kind].split([buffer.numel() for buffer in statistics])
            torch._foreach_copy_(statistics, [p.view_as(b) for p, b in zip(parts, statistics, strict=True)])

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Restore the statistics of before an update whose loss cannot be computed."""
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):  # of a device that has failed, whose own error is raised
                self.restore()
            raise


class FiniteCheck:
    """Check that weights and buffers which were finite at the start of training still are.

    Others, such as attention masks of -inf, are left alone, and so are tensors that appear later.

    Args:
        model: Model at the start.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> check = FiniteCheck(model)
        >>> with torch.no_grad():
        ...     _ = model.weight.div_(0)
        >>> check.broken()
        ['weight']
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._changing: dict[str, Tensor] = {}
        self._read: dict[str, object] = {}  # tensors, with their stamp when they were read last
        self._expected = set(model.state_dict())
        self._expected -= set(self.broken())

    def begin_phase(self) -> None:
        """Note what training changes in the current freeze state."""
        moving = {id(tensor) for tensor in moving_statistics(self._model)}
        buffers = {name: buffer for name, buffer in self._model.named_buffers() if id(buffer) in moving}
        self._changing = {**trainable(self._model), **buffers}

    def broken(
        self, copies: Mapping[str, Mapping[str, Tensor]] | None = None, moment: object = None, *, whole: bool = True
    ) -> list[str]:
        """Return the names of tensors that are no longer finite. This waits for the device, once per device.

        Args:
            copies: Copies of the model's weights by name, such as averages, in groups by what they are.
            moment: A value that differs after every update. Optimizers and batch norms write without torch's notice,
                so at another moment everything that training changes is read again. Otherwise a tensor is read only
                if somebody has written to it.
            whole: Whether to check the whole model, or only what training changes in this phase.
        """
        groups = {"": self._model.state_dict() if whole else self._changing, **(copies or {})}
        due = {
            f"{name} of {group}" if group else name: (name, local(tensor))
            for group, tensors in groups.items()
            for name, tensor in tensors.items()
            if name in self._expected and _is_read(local(tensor))
        }
        stamps = {
            label: (moment if name in self._changing else None, tensor.data_ptr(), tensor._version)
            for label, (name, tensor) in due.items()
            if not tensor.is_inference()
        }
        unread = {n: tensor for n, (_, tensor) in due.items() if n not in stamps or self._read.get(n) != stamps[n]}
        broken = [name for name in _suspects(unread) if not unread[name].isfinite().all()]  # a finite sum may overflow
        self._read |= {name: stamp for name, stamp in stamps.items() if name not in broken}
        return broken


def check_weights_to_save(model: nn.Module) -> None:
    """Check that no parameter is NaN, and that all statistics of norm layers are finite, as after training by hand.

    Infinite parameters and other buffers may be masks.

    Raises:
        NonFiniteError: If they are not.
    """
    norms = {id(buffer) for norm in model.modules() if isinstance(norm, _NormBase) for buffer in norm.buffers()}
    statistics = {name: buffer for name, buffer in model.named_buffers() if id(buffer) in norms}
    values = {**dict(model.named_parameters()), **statistics}
    values = {name: value for name, value in values.items() if _is_read(value)}
    broken = [
        name
        for name in _suspects(values)
        if values[name].isnan().any() or (name in statistics and values[name].isinf().any())
    ]
    if broken:
        raise NonFiniteError(
            f"{some_of(broken)} became NaN or infinite. Nothing was written. Set these weights anew, or load those of "
            f"before."
        )


@torch.no_grad()
def _suspects(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors whose sum is not finite: NaN and infinity always reach it."""
    devices: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        devices.setdefault(value.device, {})[name] = _sum(value)
    finite = {
        name: whole
        for sums in devices.values()
        for name, whole in zip(sums, torch.stack(list(sums.values())).isfinite().tolist(), strict=True)
    }
    return [name for name in tensors if not finite[name]]


def _sum(tensor: Tensor) -> Tensor:
    real = tensor.abs() if tensor.is_complex() else tensor
    if real.dtype.itemsize == 1:  # torch does not add up 8-bit floats
        real = real.to(torch.float32)
    return real.sum(dtype=torch.promote_types(real.dtype, torch.float32)).float()


def _is_read(tensor: Any) -> bool:
    """Return whether a value of a state dict holds floating-point numbers that torch can read as they are."""
    if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__ and not is_lazy(tensor)
    return plain and tensor.layout is torch.strided and not tensor.is_meta
