"""Start the command line in several processes, as torchrun does."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence


def in_torchrun() -> bool:
    """Return whether torchrun has started this process.

    Example:
        >>> in_torchrun()
        False
    """
    return "TORCHELASTIC_RUN_ID" in os.environ


def speaks() -> bool:
    """Return whether this process is the one of a run that speaks to the user, also before it has joined the others.

    Example:
        >>> speaks()
        True
    """
    return not in_torchrun() or int(os.environ["RANK"]) == 0


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `finetune` in several processes on this machine, and return the exit code of the first that fails, or 0.

    Args:
        processes: Number of processes. They share the cores of the machine.
        arguments: Arguments of the command line.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the failed process has said why
    try:
        main(["--standalone", f"--nproc-per-node={processes}", "-m", "--", "finetune", *arguments])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return int(failure.exitcode)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0
