"""Whether the Hugging Face hub answers is asked once, and briefly."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.errors import CheckpointError
from finetune.model.families.hub import check_reachable

hub = pytest.importorskip("huggingface_hub")
WAYS_OUT = "Or start from random weights."


@pytest.fixture
def silent() -> Iterator[str]:
    """Return the address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("network", ["closed", "silent"])
def test_without_an_answer_the_error_names_the_file_its_place_and_the_ways_out(
    network: str, silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "ENDPOINT", silent if network == "silent" else "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        check_reachable("someone/net", "model.safetensors", WAYS_OUT, seconds=0.5)
    assert time.monotonic() - start < 5
    for part in ("model.safetensors of someone/net", str(tmp_path / "models--someone--net"), "hf download", WAYS_OUT):
        assert part in str(caught.value)
