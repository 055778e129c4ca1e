"""The protocol: a form of data that the package has never heard of is one class, defined here."""

from __future__ import annotations

import itertools
import logging
import sqlite3
import tarfile
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune import FineTuner
from finetune.caching.store.disk_store import KEY
from finetune.caching.store.keys import keys_of
from finetune.data.sources.arrays import Arrays
from finetune.data.sources.base import Source
from finetune.errors import DataError

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 2
CLASSES = ("cat", "dog")


class Table(Source):
    """A table of an SQLite database: `id`, `label` and the float32 bytes of `features`."""

    classes = CLASSES

    def __init__(self, path: Path) -> None:
        self.path = path
        with sqlite3.connect(path) as database:
            labels = database.execute("SELECT label FROM samples ORDER BY id").fetchall()
        self.targets = torch.tensor([CLASSES.index(label) for (label,) in labels])

    def __len__(self) -> int:
        assert self.targets is not None
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        assert self.targets is not None
        with sqlite3.connect(self.path) as database:
            (features,) = database.execute("SELECT features FROM samples WHERE id = ?", [index]).fetchone()
        return torch.from_numpy(np.frombuffer(features, np.float32).copy()), self.targets[index]


class ConstantTable(Table):
    """The same table, known not to change: it can be cached, and keeps count of its reads."""

    stochastic = False
    reads = 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        type(self).reads += 1
        return super().__getitem__(index)

    def keys(self) -> Iterable[bytes]:
        return [f"{self.path}:{index}".encode() for index in range(len(self))]


class Shards(Source):
    """Samples in the order of a tar archive, as WebDataset keeps them."""

    indexed = False
    classes = CLASSES

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epochs: list[int] = []

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        with tarfile.open(self.path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                features = torch.from_numpy(np.frombuffer(file.read(), np.float32).copy())
                yield features, CLASSES.index(member.name.rpartition(".")[2])

    def batches(self, batch_size: int, *, collate_fn: Callable[[list[Any]], Any], **unused: Any) -> Iterator[Any]:
        samples = iter(self)
        while batch := list(itertools.islice(samples, batch_size)):
            yield collate_fn(batch)

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    @property
    def num_samples(self) -> int | None:
        return None

    def first_targets(self, count: int) -> Tensor:
        return torch.tensor([label for _, label in itertools.islice(self, count)])


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "samples.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE samples (id INTEGER PRIMARY KEY, label TEXT, features BLOB)")
        rows = [(i, CLASSES[int(y)], x.numpy().tobytes()) for i, (x, y) in enumerate(zip(X, Y, strict=True))]
        database.executemany("INSERT INTO samples VALUES (?, ?, ?)", rows)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "samples.tar"
    with tarfile.open(path, "w") as archive:
        for index, (x, y) in enumerate(zip(X, Y, strict=True)):
            content = x.numpy().tobytes()
            member = tarfile.TarInfo(f"{index:04d}.{CLASSES[int(y)]}")
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return path


def fitted(train: Any, val: Any = None, **arguments: Any) -> FineTuner:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    model = nn.Sequential(backbone, nn.Linear(16, 2))
    tuner = FineTuner(model, device="cpu").freeze(["0"])
    tuner.fit(train, val, epochs=3, batch_size=8, lr=1e-2, progress=False, **arguments)
    return tuner


def assert_same_run(one: FineTuner, other: FineTuner) -> None:
    theirs = other.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in one.model.state_dict().items())
    assert [row["val_loss"] for row in one.history] == [row["val_loss"] for row in other.history]


def test_a_new_source_trains_evaluates_and_predicts_like_the_same_arrays(database: Path) -> None:
    arrays = fitted(Arrays(X, Y, CLASSES), 0.25)
    tuner = fitted(Table(database), 0.25)
    assert_same_run(arrays, tuner)
    assert tuner.classes == CLASSES
    assert tuner.evaluate(Table(database)) == arrays.evaluate((X, Y))
    assert torch.equal(tuner.predict(Table(database)), arrays.predict(X))


def test_a_new_source_is_cached_if_the_user_says_it_is_constant(database: Path, tmp_path: Path) -> None:
    plain = fitted(ConstantTable(database), 0.25, cache=False)
    for cache in ("memory", "disk", tmp_path / "cache"):
        assert_same_run(plain, fitted(ConstantTable(database), 0.25, cache=cache))
    ConstantTable.reads = 0
    assert_same_run(plain, fitted(ConstantTable(database), 0.25, cache=tmp_path / "cache"))
    samples_read_once = 2 * len(X)  # by the audit and, at most, to find out what a batch looks like
    assert ConstantTable.reads <= samples_read_once


def test_a_new_source_that_may_change_is_not_cached_unasked(
    database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(Table(database), 0.25, cache="auto")
        fitted(Table(database), 0.25, cache=tmp_path / "cache")
    assert caplog.text.count("cache: off") == 2
    assert keys_of(Table(database)) is None


def test_keys_of_any_length_are_stored(database: Path) -> None:
    source = ConstantTable(database)
    keys = keys_of(source)
    assert keys is not None
    assert keys.dtype == KEY
    assert len({*keys.tolist()}) == len(source)
    part = keys_of(source.subset([7, 3]).subset([1]))
    assert part is not None
    assert part.tolist() == [keys[3]]


def test_a_new_stream_trains_evaluates_and_predicts_like_the_same_arrays(archive: Path) -> None:
    shards = Shards(archive)
    tuner = fitted(shards, Shards(archive))
    assert tuner.classes == CLASSES
    assert {*shards.epochs} == {0, 1, 2}
    whole = FineTuner(tuner.model, device="cpu")
    assert tuner.evaluate(Shards(archive)) == pytest.approx(whole.evaluate((X, Y)))
    assert torch.equal(tuner.predict(Shards(archive)), whole.predict(X))


def test_errors_name_the_samples_of_a_new_source(database: Path) -> None:
    class Named(Table):
        def name(self, index: int) -> str:
            return f"row {index} of '{self.path.name}'"

    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE samples SET features = ? WHERE id = 39", [np.full(6, np.nan, np.float32).tobytes()])
    with pytest.raises(DataError, match=r"The input of row 39 of 'samples\.db' has values that are NaN"):
        fitted(Named(database), val=False)


class Doubled(Source):
    """Only a length and samples: all else is the default."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([float(index), 2.0 * index]), index % 2


def test_a_length_and_samples_are_enough() -> None:
    source = Doubled()
    part = source.subset([5, 2, 3])
    assert (len(part), part.name(1), part.num_samples, part.num_batches(2)) == (3, "sample 2", 3, 2)
    assert part.subset(torch.tensor([2, 0]))[1][0].tolist() == [5.0, 10.0]
    assert part.first_targets(2).tolist() == [1, 0]  # type: ignore[union-attr]
    assert (part.targets, part.keys(), part.watch(), part.version(values=True)) == (None, None, None, None)
    assert [*part.describe()][:2] == [*source.describe()]


def test_a_subset_passes_on_what_its_source_knows() -> None:
    class Known(Doubled):
        targets = torch.arange(6) % 2
        classes = CLASSES
        vectorized = True
        stochastic = False

        def gather(self, indices: Tensor) -> Any:
            return indices

        def version(self, *, values: bool) -> Any:
            return "version", values

        def watch(self) -> Callable[[int], bool]:
            return lambda index: index != 4

    part = Known().subset([5, 4])
    assert part.targets is not None
    assert (part.classes, part.targets.tolist(), part.vectorized, part.stochastic) == (CLASSES, [1, 0], True, False)
    assert part.gather(torch.tensor([1, 0, 1])).tolist() == [4, 5, 4]
    assert part.version(values=True) == ("version", True)
    unchanged = part.watch()
    assert unchanged is not None
    assert [unchanged(0), unchanged(1)] == [True, False]
    assert fitted(_Fixed(), val=False).history  # batches are gathered, not read


class _Fixed(Source):
    targets, vectorized, stochastic = Y, True, False

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]

    def gather(self, indices: Tensor) -> Any:
        return X[indices], Y[indices]


def test_a_stream_has_no_samples_by_number(archive: Path) -> None:
    shards = Shards(archive)
    for fails in (lambda: len(shards), lambda: shards[0], lambda: shards.subset([0])):
        with pytest.raises(TypeError, match=r"Shards .* because it is read as a stream"):
            fails()
