"""A stand-in for a GPU, on which the tests run the code for one where there is none.

It is a device of torch's own kind for extensions, `PrivateUse1`, in C++ (stand_in.cpp). Tensors have to be moved to it,
and its memory, its stream, its generators and its autocast are its own. Its kernels are those of the CPU.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

NAME = "stand_in"
_SOURCE = Path(__file__).with_suffix(".cpp")
_BUILD = _SOURCE.parents[2] / "build"
_COMPILER = shutil.which("c++")
_OPTIONS = ("-shared", "-fPIC", "-std=c++20", "-O1", "-w")

AVAILABLE = sys.platform == "linux" and _COMPILER is not None


class _Module:
    """The functions that torch and the package look for in `torch.stand_in`, as in `torch.cuda`."""

    default_generators: tuple[torch.Generator, ...] = ()

    @staticmethod
    def is_available() -> bool:
        return bool(_Module.default_generators)

    is_initialized = is_available

    @staticmethod
    def device_count() -> int:
        return len(_Module.default_generators)

    @staticmethod
    def current_device() -> int:
        return torch.accelerator.current_device_index()

    @staticmethod
    def get_device_name(device: object = None) -> str:
        return "Stand-in"

    @staticmethod
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation  # as on a GPU of before 2020, where "auto" is fp16

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        for generator in _Module.default_generators:
            generator.manual_seed(seed)

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False


@contextmanager
def devices(count: int = 2) -> Iterator[torch.device]:
    """Let the machine have stand-in devices within the context, as its `torch.accelerator`."""
    # The first backward pass starts a thread per device, after which the process could not be forked any more.
    torch.ones((), requires_grad=True).backward()
    functions = _registered()
    functions.devices(count)
    _Module.default_generators = tuple(torch.Generator(f"{NAME}:{index}") for index in range(count))
    for generator in _Module.default_generators:
        functions.draw_from(generator)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield torch.device(NAME)
    finally:
        _Module.default_generators = ()
        functions.devices(0)


@contextmanager
def limited(device: torch.device, size: int) -> Iterator[None]:
    """Limit the memory of a GPU or stand-in to some bytes above its use."""
    torch.accelerator.empty_cache()
    reserved, total = torch.accelerator.memory_reserved(device), torch.accelerator.get_memory_info(device)[1]
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction((reserved + size) / total)
    else:
        _registered().limit(device.index or 0, reserved + size)
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
        else:
            _registered().limit(device.index or 0, total)


def asynchronous_copies() -> int:
    """Return the number of copies from and to stand-ins so far that the host did not wait for."""
    return int(_registered().asynchronous_copies())


@cache
def _registered() -> Any:
    """Load the stand-in, which has no devices yet."""
    torch.ops.load_library(_library())
    torch.utils.rename_privateuse1_backend(NAME)
    torch.utils.generate_methods_for_privateuse1_backend()
    torch._register_device_module(NAME, _Module)  # type: ignore[arg-type]
    return torch.ops.stand_in


def _library() -> Path:
    """Compile the stand-in, which takes ten seconds, unless that has been done with this version of torch."""
    key = hashlib.sha256(_SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = _BUILD / f"{NAME}-{key}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        home, unfinished = Path(torch.__file__).parent, library.with_suffix(f".{os.getpid()}")
        found = (f"-I{home}/include", f"-I{home}/include/torch/csrc/api/include", f"-L{home}/lib")
        command = (str(_COMPILER), *_OPTIONS, str(_SOURCE), *found, "-ltorch_cpu", "-lc10", "-o", str(unfinished))
        subprocess.run(command, check=True)
        unfinished.replace(library)  # at once, for other processes that look for it
    return library
