"""Devices: which one to train on, and how those with a memory of their own differ from the CPU.

Torch calls a device beside the CPU the accelerator of the machine: CUDA, XPU, MPS, or one that an extension adds. The
rest of the package asks `torch.accelerator` or this file, and knows no kind of device by name.
"""

from __future__ import annotations

from typing import Any

import torch

from finetune.errors import ArgumentError

# Apple's GPUs share the memory of the host. Tensors on "meta" have none.
_WITHOUT_MEMORY = ("cpu", "mps", "meta")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return a device by name; `"auto"` selects the accelerator of the machine if there is one.

    Raises:
        ArgumentError: If the device is not available.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ArgumentError(
            f"The device {device!r} cannot be used: {error} Expected 'auto', 'cpu', 'cuda' or an index as in 'cuda:1'."
        ) from error


def has_own_memory(device: torch.device) -> bool:
    """Return whether a device has a memory of its own, as GPUs do, and runs behind the host.

    Copies from page-locked host memory then do not make the host wait, but reading a result does.

    Example:
        >>> has_own_memory(torch.device("cpu")), has_own_memory(torch.device("cuda"))
        (False, True)
    """
    return device.type not in _WITHOUT_MEMORY


def has_bf16(device: torch.device) -> bool:
    """Return whether a device with its own memory computes in bfloat16, and does not merely emulate it."""
    return bool(torch.get_device_module(device).is_bf16_supported(including_emulation=False))


def hardware_of(device: torch.device) -> str:
    """Return the product name of a device, such as "NVIDIA H200"; empty for the CPU."""
    return str(torch.get_device_module(device).get_device_name(device)) if has_own_memory(device) else ""


def device_types() -> tuple[str, ...]:
    """Return the types of the devices that this build of torch supports: `"cpu"`, and that of the accelerator."""
    accelerator = torch.accelerator.current_accelerator()
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def wait_for_device() -> None:
    """Wait until the accelerator has computed everything, if it is in use."""
    if module_in_use() is not None:
        torch.accelerator.synchronize()


def module_in_use() -> Any | None:
    """Return torch's module for the accelerator, such as `torch.cuda`, if it is in use. It is not initialized here."""
    accelerator = torch.accelerator.current_accelerator()
    module: Any = None if accelerator is None else torch.get_device_module(accelerator)
    in_use = getattr(module, "is_initialized", getattr(module, "is_available", None))  # MPS has only the latter
    return module if in_use is not None and in_use() else None
