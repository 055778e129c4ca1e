"""`save_checkpoint(card=True)`: the card beside the file, which takes no file from its owner."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from finetune import FineTuner
from finetune.callbacks import Callback
from finetune.errors import CheckpointError
from tests.helpers.tensors import gaussian_blobs


def save(path: Path) -> None:
    FineTuner(nn.Linear(4, 2), device="cpu").save_checkpoint(path, card=True)


def test_its_own_card_is_written_anew(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors")
    before = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(before.replace("# a", "# changed"))
    save(tmp_path / "a.safetensors")
    assert (tmp_path / "README.md").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "a.safetensors"]


@pytest.mark.parametrize("readme", [b"# My project\n", b"\xff\xfe not text"])
def test_a_readme_of_yours_stays(tmp_path: Path, readme: bytes) -> None:
    (tmp_path / "README.md").write_bytes(readme)
    save(tmp_path / "a.safetensors")
    assert (tmp_path / "README.md").read_bytes() == readme
    assert "# a" in (tmp_path / "a.safetensors.md").read_text()


def test_the_card_of_another_checkpoint_stays(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors")
    save(tmp_path / "b.safetensors")
    assert "# a" in (tmp_path / "README.md").read_text()
    assert "# b" in (tmp_path / "b.safetensors.md").read_text()


def test_a_card_whose_mark_was_deleted_is_yours(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors")
    kept = "\n".join(line for line in (tmp_path / "README.md").read_text().splitlines() if "<!--" not in line)
    (tmp_path / "README.md").write_text(kept)
    save(tmp_path / "a.safetensors")
    assert (tmp_path / "README.md").read_text() == kept


def test_with_both_names_taken_the_checkpoint_is_whole_and_the_error_says_so(tmp_path: Path) -> None:
    for name in ("README.md", "a.safetensors.md"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointError, match=r"Rename one of them, or pass card=False\. .* is whole\."):
        save(tmp_path / "a.safetensors")
    FineTuner.load_checkpoint(tmp_path / "a.safetensors", nn.Linear(4, 2))
    (tmp_path / "README.md").rename(tmp_path / "NOTES.md")
    save(tmp_path / "a.safetensors")
    assert "# a" in (tmp_path / "README.md").read_text()


def test_within_a_run_too(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_epoch_end(self, run: object) -> None:
            tuner.save_checkpoint(tmp_path / "a.safetensors", card=True)

    tuner = FineTuner(nn.Linear(4, 3), device="cpu")
    tuner.fit(gaussian_blobs(), callbacks=[Saves()], progress=False)
    assert "After 1 epoch;" in (tmp_path / "README.md").read_text()
