"""The global random generators of torch: one of the CPU, and one of each accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune.devices.device import module_in_use


def torch_generators() -> tuple[torch.Generator, ...]:
    """Return torch's global generators: the CPU's, and those of the accelerator once it is in use."""
    module = module_in_use()
    if module is None:
        return (torch.default_generator,)
    own = (torch.mps._get_default_mps_generator(),) if module is torch.mps else module.default_generators
    return (torch.default_generator, *own)


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the states of torch's global generators on exit."""
    states = [(generator, generator.get_state()) for generator in torch_generators()]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
