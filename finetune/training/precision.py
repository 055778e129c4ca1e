"""In which number format the forward pass runs, and what that asks of the backward pass."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.errors import ArgumentError, NonFiniteError, nearest

log = logging.getLogger("finetune")

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# So many updates are tried on a GPU before the host waits to hear whether they were finite.
_INTERVAL = 32

# A smaller model spends its time elsewhere than in multiplications.
_LARGE = 1_000_000

# Gradients that overflow at a smaller scale are not finite by themselves.
_SMALLEST_SCALE = 2.0**-10


class Precision:
    """One of `"fp32"`, `"bf16"` and `"fp16"`, on one device.

    `"auto"` is bf16 on a GPU that has it, fp16 with gradient scaling on an older one, and fp32 on a
    CPU. Weights stay as they are; only the operations that autocast lists run in the format.

    The host does not wait for a GPU to know whether an update is finite. A fused optimizer leaves out the
    first that is not, and all that come after it, until the host has read so.

    Attributes:
        interval: how many updates may be tried between two readings.
        failed: on the device, bool: whether one of the updates tried was not finite; None where each is
            read at once.

    Raises:
        ArgumentError: there is no such precision.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = _resolve(name, device)
        self.device = device
        self.dtype = _DTYPES[self.name]
        self.scaler = torch.amp.GradScaler(device.type) if self.name == "fp16" else None
        self.interval = _INTERVAL if device.type == "cuda" else 1
        self.failed: Tensor | None = None
        self._unread: list[Tensor] = []  # bool [2] an update: whether its loss, and that and its gradients, are finite

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for a forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of `loss`, scaled where the format needs it."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizer: Optimizer, loss: Tensor, max_grad_norm: float | None) -> bool:
        """Clip the gradients, let the optimizer step, and drop them; tell whether it stepped.

        With fp16 an update whose gradients overflowed is skipped and the scale lowered.

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite, with gradient scaling at every
                scale. The optimizer has not stepped since.
        """
        try:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            self._watch(optimizer, loss, norm)
            if max_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
            if self.scaler is None:
                optimizer.step()
                return True
            return self._scaled_step(self.scaler, optimizer)
        finally:
            optimizer.zero_grad(set_to_none=True)

    def start(self) -> None:
        """Forget the updates of a run that was broken off."""
        self._unread, self.failed = [], None

    def check(self) -> None:
        """Wait for the device to say whether the updates tried so far were finite.

        Raises:
            NonFiniteError: one was not; it and those after it were left out.
        """
        read = torch.stack(self._unread).tolist() if self._unread else []
        self._unread, self.failed = [], None
        for number, (loss, all_of_it) in enumerate(read):
            if not all_of_it:
                error = NonFiniteError(f"The {'norm of the gradients' if loss else 'loss'} became NaN or infinite")
                error.updates_since = len(read) - 1 - number
                raise error

    def _watch(self, optimizer: Optimizer, loss: Tensor, norm: Tensor) -> None:
        """Check that an update is finite, or have the optimizer leave it out on the device if it is not."""
        together = loss if self.scaler is not None else loss + norm.to(loss.device)
        finite = torch.stack([loss, together]).isfinite()
        self._unread.append(finite)
        guards = self.interval > 1 and self.scaler is None and getattr(optimizer, "_step_supports_amp_scaling", False)
        if guards:
            self.failed = ~finite[1] if self.failed is None else self.failed | ~finite[1]
            optimizer.found_inf = self.failed.float()  # type: ignore[attr-defined]
        if not guards or len(self._unread) >= self.interval:
            self.check()

    @staticmethod
    def _scaled_step(scaler: torch.amp.GradScaler, optimizer: Optimizer) -> bool:
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        lowered = scaler.get_scale()
        if lowered < min(scale, _SMALLEST_SCALE):
            raise NonFiniteError("The norm of the gradients stays NaN or infinite at every gradient scale")
        return lowered >= scale  # it is lowered exactly when the update was skipped

    def state_dict(self) -> dict[str, Any]:
        """Return the gradient scaler's state; empty without one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the gradient scaler's state back."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def _resolve(name: str, device: torch.device) -> str:
    known = ("auto", *_DTYPES)
    if name not in known:
        raise ArgumentError(
            f"There is no precision {name!r}.{nearest(str(name), known)} Expected one of {', '.join(known)}."
        )
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of that name; `"auto"` is a GPU if there is one.

    Raises:
        ArgumentError: there is no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ArgumentError(
            f"The device {device!r} cannot be used: {error} Expected 'auto', 'cpu', 'cuda' or such as 'cuda:1'."
        ) from error


def hint_at_bf16(precision: Precision, weights: int) -> None:
    """Say so where bf16 would save time: on a CPU that multiplies it by itself, for a model of so many weights."""
    if precision.device.type != "cpu" or precision.name != "fp32" or weights < _LARGE:
        return
    known = torch.cpu.get_capabilities()
    if known.get("avx512_bf16") or known.get("amx_bf16") or known.get("arm_bf16"):
        log.info("This CPU computes in bf16 too: FineTuner(..., precision='bf16') usually trains in half the time.")


def warn_of_half_weights(parameters: Iterable[Tensor], stacklevel: int) -> None:
    """Warn where weights that train are themselves in half precision."""
    if {parameter.dtype for parameter in parameters} & {torch.float16, torch.bfloat16}:
        warnings.warn(
            "The weights that train are in half precision, in which most updates are too small to change them. "
            "Give the model as model.float(); with precision='bf16' only the computation is in half precision.",
            stacklevel=stacklevel,
        )
