"""The hosts that a server answers for."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit


def host_of(header: str) -> str:
    """Return the host of a `Host` header in lower case, without its port, or `""` if it is malformed.

    Example:
        >>> host_of("LocalHost:8000"), host_of("[::1]:8000"), host_of("a b")
        ('localhost', '::1', '')
    """
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return ""
    malformed = parts.username is not None or parts.path or parts.query or " " in header
    return "" if malformed else (parts.hostname or "")


def is_answered_for(host: str, names: Collection[str]) -> bool:
    """Return whether a server answers requests to a host: an address, this machine's name, or one of `names`.

    A page of another site that lets its own name point to this machine (DNS rebinding) could otherwise read answers. An
    address cannot be made to point elsewhere.

    Example:
        >>> is_answered_for("127.0.0.1", []), is_answered_for("evil.example", [])
        (True, False)
    """
    if host in ("localhost", socket.gethostname().lower(), *names):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
