"""Data at a URL gives the samples of the same data in a folder; where no data is read, a URL is an error."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
import torch

from finetune.comparison.fingerprint import fingerprint_data
from finetune.data.audit import Audit
from finetune.data.prepare import prepare
from finetune.data.sources.base import Source
from finetune.data.sources.open_source import open_source
from finetune.data.tables.table import Table
from finetune.errors import ArgumentError, DataError
from finetune.files.remote import Url
from finetune.naming.paths import exists, local_path
from finetune.training.resuming.facts import data_digest
from tests.helpers.image_files import picture


@pytest.fixture
def pets(tmp_path: Path) -> Iterator[Path]:
    """A folder of a training and a validation folder, which is also at `memory://pets`."""
    for part, count in (("train", 9), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for k in range(count):
                picture(10 * k, (8, 8)).save(tmp_path / "pets" / part / name / f"{k}.png")
    rows = [f"{name}/{k}.png,{name}" for name in ("cat", "dog") for k in range(9)]
    (tmp_path / "pets" / "train" / "rows.csv").write_text("\n".join(["path,label", *rows]))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "pets"), "/pets", recursive=True)
    yield tmp_path / "pets"
    memory.rm("/pets", recursive=True)


def same(remote: Source, local: Source) -> None:
    assert len(remote) == len(local) > 0
    assert remote.classes == local.classes
    assert remote.targets is not None
    assert local.targets is not None
    assert torch.equal(remote.targets, local.targets)
    for index in range(len(local)):
        assert remote[index][0].tobytes() == local[index][0].tobytes()
        assert remote.name(index).removeprefix("memory://") in local.name(index)


def test_a_folder_at_a_url_is_that_folder(pets: Path) -> None:
    remote = open_source("memory://pets/train")
    same(remote, open_source(pets / "train"))
    assert remote.name(0) == "memory://pets/train/cat/0.png"
    assert remote.check(Audit()) is remote
    assert data_digest(remote) == data_digest(open_source(pets / "train"))
    assert fingerprint_data(remote) == fingerprint_data(open_source("memory://pets/train"))


def test_its_training_and_validation_folders_are_found(pets: Path) -> None:
    remote, local = prepare("memory://pets"), prepare(pets)
    same(remote.train, local.train)
    assert remote.val is not None
    assert local.val is not None
    same(remote.val, local.val)


def test_a_table_and_the_paths_in_it_may_be_urls(pets: Path) -> None:
    local = open_source(pets / "train" / "rows.csv")
    same(open_source("memory://pets/train/rows.csv"), local)
    same(open_source(Table(pets / "train" / "rows.csv", folder="memory://pets/train")), local)
    urls = [f"memory://pets/train/{name}/{k}.png" for name in ("cat", "dog") for k in range(9)]
    same(open_source((urls, [name for name in ("cat", "dog") for _ in range(9)])), local)


def test_patterns_lists_of_folders_and_chained_protocols(pets: Path) -> None:
    local = open_source(str(pets / "train" / "*" / "*.png"), labeled=False)
    for data in (
        "memory://pets/train/*/*.png",
        "memory://pets/train/**/*.png",
        ["memory://pets/train/cat", "memory://pets/train/dog"],
        "simplecache::memory://pets/train",
    ):
        remote = open_source(data, labeled=False)
        assert [remote[i].tobytes() for i in range(len(remote))] == [local[i].tobytes() for i in range(18)]


def test_a_file_url_is_a_local_path(pets: Path) -> None:
    (pets / "train").rename(pets / "two words")
    assert local_path((pets / "two words").as_uri()) == pets / "two words"
    same(open_source((pets / "two words").as_uri()), open_source(pets / "two words"))


def test_a_damaged_or_missing_file_is_named_by_its_url(pets: Path) -> None:
    fsspec.filesystem("memory").pipe("/pets/train/dog/3.png", b"none")
    with pytest.raises(DataError, match=r"'memory://pets/train/dog/3\.png' cannot be decoded"):
        open_source("memory://pets/train").check(Audit())
    with pytest.raises(DataError, match=r"'memory://pets/none\.png' does not exist"):
        open_source(["memory://pets/train/dog/0.png", "memory://pets/none.png"], labeled=False)
    with pytest.raises(DataError, match=r"'memory://none' does not exist"):
        open_source("memory://none")


def test_a_protocol_that_is_unknown_or_lacks_its_package_is_an_error() -> None:
    with pytest.raises(DataError, match=r"Protocol not known: xyz\. Expected a local path, or a URL"):
        open_source("xyz://pets")
    if find_spec("s3fs") is None:
        with pytest.raises(DataError, match=r"Install s3fs to access S3, for example with `pip install`"):
            open_source("s3://pets/train")


def test_a_url_where_no_data_is_read_is_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"Expected a local path, but got the URL 's3://pets/model\.safetensors'"):
        local_path("s3://pets/model.safetensors")


def test_a_url_has_the_parts_of_a_path() -> None:
    url = Url("memory://pets/train") / "cat" / "0.png"
    assert (str(url), url.name, url.suffix) == ("memory://pets/train/cat/0.png", "0.png", ".png")
    assert str(url.parent) == "memory://pets/train/cat"
    assert not exists("memory://pets/train/none")
