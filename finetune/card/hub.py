"""`push`: a checkpoint to a repository of the Hugging Face hub, the only upload of the package."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.card.write_card import pushed_files
from finetune.checkpoint.schema import Checkpoint
from finetune.errors import ArgumentError, CheckpointError, reason


def push(
    checkpoint: Checkpoint, repo: str, *, private: bool | None = None, token: str | None = None, message: str
) -> str:
    """Upload a checkpoint and its card to a repository of the hub in one commit, and return its address.

    Args:
        checkpoint: Content of the checkpoint.
        repo: Repository, which is created if it does not exist.
        private: Whether a new repository is private; None for the default of its owner.
        token: Token with write access; None for that of `HF_TOKEN` or of `hf auth login`.
        message: Message of the commit.

    Raises:
        ArgumentError: If huggingface_hub is not installed, the name is no repository, or there is no token.
        CheckpointError: If the hub refuses the upload or cannot be reached.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
    except ImportError as error:
        raise ArgumentError("push_to_hub needs the huggingface_hub package: pip install huggingface_hub.") from error
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise ArgumentError(f"{repo!r:.200} is no repository of the hub. Expected a name such as 'me/dogs'.") from error
    token = token or hub.get_token()
    if not token:
        raise ArgumentError(
            "The hub needs a token to write. Pass token=..., set the environment variable HF_TOKEN, or run `hf auth "
            "login`; tokens are made at https://huggingface.co/settings/tokens."
        )
    api = hub.HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder, _failure_explained(repo):
        files = pushed_files(Path(folder), checkpoint, repo)
        created = api.create_repo(repo, private=private, exist_ok=True)
        operations = [hub.CommitOperationAdd(name, str(path)) for name, path in files.items()]
        api.create_commit(created.repo_id, operations, commit_message=message)
        return str(created)


@contextmanager
def _failure_explained(repo: str) -> Iterator[None]:
    """Convert the errors of an upload to a CheckpointError that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"The checkpoint is not uploaded to {repo}, because HF_HUB_OFFLINE forbids it. Remove that variable from "
            f"the environment, and start Python again."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise CheckpointError(
            f"The hub refuses the upload to {repo} ({status}). {_advice(status, repo, error)}"
        ) from error
    except Exception as error:  # of the connection, whose library differs between versions
        raise CheckpointError(f"The checkpoint could not be uploaded to {repo}: {reason(error)}") from error


def _advice(status: int, repo: str, error: Exception) -> str:
    if status == 401:
        return "The token is not valid. Pass another one as token=..., or run `hf auth login`."
    if status == 403:
        return (
            f"The token may not write there. Pass one with write access to {repo.partition('/')[0]!r}, or choose "
            f"another repository."
        )
    if status == 404:
        return "There is no such repository or owner, or the token may not see it."
    return " ".join(str(error).split())[:300]
