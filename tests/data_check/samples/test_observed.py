"""A source whose samples carry facts, and whose unreadable samples are replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from finetune import DataError, Preprocessing
from finetune.data.loading.batches import Batches
from finetune.data.sources.open_source import open_source
from finetune.data_check.samples.observed import Observed, facts_of_batch, problem, split_facts, without_facts
from tests.helpers.image_files import picture


def folder(path: Path, broken: tuple[int, ...] = ()) -> Any:
    for number in range(6):
        file = path / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        picture(number).save(file)
        if number in broken:
            file.write_bytes(b"none")
    return open_source(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_source_with_facts(tmp_path: Path, workers: int) -> None:
    source, preprocessing = folder(tmp_path), Preprocessing(crop_size=(8, 8))
    given: dict[str, Any] = {"batch_size": 4, "shuffle": False, "preprocessing": preprocessing, "workers": workers}
    plain = list(Batches(source, **given).epoch(0))
    observed = list(Batches(Observed(source, preprocessing), **given).epoch(0))
    for (inputs, targets), batch in zip(plain, observed, strict=True):
        (same, labels), facts = split_facts(batch)
        assert torch.equal(inputs, same)
        assert torch.equal(targets, labels)
        assert facts["readable"].all()
        assert facts["size"].tolist() == [[32, 40]] * len(inputs)
        assert facts_of_batch(batch) is facts
        assert without_facts(len)(batch) == 2


def test_an_unreadable_sample_keeps_its_target_and_says_why(tmp_path: Path) -> None:
    source = folder(tmp_path, broken=(0, 3))
    observed = Observed(source)
    samples = [observed[index] for index in range(6)]
    assert [bool(facts["readable"]) for *_, facts in samples].count(False) == 2
    assert [int(target) for _, target, _ in samples] == source.targets.tolist()
    broken = [index for index in range(6) if not samples[index][2]["readable"]]
    assert all("cannot be decoded" in (problem(source, index) or "") for index in broken)
    assert problem(source, next(index for index in range(6) if index not in broken)) is None


def test_data_without_a_readable_sample_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"None of the first 6 samples can be read\. The first: .*0\.png"):
        Observed(folder(tmp_path, broken=tuple(range(6))))[0]


@pytest.mark.parametrize("form", [tuple, lambda item: {"x": item[0], "label": item[1]}])
def test_samples_keep_their_form(form: Any) -> None:
    class Items(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return form((torch.full((3,), float(index)), index % 2))

    source = open_source(Items())
    batches = Batches(Observed(source), batch_size=2, shuffle=False)
    plain = Batches(source, batch_size=2, shuffle=False)
    for batch, other in zip(batches.epoch(0), plain.epoch(0), strict=True):
        found, facts = split_facts(batch)
        assert type(found) is dict if isinstance(other, dict) else tuple
        for one, same in zip(
            *(each.values() if isinstance(each, dict) else each for each in (found, other)), strict=True
        ):
            assert torch.equal(one, same)
        assert facts["key"].shape == (2, 16)


def test_a_collate_function_of_the_dataset_is_kept() -> None:
    class Ragged(Dataset[Any]):
        @staticmethod
        def collate_fn(items: list[Any]) -> Any:
            inputs, targets = zip(*items, strict=True)
            return torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True), torch.tensor(targets)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return torch.ones(index + 1), index % 2

    (inputs, targets), facts = split_facts(
        next(Batches(Observed(open_source(Ragged())), batch_size=4, shuffle=False).epoch(0))
    )
    assert inputs.shape == (4, 4)
    assert targets.tolist() == [0, 1, 0, 1]
    assert len({bytes(key) for key in facts["key"].numpy()}) == 4
