"""Findings in the data are a table by severity, and images or texts beside each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetune import FineTuner
from finetune.errors import ArgumentError
from finetune.report.blocks import Cards, Facts, Note, Section, Table
from finetune.report.checks import data_section
from tests.helpers.image_files import labeled_images


def section_of(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], side: int) -> Section:
    tuner = FineTuner(nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 3)), device="cpu")
    return data_section(tuner.check_data, val, train)


def test_the_samples_of_a_finding_are_side_by_side() -> None:
    X, y = labeled_images(30)
    X[7], y[7] = X[3], y[3]
    found = section_of((X, y), (X[:1], y[:1]), 6)
    table = next(block for block in found.blocks if isinstance(block, Table))
    assert [row[:3] for row in table.rows[:2]] == [
        ["error", "leak", "sample 0, sample 0"],
        ["warning", "duplicate", "sample 3, sample 7"],
    ]
    leaks, copies = [block for block in found.blocks if isinstance(block, Cards)][:2]
    assert leaks.caption == "Leaks: the same sample in training and validation data (error, 1)"
    assert copies.caption == "Duplicates (warning, 1)"
    assert leaks.wide
    assert [alt for _, alt in leaks.cards[0].images] == ["sample 0", "sample 0"]
    first, second = (image for image, _ in copies.cards[0].images)
    assert first.uri == second.uri != leaks.cards[0].images[0][0].uri
    (advice,) = [block for block in found.blocks if isinstance(block, Facts)]
    assert advice.values[leaks.caption] == "Remove it from one of the two."


def test_many_findings_are_shown_in_part_and_stay_small() -> None:
    X = torch.rand(40, 3, 200, 200)  # noise, whose files are as large as can be
    y = torch.arange(40) % 3
    found = section_of((X, y), (X[:20], y[:20]), 200)
    (leaks,) = [block for block in found.blocks if isinstance(block, Cards) and block.caption.startswith("Leaks")]
    assert leaks.caption.endswith("(error, 20), the first 6")
    assert [max(image.width, image.height) for card in leaks.cards for image, _ in card.images] == [160] * 12
    assert sum(len(image.uri) for card in leaks.cards for image, _ in card.images) < 400_000


def test_without_images_there_is_only_the_table() -> None:
    X, y = torch.randn(60, 3), torch.arange(60) % 3
    found = section_of((X, y), (X[:1], y[:1]), 1)
    assert any(isinstance(block, Table) for block in found.blocks)
    assert not any(isinstance(block, Cards) for block in found.blocks)


def test_the_reason_is_said_if_nothing_is_checked() -> None:
    def check(*data: object, samples: int) -> None:
        raise ArgumentError("The data is a stream.")

    assert data_section(check, None, None).blocks == [Note("The data was not checked. The data is a stream.")]  # type: ignore[arg-type]
