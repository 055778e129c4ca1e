"""Fake reports of the operating system, for tests of decisions that depend on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def report_free_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let the system report `size` bytes of free memory, and every folder as being on a disk."""
    reports = {Path("/proc/meminfo"): f"MemAvailable: {-(-size // 1024)} kB", Path("/proc/mounts"): ""}
    read_text = Path.read_text

    def reported(path: Path, *args: Any, **kwargs: Any) -> str:
        return reports[path] if path in reports else read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", reported)
