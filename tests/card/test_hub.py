"""`push_to_hub` against a server on this machine: the same files arrive, and each refusal says what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune import FineTuner
from finetune.checkpoint import schema
from finetune.cli import main
from finetune.errors import ArgumentError, CheckpointError
from tests.helpers.hub_server import TOKEN, Hub, serving
from tests.helpers.models import small_mlp
from tests.helpers.tensors import gaussian_blobs

hub_library = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

# The library passes its own client an argument that the client calls outdated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Serve a hub, which the library takes for the real one, and leave no token to find."""
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server


def trained() -> FineTuner:
    tuner = FineTuner(small_mlp(), device="cpu")
    tuner.fit(gaussian_blobs(), gaussian_blobs(9), epochs=2, progress=False)
    return tuner


def test_checkpoint_and_card_arrive_in_one_commit(hub: Hub, tmp_path: Path) -> None:
    tuner = trained()
    address = tuner.push_to_hub("me/blobs", private=True, token=TOKEN, message="Second try")

    assert address == f"{hub.address}/me/blobs"
    assert hub.commits == [("me/blobs", "Second try")]
    assert hub.private["me/blobs"] in (True, "private")
    assert {name for _, name in hub.files} == {"README.md", "model.safetensors"}
    (tmp_path / "again.safetensors").write_bytes(hub.files["me/blobs", "model.safetensors"])
    again = FineTuner.load_checkpoint(tmp_path / "again.safetensors", small_mlp(), device="cpu")
    X = gaussian_blobs()[0]
    assert torch.equal(again.predict(X), tuner.predict(X))

    card = hub_library.ModelCard(hub.files["me/blobs", "README.md"].decode())
    assert card.data.library_name == "torch-finetune"
    assert 'hf_hub_download("me/blobs", "model.safetensors")' in card.content
    assert {result.metric_type for result in card.data.eval_results} == {"loss", "accuracy"}


def test_the_command_uploads_a_file_as_python_does(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained().fit(gaussian_blobs(), checkpoint_dir=tmp_path, progress=False)
    command = ["push", str(tmp_path / "last.safetensors"), "me/blobs", "--private", "--message", "Mine"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "a token to write. Set the environment variable HF_TOKEN, or run `hf auth" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    main(command)
    assert capsys.readouterr().out == f"{hub.address}/me/blobs\n"
    assert hub.commits == [("me/blobs", "Mine")]
    assert hub.private["me/blobs"] in (True, "private")
    (tmp_path / "again.safetensors").write_bytes(hub.files["me/blobs", "model.safetensors"])
    assert schema.read_progress(tmp_path / "again.safetensors") is None  # no training state


def test_the_token_of_the_environment_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    trained().push_to_hub("me/blobs")
    assert hub.commits == [("me/blobs", "Upload model")]


def test_without_a_token_nothing_is_sent(hub: Hub) -> None:
    tuner = trained()
    with pytest.raises(ArgumentError, match=r"needs a token to write. Pass token=\.\.\., set .* HF_TOKEN, or run"):
        tuner.push_to_hub("me/blobs")
    assert not hub.private
    tuner.push_to_hub("me/blobs", token=TOKEN)  # as the message says
    assert hub.commits


def test_a_wrong_token_is_said(hub: Hub) -> None:
    tuner = trained()
    with pytest.raises(CheckpointError, match=r"\(401\)\. The token is not valid\. Pass another one as token="):
        tuner.push_to_hub("me/blobs", token="hf_wrong")
    tuner.push_to_hub("me/blobs", token=TOKEN)
    assert hub.commits


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, r"\(403\)\. The token may not write there\. Pass one with write access to 'you'"),
        (404, r"\(404\)\. There is no such repository or owner"),
        (500, r"\(500\)\. "),
    ],
)
def test_refusals_are_said(hub: Hub, status: int, message: str) -> None:
    hub.refuses = status
    with pytest.raises(CheckpointError, match=f"refuses the upload to you/blobs {message}"):
        trained().push_to_hub("you/blobs", token=TOKEN)


def test_a_hub_out_of_reach_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="could not be uploaded to me/blobs: "):
        trained().push_to_hub("me/blobs", token=TOKEN)


def test_offline_mode_is_kept(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_library.close_session()
    tuner = trained()
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE forbids it\. Remove that variable"):
        tuner.push_to_hub("me/blobs", token=TOKEN)
    assert not hub.private
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_library.close_session()
    tuner.push_to_hub("me/blobs", token=TOKEN)


@pytest.mark.parametrize("repo", ["a/b/c", "me/", "", "me/../you"])
def test_a_name_that_is_no_repository_is_said(hub: Hub, repo: str) -> None:
    with pytest.raises(ArgumentError, match=r"is no repository of the hub\. Expected a name such as 'me/dogs'"):
        FineTuner(nn.Linear(2, 2), device="cpu").push_to_hub(repo, token=TOKEN)


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ArgumentError, match="needs the huggingface_hub package: pip install huggingface_hub"):
        FineTuner(nn.Linear(2, 2), device="cpu").push_to_hub("me/blobs", token=TOKEN)
