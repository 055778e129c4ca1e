"""A server as a process: where it listens, and what a signal leaves unanswered: nothing."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from finetune import ArgumentError
from finetune.serve import create_app, serve
from tests.helpers.processes import ROOT
from tests.serve.test_app import content, image_tuner

PROGRAM = """
import sys
from finetune.serve import create_app, serve
from finetune.signals.stops import exit_on_sigterm
from tests.serve.test_app import image_tuner

with exit_on_sigterm():
    serve(create_app(image_tuner()), port=0, ready=lambda url: print(url, flush=True))
"""


@contextmanager
def server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline().rpartition(":")[2])
        process.kill()


def ask(port: int, image: bytes, sent: Callable[[], object] = lambda: None) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/api/predict", image, {"Content-Type": "image/png"})
        sent()
        return connection.getresponse().status


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_leaves_no_request_unanswered(number: signal.Signals, code: int) -> None:
    image, sent = content(1, size=(1200, 900)), threading.Semaphore(0)
    with server() as (process, port):
        assert ask(port, image) == 200

        with ThreadPoolExecutor(24) as threads:
            statuses = threads.map(lambda _: ask(port, image, sent.release), range(24))
            for _ in range(24):
                assert sent.acquire(timeout=30)
            assert ask(port, image) == 200  # by now the others' bytes have been read
            process.send_signal(number)
            assert list(statuses) == [200] * 24
        assert process.wait(30) == code
        with pytest.raises(ConnectionRefusedError):
            ask(port, image)


def test_a_taken_port_and_a_strange_address_are_errors() -> None:
    app = create_app(image_tuner())
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ArgumentError, match="cannot be listened on"):
        serve(app, port=taken.getsockname()[1])
    with pytest.raises(ArgumentError, match="Expected an address of this machine"):
        serve(app, host="203.0.113.1", port=0)
    with pytest.raises(ArgumentError, match="at most 65535"):
        serve(app, port=70_000)
