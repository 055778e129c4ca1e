"""Child processes with limits to memory and time. They are forked, so what the parent has imported takes no time."""

from __future__ import annotations

import gc
import json
import logging
import mmap
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

Work = Callable[[], Any]

_TICK = 0.001


class Ended(NamedTuple):
    """How a child ended.

    Attributes:
        value: What its work returned, as JSON holds it; None if it did not return.
        error: Name and message of the exception that its work raised, or `""`.
        code: Exit code, or the negative number of the signal that ended it.
        seconds: Duration.
        megabytes: Largest resident memory above that at its start.
    """

    value: Any
    error: str
    code: int
    seconds: float
    megabytes: float

    @property
    def hung(self) -> bool:
        """Whether it had to be killed, or ran into its limit of time."""
        return self.code in (-signal.SIGKILL, -signal.SIGALRM)


class Child:
    """A running child.

    Args:
        work: Function to call. Its result is passed on as JSON.
        seconds: Time after which the child is killed; None for no limit.
        megabytes: Memory that it may ask for beyond that of its parent; None for no limit.
        quiet: Whether to leave out its log.
    """

    def __init__(
        self, work: Work, *, seconds: float | None = None, megabytes: int | None = None, quiet: bool = True
    ) -> None:
        self._report = tempfile.TemporaryFile()  # noqa: SIM115 (not a pipe, which a long result would fill)
        self._begun = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.setpgid(0, 0)
                code = _report(work, self._report, seconds, megabytes, quiet)
            finally:
                os._exit(code)

    def is_running(self) -> bool:
        """Return whether the child has not ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def signal(self, number: int) -> None:
        """Send a signal to the child and its own children."""
        os.killpg(self.pid, number)

    def wait(self, seconds: float | None = None) -> Ended:
        """Wait until the child has ended, and kill it after some seconds."""
        limit = None if seconds is None else time.monotonic() + seconds
        while self.is_running():
            if limit is not None and time.monotonic() > limit:
                self.signal(signal.SIGKILL)
            time.sleep(_TICK)
        _, status = os.waitpid(self.pid, 0)
        with self._report as report:
            report.seek(0)
            sent = report.read()
        seconds = time.monotonic() - self._begun
        value, error, megabytes = json.loads(sent) if sent else (None, "", 0.0)
        return Ended(value, error, os.waitstatus_to_exitcode(status), seconds, megabytes)


def in_child(work: Work, **limits: Any) -> Ended:
    """Call a function in a child and wait for its end."""
    return Child(work, **limits).wait()


class Shared:
    """Numbers that a parent and its children see."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * 8)

    def __getitem__(self, i: int) -> int:
        return int.from_bytes(self._memory[i * 8 : i * 8 + 8], "little")

    def __setitem__(self, i: int, value: int) -> None:
        self._memory[i * 8 : i * 8 + 8] = value.to_bytes(8, "little")


def resident(*, reset: bool = False) -> float:
    """Return the largest resident memory since it was reset, in MB; 0 where the system does not tell."""
    with suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return 0.0


def _report(work: Work, report: IO[bytes], seconds: float | None, megabytes: int | None, quiet: bool) -> int:
    """Call the function, and write its result, error and memory to a file."""
    gc.freeze()  # or the first collection copies the memory of all objects of the parent
    _limit(seconds, megabytes)
    torch.set_num_threads(1)
    if quiet:
        logging.disable()
        warnings.simplefilter("ignore")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    before = resident(reset=True)
    value, error, code = None, "", 0
    try:
        value = work()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException as raised:
        if not quiet:
            traceback.print_exc()
        error, code = f"{type(raised).__module__}.{type(raised).__name__}: {raised}"[:500], 1
    report.write(json.dumps([value, error, round(resident() - before, 1)]).encode())
    report.flush()
    return code


def _limit(seconds: float | None, megabytes: int | None) -> None:
    if seconds is not None:
        signal.alarm(max(1, round(seconds)))  # ends the child, since nothing handles it
    if megabytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
