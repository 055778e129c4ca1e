"""The Hugging Face hub: its cache, and whether it can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import CheckpointError, reason


def check_reachable(repository: str, file: str, instead: str, seconds: float = 5.0) -> None:
    """Check with one short request that the hub answers.

    Args:
        repository: Repository on the hub.
        file: File that is missing in the cache.
        instead: What to do without it, as a sentence.
        seconds: Seconds to wait. The libraries themselves try again for half a minute and longer.

    Raises:
        CheckpointError: If the hub does not answer, with the file, the place for it and the command that gets it.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception as error:  # the client's own types differ between versions
        folder = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
        raise CheckpointError(
            f"{file} of {repository} is not in the Hugging Face cache, {folder}, and {constants.ENDPOINT} could not be "
            f"reached ({reason(error)}). Run `hf download {repository}` on a machine with network access and copy that "
            f"folder. {instead}"
        ) from error


@contextmanager
def offline() -> Iterator[None]:
    """Keep the hub's client within its cache."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
