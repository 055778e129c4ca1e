"""Processes that a test starts, signals, and waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        code: Exit code; negative if a signal killed the process.
        output: Everything it printed.
        seconds: Seconds from the last signal, or without one from the line, to its end.
        left: Whether a process of its group is still there.
    """

    code: int
    output: str
    seconds: float
    left: bool


def signalled(
    command: Sequence[str | Path],
    line: str,
    *signals: signal.Signals,
    delay: float = 0.0,
    timeout: float = 60.0,
    whole_group: bool = True,
) -> Ended:
    """Run Python with these arguments, and send it signals once it has printed a line.

    Args:
        command: Arguments of Python.
        line: Text that the line contains.
        signals: Signals to send, one after the other.
        delay: Seconds to wait before each signal.
        timeout: Seconds after which the processes are killed, which raises.
        whole_group: Whether its worker processes get the signals too, as from a terminal or a scheduler.

    Raises:
        subprocess.TimeoutExpired: If it does not end.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    before = []
    try:
        for text in process.stdout:
            before.append(text)
            if line in text:
                break
        sent = time.monotonic()
        for number in signals:
            time.sleep(delay)
            sent = time.monotonic()
            if whole_group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        rest, _ = process.communicate(timeout=timeout)
        seconds = time.monotonic() - sent
        return Ended(process.returncode, "".join(before) + rest, seconds, _is_there(process.pid))
    finally:
        if _is_there(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_there(group: int, patience: float = 1.0) -> bool:
    """Return whether a process group still has a process after a while."""
    end = time.monotonic() + patience
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        if time.monotonic() > end:
            return True
        time.sleep(0.05)
