from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)
from torchvision.datasets import ImageFolder

from finetune.data.loading.batches import Batches
from finetune.data.pipeline import Pipeline
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.open_source import open_source
from finetune.data.sources.streams.loader import Loader
from finetune.data.sources.streams.stream import Stream
from finetune.data.targets import TargetRule
from finetune.errors import DataError
from tests.helpers.datasets import Flow, Items, Numbers

MakeFolder = Callable[..., Path]


def test_streams_and_loaders_have_no_samples_by_index() -> None:
    stream, loader = open_source(Numbers()), open_source(DataLoader(Items([1, 2])))
    assert isinstance(stream, Stream)
    assert isinstance(loader, Loader)
    for source in (stream, loader):
        for use in (len, lambda s: s[0], lambda s: s.subset([0])):
            with pytest.raises(TypeError, match="read as a stream"):
                use(source)
    assert open_source(stream) is stream
    assert stream.name(3) == "sample 3"


def test_trap_35_loaders_and_streams_cannot_be_renumbered(class_folder: MakeFolder) -> None:
    folder = ImageFolder(str(class_folder("val", bee=1, cat=2)))
    with pytest.raises(DataError, match="its class 0 is 'bee', the training data's is 'ant'"):
        open_source(DataLoader(folder), classes=["ant", "bee", "cat"])
    with pytest.raises(DataError, match="its class 1 is 'cat', the training data's is none"):
        open_source(DataLoader(folder), classes=["bee"])
    assert open_source(DataLoader(folder), classes=["bee", "cat", "dog"]).classes == ("bee", "cat", "dog")
    assert open_source(DataLoader(folder)).classes == ("bee", "cat")
    opened = open_source(folder)
    assert open_source(opened, classes=["bee", "cat", "dog"]) is opened
    with pytest.raises(DataError, match="The source numbers the classes differently"):
        open_source(opened, classes=["cat", "bee"])


class Continuing(Flow):
    """A stream that goes on where it was, as the reader of a socket does."""

    def __init__(self, items: list[Any]) -> None:
        self.rest = iter(items)

    def __iter__(self) -> Iterator[Any]:
        yield from self.rest


class Random(Flow):
    """A stream that draws from torch's global generator."""

    def __iter__(self) -> Iterator[Any]:
        return ((torch.rand(1), label) for _, label in self.items)


class Sized(Flow):
    """A stream that states its length."""

    def __init__(self, items: list[Any], length: int) -> None:
        super().__init__(items)
        self.length = length

    def __len__(self) -> int:
        return self.length


def pairs(n: int) -> list[Any]:
    return [(torch.tensor([float(i)]), i % 2) for i in range(n)]


def numbers_in(batches: Any) -> list[int]:
    return [int(value) for x, _ in batches for value in x[:, 0]]


def looked_at(data: Any, looks: list[int]) -> Any:
    """Open data and look at its first samples in several ways."""
    source = open_source(data)
    for look in looks:
        if look == 0:
            Pipeline().example(source)
        else:
            source.first_targets(look)
    return source


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 20),
    size=st.integers(1, 7),
    looks=st.lists(st.integers(0, 9), max_size=4),
    loaded=st.booleans(),
    stream=st.sampled_from([Continuing, Flow]),
)
def test_what_is_looked_at_is_not_used_up(n: int, size: int, looks: list[int], loaded: bool, stream: Any) -> None:
    data = DataLoader(stream(pairs(n)), batch_size=size) if loaded else stream(pairs(n))
    batches = Batches(looked_at(data, looks), batch_size=size, shuffle=False)
    assert numbers_in(batches.epoch(0)) == list(range(n))
    if stream is Flow:
        assert numbers_in(batches.epoch(1)) == list(range(n))
    else:
        with pytest.raises(DataError, match="gave no sample in pass 2"):
            list(batches.epoch(1))


@pytest.mark.parametrize("looks", [[], [0], [5, 0], [2, 9]])
@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("loaded", [False, True])
def test_looking_changes_no_random_draw(looks: list[int], epoch: int, loaded: bool) -> None:
    def drawn(looks: list[int]) -> torch.Tensor:
        data: Any = Random(pairs(7))
        data = (
            DataLoader(TensorDataset(torch.rand(7, 1), torch.arange(7)), batch_size=3, shuffle=True) if loaded else data
        )
        batches = Batches(looked_at(data, looks), batch_size=3, shuffle=False, seed=0)
        return torch.cat([x for x, _ in batches.epoch(epoch)])

    torch.manual_seed(0)
    expected = drawn([])
    torch.manual_seed(0)
    assert torch.equal(drawn(looks), expected)


@pytest.mark.parametrize(
    ("given", "length", "taken", "words"),
    [
        (30, 20, 20, "gives more; a pass ends there"),
        (12, 20, 12, "but gave 12"),
        (20, 20, 20, ""),
        (30, 1, 1, "gives more"),
    ],
)
@pytest.mark.parametrize("loaded", [False, True])
def test_a_stated_length_bounds_a_pass_and_is_said_to_be_wrong_once(
    given: int, length: int, taken: int, words: str, loaded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Sized(pairs(given), length)
    source = open_source(DataLoader(stream, batch_size=1) if loaded else stream)
    batches = Batches(source, batch_size=4, shuffle=False)
    with caplog.at_level(logging.WARNING, logger="finetune"):
        for epoch in range(2):
            assert numbers_in(batches.epoch(epoch)) == list(range(taken))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(words)
    assert not words or words in said[0]


@pytest.mark.parametrize(
    ("given", "length", "words"),
    [
        (19, 18, "length of 18 samples, but gave 19"),  # in as many batches
        (17, 18, "length of 18 samples, but gave 17"),
        (30, 18, "length of 5 batches, but gives more; a pass ends there"),
        (9, 18, "length of 5 batches, but gave 3"),
        (18, 18, ""),
    ],
)
def test_a_loader_of_a_stream_counts_its_samples(
    given: int, length: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    batches = Batches(open_source(DataLoader(Sized(pairs(given), length), batch_size=4)), batch_size=4, shuffle=False)
    for epoch in range(2):
        numbers_in(batches.epoch(epoch))
    assert len(caplog.records) == bool(words)
    assert words in caplog.text


def test_a_length_in_batches_is_right_for_a_stream_of_batches(caplog: pytest.LogCaptureFixture) -> None:
    ready = [(torch.full((3, 2), float(number)), torch.arange(3)) for number in range(4)]
    for workers in (0, 2):
        kind = Divided if workers else Sized
        loader = DataLoader(kind(ready, 4), batch_size=None, num_workers=workers)
        assert len(list(Batches(open_source(loader), batch_size=3, shuffle=False).epoch(0))) == 4
    assert not caplog.records


def test_a_stream_without_end_ends_at_its_length() -> None:
    class Endless(Sized):
        def __iter__(self) -> Iterator[Any]:
            while True:
                yield from self.items

    for data in (Endless(pairs(3), 8), DataLoader(Endless(pairs(3), 8), batch_size=4)):
        assert len(numbers_in(Batches(open_source(data), batch_size=4, shuffle=False).epoch(0))) == 8


class Whole(Sized):
    pass


class Divided(Sized):
    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        assert worker is not None
        return iter(self.items[worker.id :: worker.num_workers])


def test_workers_that_each_read_everything_are_an_error() -> None:
    whole, divided = (DataLoader(kind(pairs(9), 9), batch_size=2, num_workers=2) for kind in (Whole, Divided))
    assert sorted(numbers_in(Batches(open_source(divided), batch_size=2, shuffle=False).epoch(0))) == list(range(9))
    with pytest.raises(DataError, match=r"The 2 workers .* all begin with the same samples"):
        list(Batches(open_source(whole), batch_size=2, shuffle=False).epoch(0))


def test_workers_that_each_read_everything_and_augment_it_are_counted() -> None:
    class Augmented(Whole):
        def __iter__(self) -> Iterator[Any]:
            return ((x + torch.rand(1), label) for x, label in self.items)

    loader = DataLoader(Augmented(pairs(9), 9), batch_size=2, num_workers=2)
    with pytest.raises(DataError, match=r"The 2 workers .* more than the 9 samples"):
        list(Batches(open_source(loader), batch_size=2, shuffle=False).epoch(0))


TEN = TensorDataset(torch.arange(10.0)[:, None], torch.arange(10))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TEN, batch_size=3),
        DataLoader(TEN, batch_size=5, drop_last=True),  # leaves out nothing
        DataLoader(TEN, batch_size=None),
        DataLoader(Subset(TEN, [4, 2, 0]), batch_size=2),
        DataLoader(TEN, batch_sampler=BatchSampler(SequentialSampler(TEN), 4, drop_last=False)),
        DataLoader(TEN, sampler=BatchSampler(SequentialSampler(TEN), 4, drop_last=False), batch_size=None),
        DataLoader(TEN, sampler=range(10), batch_size=4),
        DataLoader(Flow(pairs(5)), batch_size=2),
        DataLoader(TEN, batch_size=3, num_workers=2),
    ],
)
def test_loaders_in_order_are_predicted(loader: DataLoader[Any]) -> None:
    assert isinstance(open_source(loader, labeled=False), Loader)


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (DataLoader(TEN, batch_size=3, shuffle=True), "out of order"),
        (DataLoader(TEN, batch_size=3, drop_last=True), "leaves out 1 of 10 samples"),
        (DataLoader(TEN, sampler=RandomSampler(TEN)), "out of order"),
        (DataLoader(TEN, sampler=WeightedRandomSampler([1.0] * 10, 10)), "out of order"),
        (DataLoader(TEN, sampler=SubsetRandomSampler(range(5))), "out of order"),
        (DataLoader(TEN, sampler=[2, 1, 0]), "sample 2 out of order"),
        (DataLoader(TEN, sampler=range(4)), "leaves out 6 of 10"),
        (DataLoader(TEN, batch_sampler=[[0, 2], [1, 3]]), "sample 2 out of order"),
        (DataLoader(TEN, batch_sampler=BatchSampler(RandomSampler(TEN), 4, False)), "out of order"),
        (DataLoader(TEN, sampler=iter(range(10))), "only once"),
        (DataLoader(Flow(pairs(5)), batch_size=2, drop_last=True), "drop_last=True"),
        (DataLoader(Flow(pairs(5)), batch_size=2, num_workers=2), "in 2 workers"),
    ],
)
def test_loaders_out_of_order_are_not_predicted(loader: DataLoader[Any], words: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(DataError, match=f"one row per sample, in the order of the data, but .*{words}"):
        open_source(loader, labeled=False)
    assert torch.equal(torch.get_rng_state(), state)
    open_source(loader)  # in training, any order will do


def test_streams_that_shuffle_are_not_predicted() -> None:
    rows = datasets.Dataset.from_dict({"x": [[float(k)] * 2 for k in range(20)], "label": [k % 2 for k in range(20)]})
    plain = rows.to_iterable_dataset()
    shuffled = plain.shuffle(seed=1, buffer_size=10)
    for data in (shuffled, shuffled.map(lambda row: row), DataLoader(shuffled, batch_size=4)):
        assert not open_source(data).indexed
        with pytest.raises(DataError, match=r"the (stream shuffles|DataLoader reads a stream that shuffles)"):
            open_source(data, labeled=False)
    tars = wds.WebDataset(["0.tar"], shardshuffle=False)
    for data in (tars.shuffle(5), wds.WebDataset(["0.tar"], shardshuffle=2)):
        with pytest.raises(DataError, match="the stream shuffles"):
            open_source(data, labeled=False)
    assert not open_source(tars.map(str), labeled=False).indexed
    for data in (plain, plain.map(lambda row: row), DataLoader(plain, batch_size=4)):
        assert not open_source(data, labeled=False).indexed


def test_a_hugging_face_stream_may_not_know_its_columns() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"x": [float(k), 0.0], "label": k % 2} for k in range(6))

    made = datasets.IterableDataset.from_generator(rows)
    mapped = datasets.Dataset.from_list(list(rows())).to_iterable_dataset().map(lambda row: row)
    for data in (made, mapped):
        assert data.features is None
        (batch,) = Batches(open_source(data), batch_size=6, shuffle=False).epoch(0)
        assert batch["x"].tolist() == [[float(k), 0.0] for k in range(6)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 0, "a", 1], r"that of sample 0 is a number, that of sample 2 is a name"),
        ([Enum("Kind", "a").a] * 4, r"sample 0 has the label <Kind.a: 1>\. Expected a name or a number"),
        ([1, 0, {1}, 0], r"sample 2 has the label \{1\}\. Expected a name or a number"),
        ([1, 0, 1, None], r"sample 3 has no label"),
    ],
)
def test_labels_that_a_loader_cannot_collate_are_named(labels: list[Any], message: str) -> None:
    loader = DataLoader([(torch.ones(2), label) for label in labels], batch_size=4)  # type: ignore[arg-type]
    for read in (Batches.first, lambda batches: list(batches.epoch(0))):
        batches = Batches(open_source(loader), batch_size=4, shuffle=False)
        with pytest.raises(DataError, match=message):
            read(batches)


def test_names_and_numbers_in_one_batch_are_refused() -> None:
    loader = DataLoader([(torch.ones(2), label) for label in ("a", 1)], batch_size=2)  # type: ignore[arg-type]
    batches = Batches(open_source(loader), batch_size=2, shuffle=False, rule=TargetRule())
    with pytest.raises(DataError, match="are names and numbers, such as 'a' and 1"):
        list(batches.epoch(0))


def test_an_error_of_the_users_own_loader_stays() -> None:
    def collate(items: list[Any]) -> Any:
        raise TypeError("mine")

    loader = DataLoader([(torch.ones(2), 1)], collate_fn=collate)  # type: ignore[arg-type]
    batches = Batches(open_source(loader), batch_size=1, shuffle=False)
    with pytest.raises(TypeError, match="mine"):
        batches.first()


def test_images_of_a_stream_are_prepared_as_those_of_a_dataset() -> None:
    preprocessing = Preprocessing(crop_size=(8, 8), resize_size=8)
    images = [Image.new("RGB", (10 + i, 12), (40 * i,) * 3) for i in range(4)]
    for items in (
        [(image, i) for i, image in enumerate(images)],
        [[image, i] for i, image in enumerate(images)],
        [{"image": image, "label": i} for i, image in enumerate(images)],
        images,
    ):
        read: list[Any] = []
        for data in (Items(items), Flow(items), Continuing(items)):
            source = open_source(data, takes="picture", labeled=False)
            assert source.kind == "picture"
            read.extend(Batches(source, batch_size=9, shuffle=False, preprocessing=preprocessing).epoch(0))
        flat = [batch if isinstance(batch, torch.Tensor) else batch[0] for batch in read]
        assert flat[0].shape == (4, 3, 8, 8)
        assert torch.equal(flat[0], flat[1])
        assert torch.equal(flat[0], flat[2])
