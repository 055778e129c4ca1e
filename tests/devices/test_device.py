"""Devices by name, and training on one with a memory of its own: a GPU, or else a stand-in for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetune.devices.device import device_types, hardware_of, has_own_memory, resolve_device
from finetune.errors import ArgumentError

CPU = torch.device("cpu")


def test_devices_by_name(accelerator: torch.device) -> None:
    assert resolve_device("cpu") == resolve_device(CPU) == CPU
    assert resolve_device("auto") == resolve_device(accelerator.type) == accelerator
    assert resolve_device(f"{accelerator.type}:0") == torch.device(accelerator.type, 0)
    assert device_types() == ("cpu", accelerator.type)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the machine has a GPU")
def test_without_a_gpu_the_device_is_the_cpu() -> None:
    assert resolve_device("auto") == CPU


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "cuda:99", 1.5])
def test_an_unavailable_device_is_an_error(device: Any) -> None:
    with pytest.raises(ArgumentError, match=r"device .* cannot be used: .* Expected 'auto', 'cpu'"):
        resolve_device(device)


def test_a_gpu_has_a_memory_and_a_name(accelerator: torch.device) -> None:
    assert (has_own_memory(CPU), hardware_of(CPU)) == (False, "")
    assert has_own_memory(accelerator)
    assert hardware_of(accelerator)
