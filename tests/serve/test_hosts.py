"""The hosts that a server answers for."""

from __future__ import annotations

import socket

import pytest

from finetune.serve.hosts import host_of, is_answered_for


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost:8000", "localhost"),
        ("Dogs.Example.org", "dogs.example.org"),
        ("[::1]:8000", "::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("", ""),
        ("user@localhost", ""),
        ("localhost/path", ""),
        ("localhost:port", ""),
        ("[::1", ""),
        ("a b", ""),
    ],
)
def test_the_host_of_a_header(header: str, host: str) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "::1", "10.0.0.7", "dogs.example.org", socket.gethostname().lower()]
)
def test_addresses_and_own_names_are_answered_for(host: str) -> None:
    assert is_answered_for(host, {"dogs.example.org"})


@pytest.mark.parametrize("host", ["evil.example", "", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_other_names_are_not(host: str) -> None:
    assert not is_answered_for(host, {"dogs.example.org"})
