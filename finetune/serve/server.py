"""`serve`: runs an app under waitress until a signal ends it."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from finetune.errors import ArgumentError, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask

LOOPBACK = "127.0.0.1"

_LAST_PORT = 65_535
_PATIENCE = 20  # seconds for the last answers after a signal
_SPARE_THREADS = 16  # beyond those whose requests wait, to answer that the queue is full
_MIN_CONNECTIONS = 512  # beyond the limit, clients are not answered at all, not even that the queue is full


def serve(
    app: Flask, *, host: str = LOOPBACK, port: int = 8000, queue: int = 256, ready: Callable[[str], object] = print
) -> None:
    """Serve an app of `create_app` until SIGINT or SIGTERM, then answer all pending requests.

    Args:
        app: App to serve.
        host: Address to listen on. The default is reached from this machine only.
        port: Port to listen on; 0 for a free one.
        queue: Number of requests that may wait, as in `create_app`.
        ready: Function that is called with the URL once requests are accepted.

    Raises:
        ArgumentError: If the port is taken or the address is not this machine's.
    """
    from waitress.server import create_server

    largest = app.config["MAX_CONTENT_LENGTH"]
    listener = _listening(host, port)
    server: Any = create_server(
        app,
        sockets=[listener],
        threads=queue + _SPARE_THREADS,
        connection_limit=max(2 * queue, _MIN_CONNECTIONS) + _SPARE_THREADS,
        max_request_body_size=largest,
        # No request or response is written to a temporary file.
        inbuf_overflow=largest + 2**20,
        outbuf_overflow=2**26,
        ident=None,
        clear_untrusted_proxy_headers=True,
    )
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{listener.getsockname()[1]}")
    try:
        _loop(server)
    except (KeyboardInterrupt, SystemExit):
        _finish(server)
        raise
    finally:
        server.task_dispatcher.shutdown(timeout=_PATIENCE)  # a thread killed while it decodes could abort the process
        app.extensions["finetune"].close()


def _loop(server: Any, count: int | None = None) -> None:
    """Handle events of the connections, without end or `count` times."""
    server.asyncore.loop(timeout=0.5, map=server._map, use_poll=True, count=count)


def _finish(server: Any) -> None:
    """Accept no more connections, and send the answers to the requests that have arrived."""
    server.asyncore.dispatcher.close(server)  # the listening socket alone; the threads still need the rest
    end = time.monotonic() + _PATIENCE
    while any(map(_is_busy, server.active_channels.values())) and time.monotonic() < end:
        _loop(server, count=1)


def _is_busy(channel: Any) -> bool:
    return bool(channel.requests or channel.total_outbufs_len)


def _listening(host: str, port: int) -> socket.socket:
    port = whole_number("port", port, at_least=0)
    if port > _LAST_PORT:
        raise ArgumentError(f"Expected port to be at most {_LAST_PORT}, but got {port}.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ArgumentError(
            f"{host}:{port} cannot be listened on: {error}. Expected an address of this machine and a free port."
        ) from error
