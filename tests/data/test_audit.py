from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from finetune.data.audit import Audit, audit, some_targets
from finetune.data.loading.batches import Batches
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.arrays import Arrays
from finetune.data.sources.open_source import open_source
from finetune.data.targets import CLASSIFICATION, TargetRule
from finetune.errors import DataError
from tests.helpers.datasets import Flow, Items
from tests.helpers.image_files import picture

MakeFolder = Callable[..., Path]


class Loaded(list[Any]):
    """A list of samples that counts how often one is read."""

    loads = 0

    def __getitem__(self, index: Any) -> Any:
        self.loads += 1
        return super().__getitem__(index)


def samples(labels: list[Any]) -> list[Any]:
    return [(torch.zeros(2), label) for label in labels]


def test_good_data_passes_unchanged(class_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder = open_source(class_folder(a=2, b=3))
    with caplog.at_level(logging.DEBUG, "finetune"):
        assert audit(folder, rule=TargetRule(CLASSIFICATION, 2)) is folder
    assert "Decoded each of 5 images of the training data once" in caplog.text
    for data in ((torch.zeros(3, 2), [0, 1, 0]), (np.zeros((3, 2)), np.ones((3, 2))), samples([0, 1])):
        source = open_source(data)
        assert audit(source, rule=TargetRule(CLASSIFICATION, 2)) is source
    pixels = open_source((torch.zeros(3, 2, dtype=torch.uint8), [0, 1, 0]))
    assert audit(pixels) is pixels


def test_streams_and_loaders_pass_unread() -> None:
    class Never(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError

    for data in (Never(), DataLoader(Never())):
        source = open_source(data)
        assert audit(source, rule=TargetRule(CLASSIFICATION, 2)) is source


def test_empty_data() -> None:
    with pytest.raises(DataError, match="The validation data is empty"):
        audit(open_source([]), role="validation")


@pytest.mark.parametrize("role", ["training", "validation"])
@pytest.mark.parametrize("make", [lambda y: (torch.zeros(len(y), 2), torch.tensor(y)), samples])
def test_data_that_the_loss_ignores_altogether_is_refused(role: str, make: Callable[[list[int]], Any]) -> None:
    rule = TargetRule(CLASSIFICATION, 3, ignored=9)
    with pytest.raises(DataError, match=f"ignores the labels of all 3 samples of the {role} data"):
        audit(open_source(make([9, 9, 9])), rule=rule, role=role)
    audit(open_source(make([9, 1, 0])), rule=rule, role=role)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, None], "sample 2 has no label"),
        ([0, "b", 1], "that of sample 0 is a number, that of sample 1 is a name"),
        ([torch.zeros(1), torch.zeros(2)], r"that of sample 0 is of shape \(1,\), that of sample 1 is of shape \(2,\)"),
        ([b"a", b"b"], r"The labels are bytes, such as b'a'.*label\.decode\(\)"),
    ],
)
def test_labels_that_do_not_agree_are_named(labels: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        audit(open_source(samples(labels)))


def test_one_class_is_too_few_to_train_on(class_folder: MakeFolder) -> None:
    folder = open_source(class_folder(only=3))
    with pytest.raises(DataError, match=r"All 3 samples .* of one class, 'only'"):
        audit(folder, rule=TargetRule())
    assert audit(folder, rule=TargetRule(), role="validation") is folder
    for data in ((torch.zeros(3), [4, 4, 4]), samples([4, 4, 4])):
        with pytest.raises(DataError, match=r"All 3 samples .* of one class, 4"):
            audit(open_source(data), rule=TargetRule())
    with pytest.raises(DataError, match="of one class, 7"):
        audit(open_source((torch.zeros(2), torch.tensor([7, 7])), classes=["a", "b"]), rule=TargetRule())


@pytest.mark.parametrize("make", [lambda y: (torch.zeros(len(y), 2), y), samples])
def test_trap_34_labels_out_of_range_name_the_first_sample(make: Callable[[list[int]], Any]) -> None:
    labels = [0, 1, 2, 5, 1, 3]
    audit(open_source(make(labels)), rule=TargetRule(CLASSIFICATION, 6))
    audit(open_source(make(labels)), rule=TargetRule())
    for role in ("training", "validation"):
        with pytest.raises(DataError) as caught:
            audit(open_source(make(labels)), rule=TargetRule(CLASSIFICATION, 3), role=role)
        for part in ("2 of 6 labels", "sample 3: 5", "0 to 2", "replace_head(6)"):
            assert part in str(caught.value)
    with pytest.raises(DataError, match="sample 1: -1") as caught:
        audit(open_source(make([0, -1, 2])), rule=TargetRule(CLASSIFICATION, 3))
    assert "replace_head" not in str(caught.value)


def test_trap_34_number_of_classes_and_head_must_agree(class_folder: MakeFolder) -> None:
    folder = open_source(class_folder(a=2, b=3))
    for outputs in (1, 3, 1000):
        with pytest.raises(DataError, match=rf"2 classes \(a, b\), but the model has {outputs} .*replace_head\(2\)"):
            audit(folder, rule=TargetRule(CLASSIFICATION, outputs))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_trap_36_corrupt_images_are_named_and_only_skipped_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(8):
            picture(i, (64, 48)).save(tmp_path / label / f"{i}.{suffix}")
    bad = [tmp_path / "a" / f"{i}.{suffix}" for i in (1, 3, 4, 5, 6, 7)]
    for k, path in enumerate(bad):
        path.write_bytes(b"" if k == 0 else path.read_bytes()[: 300 + 40 * k])
    source = open_source(tmp_path)
    with pytest.raises(DataError) as caught:
        audit(source)
    message = str(caught.value)
    assert "6 of the 16 images" in message
    assert all(str(path) in message for path in bad[:5])
    assert str(bad[5]) not in message
    assert "skip_corrupt=True" in message
    with caplog.at_level(logging.WARNING, "finetune"):
        kept = audit(source, rule=TargetRule(CLASSIFICATION, 2), skip_corrupt=True)
    assert len(kept) == 10
    assert kept.targets is not None
    assert kept.targets.tolist() == [0] * 2 + [1] * 8
    assert "6 of the 16" in caplog.text
    for i in range(10):
        kept[i]
    with pytest.raises(DataError, match="None is left"):
        audit(open_source(bad, labeled=False), skip_corrupt=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_of_many_files_some_are_checked_and_a_damaged_one_among_the_others_is_named_when_it_is_read(
    class_folder: MakeFolder, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    source = open_source(class_folder(a=5, b=4))
    damaged = Path(source.name(2))
    damaged.write_bytes(b"none")
    with caplog.at_level(logging.INFO, "finetune"):
        checked = source.check(Audit(all_files=8, max_files=3))  # the first, the fifth and the last
    assert len(checked) == 9
    assert "Checked 3 of the 9 images of the training data" in caplog.text
    batches = Batches(
        checked.subset([0, 2]), batch_size=2, shuffle=False, preprocessing=Preprocessing(4), workers=workers
    )
    with pytest.raises(DataError, match=rf"'{damaged}' cannot be decoded.* pass skip_corrupt=True to fit\.$"):
        list(batches.epoch(0))
    assert len(source.check(Audit(all_files=8, max_files=3, skip_corrupt=True))) == 8
    Path(source.name(4)).write_bytes(b"none")
    with pytest.raises(DataError, match=rf"1 of the 3 images.*'{source.name(4)}'"):
        source.check(Audit(all_files=8, max_files=3))


def test_tiny_images_are_not_damaged(tmp_path: Path) -> None:
    for size in ((1, 1), (7, 30)):
        picture(0, size).save(tmp_path / f"{size[0]}.jpg")
    assert len(audit(open_source(tmp_path, labeled=False))) == 2


def test_inputs_that_are_not_finite(tmp_path: Path) -> None:
    x = np.zeros((70, 3), dtype=np.float32)
    x[66, 1] = np.inf
    y = np.arange(70) % 2
    np.save(tmp_path / "x.npy", x)
    for inputs in (x, torch.from_numpy(x), x.astype(np.float64), np.load(tmp_path / "x.npy", mmap_mode="r")):
        source = open_source((inputs, y))
        with pytest.raises(DataError, match="input of sample 66 has values that are NaN or infinite"):
            audit(source)
        with pytest.raises(DataError, match="input of sample 66"):
            audit(source.subset([1, 2, 66]))
        audit(source.subset(range(60)))
    with pytest.raises(DataError, match="input of sample 1"):
        audit(open_source([(torch.zeros(2), 0), (torch.full((2,), torch.nan), 1)]))


def test_large_inputs_are_read_in_chunks() -> None:
    x = torch.zeros(9, 3)
    x[8, 2] = torch.nan
    with pytest.raises(DataError, match="input of sample 8"):
        Arrays(x, torch.arange(9)).check(Audit(), chunk_bytes=24)


def test_targets_that_are_not_finite() -> None:
    for y in ([0.0, 1.0, torch.nan, torch.inf], [[0.0, 1.0], [1.0, 1.0], [0.0, torch.nan], [torch.inf, 0.0]]):
        with pytest.raises(DataError, match="2 of 4 targets are not finite; the first is that of sample 2"):
            audit(open_source((torch.zeros(4, 1), torch.tensor(y))), rule=TargetRule())
        with pytest.raises(DataError, match="the first is that of sample 2"):
            audit(open_source([(torch.zeros(1), torch.tensor(target)) for target in y]), rule=TargetRule())


def test_shapes_that_do_not_batch() -> None:
    data = [(torch.zeros(3, 8, 8), 0), (torch.zeros(3, 8, 8), 1), (torch.zeros(1, 8, 8), 1)]
    with pytest.raises(DataError, match=r"sample 0 has the shape \(3, 8, 8\), sample 2 has \(1, 8, 8\)"):
        audit(open_source(data))
    keyed = [{"a": torch.zeros(2)}, {"a": torch.zeros(3)}]
    with pytest.raises(DataError, match="do not form a batch"):
        audit(open_source(keyed))
    audit(open_source([(picture(0, (9, 9)), 0), (picture(0, (5, 7)), 1)]))

    class Padded(list[Any]):
        def collate_fn(self, items: list[Any]) -> Any:
            return items

    audit(open_source(Padded(data)))


def test_a_limited_number_of_samples_is_read() -> None:
    hidden = Loaded(samples([k % 2 for k in range(4_000)]))
    audit(open_source(hidden), rule=TargetRule(CLASSIFICATION, 2))
    assert hidden.loads == 2_001  # one more when the dataset is opened
    hidden = Loaded(samples([0, 1]))
    audit(open_source(hidden))
    assert hidden.loads == 3
    known = Loaded(samples([k % 2 for k in range(4_000)]))
    known.targets = [k % 2 for k in range(4_000)]
    audit(open_source(known), rule=TargetRule(CLASSIFICATION, 2))
    assert known.loads == 33 + 9  # and 9 to compare the targets with the items
    last = samples([0, 1] * 1_500)
    last[-1] = (torch.zeros(2), 2)
    with pytest.raises(DataError, match="sample 2999: 2"):
        audit(open_source(last), rule=TargetRule(CLASSIFICATION, 2))


def test_targets_that_are_not_numeric_are_not_checked() -> None:
    audit(open_source(Items([{"x": torch.zeros(1)}, {"x": torch.ones(1)}])), rule=TargetRule(CLASSIFICATION, 2))


def test_reading_samples_draws_no_random_numbers() -> None:
    class Noisy(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return torch.rand(2), index % 2

    state = torch.random.get_rng_state()
    audit(open_source(Noisy([0, 1, 2])))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_one_class_is_no_reason_for_another_head(class_folder: MakeFolder) -> None:
    with pytest.raises(DataError, match=r"All 3 samples .* of one class, 'only'"):
        audit(open_source(class_folder(only=3)), rule=TargetRule(CLASSIFICATION, 2))


def test_some_targets_of_every_kind_of_data() -> None:
    X, y = torch.randn(100, 4), torch.arange(100) % 3
    items = list(zip(X, y.tolist(), strict=True))

    def found(data: Any) -> Any:
        targets = some_targets(open_source(data))
        return None if targets is None else targets.tolist()

    assert found((X, y)) == y.tolist()
    assert found(Items(items)) == y.tolist()
    assert found(Flow(items)) == y[:64].tolist()
    assert found(DataLoader(TensorDataset(X, y), batch_size=10)) == y[:10].tolist()
    assert found(Flow(list(X))) is None
    assert found(Flow([])) is None
    assert found(Flow([(x, "a name") for x in X])) is None
    with pytest.raises(DataError, match="do not form a batch"):
        found(Items([(x, torch.zeros(i + 1)) for i, x in enumerate(X)]))


def test_reading_targets_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()

    some_targets(open_source(DataLoader(TensorDataset(torch.zeros(24, 4), torch.arange(24)), shuffle=True)))

    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["cat/0.png,cat", "cat/0.png,dog", "dog/1.png,dog"], "1 of the 2 images .*0.png': cat and dog"),
        (["cat/0.png,cat", "dog/../cat/0.png,dog", "link.png,dog"], "1 of the 1 images"),
        (["cat/0.png,1.5", "cat/0.png,2.5", "dog/1.png,2"], "1 of the 2 images .*: 1.5 and 2.5"),
        (["cat/0.png,cat", "cat/0.png,cat", "dog/1.png,dog"], None),
        (["cat/0.png,cat", "cat/1.png,dog"], None),
    ],
)
def test_a_file_of_several_labels_is_said(
    class_folder: MakeFolder, caplog: pytest.LogCaptureFixture, rows: list[str], said: str | None
) -> None:
    folder = class_folder("pets", cat=2, dog=2)
    (folder / "link.png").symlink_to(folder / "cat" / "0.png")
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]))

    audit(open_source(folder / "labels.csv"), role="evaluation")

    found = re.search(rf"{said}", caplog.text)
    assert "more than once with different labels" in caplog.text if said else not caplog.records
    assert found or said is None
