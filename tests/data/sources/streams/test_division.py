"""Data that is read from its start, divided among processes and workers: each sample once, or an error."""

from __future__ import annotations

import io
import signal
import tarfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import webdataset as wds
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, TensorDataset, get_worker_info

from finetune import FineTuner
from finetune.callbacks import Callback
from finetune.data.loading.batches import Batches
from finetune.data.sources.base import Source
from finetune.data.sources.open_source import open_source
from finetune.distributed.world import World, join
from finetune.errors import CheckpointError, DataError
from tests.helpers.datasets import Flow
from tests.helpers.worlds import in_processes

PROCESSES = 3


def pairs(numbers: Any) -> list[Any]:
    return [(torch.tensor([float(i)]), i % 2) for i in numbers]


def table(n: int) -> TensorDataset:
    return TensorDataset(torch.arange(float(n))[:, None], torch.arange(n) % 2)


def hub(n: int, shards: int) -> datasets.IterableDataset:
    rows = datasets.Dataset.from_dict({"x": [[float(i)] for i in range(n)], "label": [i % 2 for i in range(n)]})
    return rows.to_iterable_dataset(num_shards=shards)


class ByRank(Flow):
    """A stream that gives each process, and each worker in it, a part of its own."""

    split_by_rank = True

    def __init__(self, items: list[Any], rank: int, size: int) -> None:
        super().__init__(items)
        self.rank, self.size = rank, size

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        own = self.items[: len(self.items) // 2] if self.rank == 0 else self.items[len(self.items) // 2 :]
        own = own if self.rank < 2 else []
        return iter(own if worker is None else own[worker.id :: worker.num_workers])


class Numbered(Source):
    """A source of a custom kind, which knows nothing of processes."""

    indexed = False

    def __init__(self, n: int) -> None:
        self.n = n

    @property
    def num_samples(self) -> int:
        return self.n

    def batches(self, batch_size: int, *, collate_fn: Callable[[list[Any]], Any], **unused: Any) -> Iterator[Any]:
        return (collate_fn(pairs(range(i, min(self.n, i + batch_size)))) for i in range(0, self.n, batch_size))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four tar files of 7, 5, 3 and 1 samples."""
    folder, number, paths = tmp_path_factory.mktemp("shards"), 0, []
    for shard, samples in enumerate([7, 5, 3, 1]):
        paths.append(str(folder / f"{shard}.tar"))
        with tarfile.open(paths[-1], "w") as file:
            for _ in range(samples):
                member = tarfile.TarInfo(f"{number:03}.cls")
                content = str(number).encode()
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
                number += 1
    return paths


def tars(paths: list[str], **options: Any) -> Any:
    return wds.WebDataset(paths, **{"shardshuffle": False, "empty_check": False, **options}).map(_decoded)


def _decoded(sample: dict[str, Any]) -> Any:
    number = int(sample["cls"])
    return torch.tensor([float(number)]), number % 2


def read(data: Any, world: World, size: int, epochs: int = 2, **options: Any) -> list[list[int] | None]:
    """Return the numbers in this process's batches of an epoch. Another one is begun late."""
    batches = Batches(open_source(data, world=world), batch_size=size, shuffle=False, world=world, **options)
    first = [_numbers(batch) for batch in batches.epoch(0)]
    assert batches.steps is None or batches.steps == len(first)
    if epochs == 1:
        return first
    late = [_numbers(batch) for batch in batches.epoch(1, start=1)]
    assert len(late) == max(0, len(first) - 1)
    return first


def _numbers(batch: Any) -> list[int] | None:
    if batch is None:
        return None
    inputs = batch["x"] if isinstance(batch, dict) else batch[0]
    inputs = inputs[0] if isinstance(inputs, list) else inputs  # of a loader, a column of lists is a list of columns
    return [int(value) for value in inputs.flatten()]


def loaders(n: int, size: int) -> dict[str, Callable[[World], Any]]:
    """Return makers of DataLoaders that hold the numbers below n, of which all processes read the same."""

    def distributed(world: World, **options: Any) -> DistributedSampler[Any]:
        return DistributedSampler(table(n), world.size, world.rank, **options)

    return {
        "in order": lambda world: DataLoader(table(n), size),
        "shuffled": lambda world: DataLoader(table(n), size, shuffle=True),
        "generator": lambda world: DataLoader(table(n), size, shuffle=True, generator=torch.Generator().manual_seed(4)),
        "sampler": lambda world: DataLoader(table(n), size, sampler=RandomSampler(range(n))),
        "batch sampler": lambda world: DataLoader(table(n), batch_sampler=BatchSampler(range(n), size, False)),
        "one by one": lambda world: DataLoader(table(n), None),
        "distributed": lambda world: DataLoader(table(n), size, sampler=distributed(world, shuffle=False)),
        "distributed, shuffled": lambda world: DataLoader(table(n), size, sampler=distributed(world, drop_last=True)),
        "distributed in a batch sampler": lambda world: DataLoader(
            table(n), batch_sampler=BatchSampler(distributed(world), size, False)
        ),
        "stream": lambda world: DataLoader(Flow(pairs(range(n))), size),
    }


def test_processes_that_read_the_same_divide_the_batches_of_one() -> None:
    """The batches of all processes in a step are what one process reads in as many steps."""
    cases = [(1, 2), (7, 2), (12, 4), (13, 1)]

    def work(rank: int) -> list[Any]:
        world = join("auto", torch.device("cpu"))
        found = []
        for n, size in cases:
            found.append(read(Flow(pairs(range(n))), world, size))
            found.append(read(hub(n, 1), world, size, ordered=True))
            found.append(read(Numbered(n), world, size))
            found += [read(make(world), world, size) for make in loaders(n, size).values()]
        return found

    alone = World()
    expected = []
    for n, size in cases:
        same = [Flow(pairs(range(n))), hub(n, 1), Numbered(n), *(make(alone) for make in loaders(n, size).values())]
        expected += [read(data, alone, size) for data in same]
    every = in_processes(PROCESSES, work)
    for whole, *parts in zip(expected, *every, strict=True):
        steps = list(zip(*parts, strict=True))  # as many in each process
        assert [batch for step in steps for batch in step if batch is not None] == whole


def test_processes_and_workers_that_read_parts_read_each_sample_once(shards: list[str]) -> None:
    """The parts may be of unequal lengths, and of one process empty."""

    def made(world: World) -> Iterator[Any]:
        def own() -> ByRank:
            return ByRank(pairs(range(16)), world.rank, world.size)

        for size in (1, 4):
            for stream in (hub(16, 6), hub(16, 2), hub(2, 1), tars(shards), own()):
                yield read(stream, world, size)
                yield read(DataLoader(stream, size), world, size)
            given = datasets.distributed.split_dataset_by_node(hub(16, 3), world.rank, world.size)
            yield read(given, world, size)
            yield read(tars(shards, nodesplitter=wds.split_by_node), world, size)
            yield read(tars(shards, nodesplitter=None), world, size)
        for stream in (hub(16, 6), tars(shards), own()):
            yield read(DataLoader(stream, 2, num_workers=2), world, 2, epochs=1)

    every = in_processes(PROCESSES, lambda rank: list(made(join("auto", torch.device("cpu")))))
    assert len(every[0]) == 29
    for parts in zip(*every, strict=True):
        steps = list(zip(*parts, strict=True))
        numbers = sorted(number for step in steps for batch in step for number in batch or ())
        assert numbers == list(range(2 if len(numbers) == 2 else 16))
        assert all(any(step) for step in steps)


class Sampler(DistributedSampler[Any]):
    """A sampler of an unknown kind."""


def test_what_would_repeat_samples_or_leave_them_out_is_an_error(shards: list[str]) -> None:
    """Each error names a way out, on which the data is read."""

    def refused(data: Any, world: World, **options: Any) -> str:
        try:
            source = open_source(data, world=world, **options)
            list(Batches(source, batch_size=2, shuffle=False, world=world).epoch(0))
        except DataError as error:
            return str(error)
        return "read"

    def shuffled(seed: int) -> DataLoader[Any]:
        return DataLoader(table(9), 2, shuffle=True, generator=torch.Generator().manual_seed(seed))

    def marked(data: Flow, *, own: bool) -> Flow:
        data.split_by_rank = own  # type: ignore[attr-defined]
        return data

    def work(rank: int) -> list[str]:
        world = join("auto", torch.device("cpu"))
        found = [
            refused(hub(9, 3).shuffle(seed=rank), world),
            refused(shuffled(rank), world),
            refused(DataLoader(table(9 + rank), 2), world),
            refused(Flow(pairs(range(9)[rank::2])), world),
            refused(marked(Flow(pairs(range(9))), own=True), world),
            refused(DataLoader(table(9), 2, sampler=Sampler(table(9), 2, rank)), world),
            refused(datasets.distributed.split_dataset_by_node(hub(9, 2), 0, 2), World(1, 2)),
            refused(marked(Flow(pairs(range(9)[rank::2])), own=True), world, labeled=False),
            refused(DataLoader(tars(shards, nodesplitter=wds.split_by_node)), world, labeled=False),
        ]
        empty = marked(Flow(pairs(range(9)[: 9 * rank])), own=True)
        batches = Batches(open_source(empty, world=world), batch_size=2, shuffle=False, world=world)
        if rank == 0:
            with pytest.raises(DataError, match="Process 0 of 2 has no sample of the training data"):
                batches.stand_in()
        for mended in (
            hub(9, 3).shuffle(seed=0),
            shuffled(0),
            marked(Flow(pairs(range(9)[rank::2])), own=True),
            marked(Flow(pairs(range(9))), own=False),
            DataLoader(table(9), 2, sampler=DistributedSampler(table(9), 2, rank)),
            hub(9, 2),
        ):
            numbers = [number for batch in read(mended, world, 2) for number in batch or ()]
            assert sorted(chain.from_iterable(world.gathered(numbers))) == list(range(9))
        for ordered in (
            tars(shards),
            hub(16, 4),
            DataLoader(table(16), 2, sampler=DistributedSampler(table(16), 2, rank, False)),
        ):
            source = open_source(ordered, labeled=False, world=world)
            batches = Batches(source, batch_size=2, shuffle=False, world=world, ordered=True)
            read_in_turn = world.interleaved([_numbers(batch) for batch in batches.epoch(0)])
            assert list(chain.from_iterable(filter(None, read_in_turn))) == list(range(16))
        return found

    for said in in_processes(2, work):
        assert isinstance(said, list), said
        for text, words in zip(
            said,
            [
                *["The processes read different samples from the"] * 4,
                "Several processes read the same samples from the Flow",
                "The Sampler of the DataLoader divides its samples by rank",
                "was split for process 0 of 2, but this is process 1 of 2",
                "the stream is divided by rank, which leaves no order",
                "the DataLoader's dataset is divided by rank, which leaves no order",
            ],
            strict=True,
        ):
            assert words in text


class Stops(Callback):
    """Ends the run in the first epoch, when one of the processes has read its part of the stream."""

    only_watches = True

    def on_step_end(self, run: Any) -> None:
        if run.world.leads and run.epoch == 0 and run.position.window == 4:
            signal.raise_signal(signal.SIGTERM)


def fit(data: Any, *callbacks: Any, **options: Any) -> tuple[list[float], dict[str, Any]]:
    torch.manual_seed(0)
    tuner = FineTuner(torch.nn.Linear(1, 2), device="cpu")
    history = tuner.fit(data, data, epochs=2, batch_size=2, callbacks=callbacks, progress=False, **options)
    weights = torch.cat([parameter.detach().flatten() for parameter in tuner.model.parameters()]).tolist()
    return weights, {**history[0], **tuner.evaluate(data, batch_size=3)}


def test_parts_of_unequal_length_train_and_resume_where_they_were(shards: list[str], tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        whole, row = fit(tars(shards))
        with pytest.raises(SystemExit):
            fit(tars(shards), Stops(), checkpoint_dir=tmp_path)
        return whole, row, fit(tars(shards), checkpoint_dir=tmp_path, resume_from="auto")[0]

    one, other = in_processes(2, work)
    assert one[0] == one[2] == other[0] == other[2]
    assert one[1]["val_loss"] == other[1]["val_loss"]


def test_parts_are_those_of_a_number_of_processes_until_the_epoch_ends(tmp_path: Path) -> None:
    stopped = in_processes(2, lambda rank: fit(hub(24, 2), Stops(), checkpoint_dir=tmp_path))
    assert stopped == ["SystemExit: 143"] * 2
    with pytest.raises(CheckpointError, match="in 2 processes that read parts of a stream"):
        fit(hub(24, 2), checkpoint_dir=tmp_path, resume_from="auto")


def test_a_stream_that_each_process_reads_whole_trains_as_in_one() -> None:
    def weights(size: int) -> list[float]:
        data = [(torch.tensor([i / 8, 1.0]), i % 2) for i in range(22)]
        torch.manual_seed(0)
        tuner = FineTuner(torch.nn.Linear(2, 2), device="cpu")
        tuner.fit(Flow(data), epochs=2, batch_size=8 // size, progress=False)
        return torch.cat([parameter.detach().flatten() for parameter in tuner.model.parameters()]).tolist()

    (one,) = in_processes(1, lambda rank: weights(1))
    for many in in_processes(2, lambda rank: weights(2)):
        assert many == pytest.approx(one, abs=2e-6)
