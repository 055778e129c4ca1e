"""Mixed precision: the number format of the forward pass, loss scaling, and the check that updates are finite."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.devices.device import has_bf16, has_own_memory
from finetune.distributed.divided import is_divided, whole
from finetune.errors import ArgumentError, NonFiniteError, one_of

log = logging.getLogger("finetune")

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# Number of updates on a GPU after which the host waits for the device to check that they were finite.
_INTERVAL = 32

# Below this number of parameters, matrix products do not dominate the time and bf16 would not help.
_LARGE = 1_000_000

# Gradients that overflow even at this scale are non-finite for another reason.
_SMALLEST_SCALE = 2.0**-10


class Precision:
    """The number format of the forward pass on a device.

    `"auto"` is bf16 on a GPU that supports it, fp16 with gradient scaling on an older GPU, and fp32 on a CPU. Weights
    keep their format; only the operations that autocast covers change theirs.

    The host does not wait for a GPU to learn whether an update is finite. A fused optimizer skips the first update that
    is not finite and all later ones until the host checks.

    Args:
        name: `"fp32"`, `"bf16"`, `"fp16"` or `"auto"`.
        device: Device on which the model trains.

    Attributes:
        interval: Number of updates between two checks by the host.
        failed: Boolean tensor on the device that is True if an update since the last check was not finite. None if the
            host checks every update.

    Raises:
        ArgumentError: If there is no such precision.

    Example:
        >>> Precision("auto", torch.device("cpu")).name
        'fp32'
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = _resolve(name, device)
        self.device = device
        self.dtype = _DTYPES[self.name]
        self.scaler = torch.amp.GradScaler(device.type) if self.name == "fp16" else None
        self.interval = _INTERVAL if has_own_memory(device) else 1
        self.failed: Tensor | None = None
        self._unread: list[Tensor] = []  # per update, bool [2]: the loss is finite; the loss and the gradients are

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context for a forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of `loss`, scaled if the format requires it."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizer: Optimizer, loss: Tensor, max_grad_norm: float | None) -> bool:
        """Clip the gradients, step the optimizer and clear the gradients. Return whether the optimizer stepped.

        With fp16, an update whose gradients overflow is skipped and the loss scale is lowered.

        Raises:
            NonFiniteError: If the loss or a gradient is NaN or infinite, or with gradient scaling, at every scale. The
                optimizer has not stepped since then.
        """
        try:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            kinds = [[p for p in parameters if is_divided(p) is divided] for divided in (False, True)]
            norm = _total_norm(kinds)
            self._watch(optimizer, loss, norm)
            if max_grad_norm is not None:
                for kind in kinds:
                    nn.utils.clip_grads_with_norm_(kind, max_grad_norm, norm)
            if self.scaler is None:
                optimizer.step()
                return True
            return self._scaled_step(self.scaler, optimizer)
        except NonFiniteError:
            if self.scaler is not None:
                self.scaler.update(self.scaler.get_scale())  # ready for another update, at the same scale
            raise
        finally:
            optimizer.zero_grad(set_to_none=True)

    def start(self) -> None:
        """Discard unchecked updates of an interrupted run."""
        self._unread, self.failed = [], None

    def check(self) -> None:
        """Wait for the device and check that the updates so far were finite.

        Raises:
            NonFiniteError: If an update was not finite. That update and all later ones were skipped.
        """
        read = torch.stack(self._unread).tolist() if self._unread else []
        self._unread, self.failed = [], None
        for number, (loss, whole_update) in enumerate(read):
            if not whole_update:
                error = NonFiniteError(f"The {'norm of the gradients' if loss else 'loss'} became NaN or infinite")
                error.updates_since = len(read) - 1 - number
                raise error

    def _watch(self, optimizer: Optimizer, loss: Tensor, norm: Tensor) -> None:
        """Check that an update is finite, or make the optimizer skip it on the device if it is not."""
        total = loss if self.scaler is not None else loss + norm.to(loss.device)
        finite = torch.stack([loss, total]).isfinite()
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
        return lowered >= scale  # the scaler lowers the scale exactly when it skips an update

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient scaler, empty if there is none."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the gradient scaler."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def _total_norm(kinds: Iterable[Sequence[Tensor]]) -> Tensor:
    """Return the norm of all gradients, by kind: those that each process has, and those that are divided."""
    gradients = [[p.grad for p in kind if p.grad is not None] for kind in kinds]
    norms = [whole(nn.utils.get_total_norm(kind)) for kind in gradients if kind]
    return norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)


def _resolve(name: str, device: torch.device) -> str:
    if one_of("precision", name, ("auto", *_DTYPES)) != "auto":
        return name
    if not has_own_memory(device):
        return "fp32"
    return "bf16" if has_bf16(device) else "fp16"


def try_step(optimizer: Optimizer, sparse: Collection[int]) -> None:
    """Step an optimizer once on stand-ins of one element for its parameters, and drop their state.

    Args:
        optimizer: The optimizer. Whatever its step raises is passed on.
        sparse: Identities of the parameters whose gradients are sparse tensors.
    """
    held = [group["params"] for group in optimizer.param_groups]
    try:
        for group, parameters in zip(optimizer.param_groups, held, strict=True):
            group["params"] = [_stand_in(parameter, sparse=id(parameter) in sparse) for parameter in parameters]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own on sparse tensors
            optimizer.step()
    finally:
        for group, parameters in zip(optimizer.param_groups, held, strict=True):
            for stand_in in group["params"]:
                optimizer.state.pop(stand_in, None)
            group["params"] = parameters


def state_after_step(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """Step an optimizer of a stand-in once, and return the state that it keeps for it. Its errors are passed on."""
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return dict(optimizer.state[parameter])


def _stand_in(parameter: Tensor, *, sparse: bool) -> nn.Parameter:
    """Return a parameter of one element with a gradient of zero."""
    made = nn.Parameter(parameter.new_zeros((1,) * parameter.dim()))
    made.grad = torch.zeros_like(made).to_sparse(1) if sparse else torch.zeros_like(made)
    return made


def hint_at_bf16(precision: Precision, parameters: int) -> None:
    """Log a hint if bf16 would save time: on a CPU with native bf16, for a model with enough parameters."""
    if precision.device.type != "cpu" or precision.name != "fp32" or parameters < _LARGE:
        return
    known = torch.cpu.get_capabilities()
    if known.get("avx512_bf16") or known.get("amx_bf16") or known.get("arm_bf16"):
        log.info("This CPU supports bf16: FineTuner(..., precision='bf16') usually halves the training time.")


def check_half_weights(parameters: Iterable[Tensor], precision: Precision, stacklevel: int) -> None:
    """Warn if trainable weights are stored in half precision.

    Raises:
        ArgumentError: If they are float16 and the precision scales their gradients, which torch does not unscale.
    """
    dtypes = {parameter.dtype for parameter in parameters}
    if precision.scaler is not None and torch.float16 in dtypes:
        raise ArgumentError(
            "The trainable weights are float16, and precision='fp16' needs float32 weights, whose gradients it scales. "
            "Pass model.float(); the computation then still runs in float16."
        )
    if dtypes & {torch.float16, torch.bfloat16}:
        warnings.warn(
            "The trainable weights are in half precision, in which most updates are too small to change them. Pass "
            "model.float() instead; with precision='bf16' only the computation runs in half precision.",
            stacklevel=stacklevel,
        )
