"""`Ticker`: a function that is called a few times per second while the work goes on."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextvars import copy_context

log = logging.getLogger("finetune")

# Held while a display draws, and while the process forks. A forked loader worker would else inherit the locks of a
# terminal or a file in the middle of a line, and wait for them forever at its first warning.
_drawing = threading.RLock()


class Ticker:
    """Thread that calls a function at regular intervals. It ends with the process, and after an error.

    Args:
        tick: Function to call.
        interval: Seconds between two calls.
    """

    def __init__(self, tick: Callable[[], object], interval: float) -> None:
        self._tick, self._interval = tick, interval
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the calls, unless they have been started."""
        if self._thread is None:
            # A notebook knows the cell to draw in by the context.
            self._thread = threading.Thread(target=copy_context().run, args=(self._run,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the calls. One that is under way is waited for."""
        self._stopped.set()
        with _drawing:
            pass

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            with _drawing:
                if self._stopped.is_set():
                    return
                try:
                    self._tick()
                except Exception:  # such as a closed terminal, which the work does not need
                    log.debug("The progress is no longer displayed.", exc_info=True)
                    return


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_drawing.acquire, after_in_parent=_drawing.release, after_in_child=_drawing.release)
