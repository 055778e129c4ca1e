"""Kinds of task and their losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune import FineTuner
from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError, DataError
from finetune.training.tasks import infer_task, task_of_kind

INDICES = torch.tensor([0, 1, 2, 1])
BITS = torch.tensor([0, 1, 1, 0])
FLOATS = torch.tensor([0.5, 1.0, 2.0, 0.0])
HOT = torch.tensor([[0, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("loss", "targets", "outputs", "kind"),
    [
        # inferred from the targets
        (None, INDICES, 3, CLASSIFICATION),
        (None, INDICES, None, CLASSIFICATION),
        (None, INDICES[:, None], 3, CLASSIFICATION),
        (None, BITS, 2, CLASSIFICATION),
        (None, BITS, 1, BINARY),
        (None, BITS.bool(), 1, BINARY),
        (None, BITS[:, None], 1, BINARY),
        (None, BITS.float(), 1, BINARY),
        (None, BITS.float(), None, REGRESSION),
        (None, FLOATS, 1, REGRESSION),
        (None, FLOATS[:, None], 1, REGRESSION),
        (None, torch.stack([FLOATS, FLOATS], 1), 2, REGRESSION),
        (None, HOT, 3, MULTILABEL),
        (None, HOT.float(), 3, MULTILABEL),
        (None, HOT * 2.5, 3, REGRESSION),
        (None, None, 3, None),
        # determined by the loss, for any targets
        ("cross_entropy", BITS.float(), 2, CLASSIFICATION),
        ("cross_entropy", None, None, CLASSIFICATION),
        ("bce", BITS, 1, BINARY),
        ("bce", None, None, BINARY),
        ("bce", HOT, 3, MULTILABEL),
        ("mse", BITS, 1, REGRESSION),
        (nn.CrossEntropyLoss(label_smoothing=0.1), BITS, 2, CLASSIFICATION),
        (nn.BCEWithLogitsLoss(), BITS.float(), 1, BINARY),
        (nn.BCEWithLogitsLoss(), HOT.float(), 3, MULTILABEL),
        (nn.MSELoss(), BITS.float(), 1, REGRESSION),
        (nn.L1Loss(), BITS.float(), 1, REGRESSION),
        (nn.SmoothL1Loss(), None, 1, REGRESSION),
        (nn.HuberLoss(), None, None, REGRESSION),
        # a custom function: inferred from the targets
        (F.mse_loss, FLOATS, 1, REGRESSION),
        (lambda outputs, targets: outputs.sum(), INDICES, 3, CLASSIFICATION),
        (lambda outputs, targets: outputs.sum(), None, 3, None),
    ],
)
def test_the_kind_of_task(loss: Any, targets: Tensor | None, outputs: int | None, kind: str | None) -> None:
    assert infer_task(loss, targets, outputs).kind == kind


def test_without_loss_and_targets_the_loss_is_cross_entropy() -> None:
    assert infer_task(None, None, None).loss is F.cross_entropy


def test_class_indices_for_one_output_are_an_error() -> None:
    with pytest.raises(DataError, match=r"class indices up to 2.*replace_head\(3\)"):
        infer_task(None, INDICES, 1)


def test_an_unknown_loss_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ArgumentError, match=r"There is no loss 'crossentropy'. Did you mean 'cross_entropy'"):
        infer_task("crossentropy", None, None)


@pytest.mark.parametrize("kind", [CLASSIFICATION, BINARY, MULTILABEL, REGRESSION, None])
def test_probabilities(kind: str | None) -> None:
    outputs = torch.tensor([[0.3, -1.0], [2.0, 0.1]])
    expected = {CLASSIFICATION: outputs.softmax(1), BINARY: outputs.sigmoid(), MULTILABEL: outputs.sigmoid()}

    task = infer_task(lambda o, t: o, None, 2) if kind is None else task_of_kind(None, kind)

    assert torch.equal(task.probabilities(outputs), expected.get(kind, outputs))


COLUMN = torch.tensor([[0.2], [1.5], [-0.4], [3.0]])
LOSSES = {
    "bce": ("bce", F.binary_cross_entropy_with_logits),
    "mse": ("mse", F.mse_loss),
    "nn.MSELoss": (nn.MSELoss(), F.mse_loss),
    "nn.L1Loss": (nn.L1Loss(), F.l1_loss),
    "nn.BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits),
    "lambda": (lambda o, t: ((o - t) ** 2).mean(), F.mse_loss),
    "sum": (lambda o, t: (o - t).abs().sum(), lambda o, t: (o - t).abs().sum()),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (COLUMN, BITS),
        (COLUMN, BITS.float()),
        (COLUMN, BITS.float()[:, None]),
        (COLUMN[:, 0], BITS.float()),
        (COLUMN[:, 0], BITS[:, None]),
        (COLUMN[:, 0], BITS.float()[:, None]),
    ],
)
def test_a_column_and_a_vector_never_broadcast(loss: str, outputs: Tensor, targets: Tensor) -> None:
    given, plain = LOSSES[loss]

    value = infer_task(given, targets, 1).loss(outputs, targets)

    torch.testing.assert_close(value, plain(COLUMN[:, 0], BITS.float()))


@pytest.mark.parametrize("loss", [nn.MSELoss(), lambda o, t: (o - t).abs().mean(), "mse"])
def test_targets_are_not_rounded_to_half_precision_outputs(loss: Any) -> None:
    outputs, targets = torch.zeros(1, 1, dtype=torch.bfloat16), torch.tensor([1001.0])
    task = infer_task(loss, targets, 1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = task.loss(outputs, targets)

    assert float(value) in (1001.0, 1001.0**2)


def test_a_custom_loss_gets_all_other_arguments_unchanged() -> None:
    given: list[Any] = []
    loss = infer_task(lambda o, t: given.append((o, t)), None, None).loss
    outputs, pair = torch.zeros(4, 3), {"a": 1}

    for targets in (INDICES, HOT, pair, None):
        loss(outputs, targets)
    loss(pair, INDICES)
    loss(COLUMN, BITS[:3])

    assert all(seen is sent for (_, seen), sent in zip(given, (INDICES, HOT, pair, None), strict=False))
    assert given[4][0] is pair
    assert given[5][1].shape == (3,)


@pytest.mark.parametrize(("loss", "targets"), [("mse", FLOATS), ("bce", BITS.float())])
def test_mismatched_shapes_are_an_error(loss: str, targets: Tensor) -> None:
    with pytest.raises(DataError, match=r"outputs of shape \[4, 3\], but the targets have shape \[4\]"):
        infer_task(loss, targets, 3).loss(torch.zeros(4, 3), targets)


def test_cross_entropy_accepts_indices_and_probabilities() -> None:
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    loss = task_of_kind(None, CLASSIFICATION).loss
    expected = F.cross_entropy(outputs, INDICES)

    for targets in (INDICES, INDICES[:, None], INDICES.int(), F.one_hot(INDICES, 3).float()):
        torch.testing.assert_close(loss(outputs, targets), expected)


def test_cross_entropy_accepts_segmentation_maps() -> None:
    outputs = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(40).reshape(2, 4, 5) % 3

    value = task_of_kind(None, CLASSIFICATION).loss(outputs, targets)

    torch.testing.assert_close(value, F.cross_entropy(outputs, targets))


def test_losses_are_computed_in_single_precision() -> None:
    outputs = torch.randn(4, 3).bfloat16()

    assert {task_of_kind(None, kind).loss(outputs, t).dtype for kind, t in (
        (CLASSIFICATION, INDICES), (MULTILABEL, torch.ones(4, 3)), (REGRESSION, torch.ones(4, 3)),
    )} == {torch.float32}  # fmt: skip


def test_a_task_of_a_given_kind_keeps_the_custom_loss() -> None:
    own = task_of_kind(lambda o, t: (o - t).mean(), REGRESSION)

    assert own.kind == REGRESSION
    assert float(own.loss(COLUMN, COLUMN[:, 0])) == 0.0


# ---------------------------------------------------------------------- in the steps of a tuner


def test_the_loss_is_unknown_before_any_targets(net) -> None:
    with pytest.raises(ArgumentError, match="The loss depends on the targets"):
        _ = FineTuner(net(), device="cpu").loss


def test_a_named_loss_is_known_at_once(net) -> None:
    loss = FineTuner(net(), device="cpu", loss="cross_entropy").loss

    torch.testing.assert_close(loss(torch.zeros(4, 3), INDICES), torch.tensor(3.0).log())


def test_the_steps_work_outside_fit(net, blobs) -> None:
    tuner = FineTuner(net(dropout=0.0), device="cpu")
    tuner.model.eval()
    X, y = blobs()

    training, validation = tuner.training_step((X, y)), tuner.validation_step((X, y))

    torch.testing.assert_close(training.loss, F.cross_entropy(tuner.model(X), y))
    torch.testing.assert_close(training.loss, validation.loss)
    assert torch.equal(tuner.predict_step(X), tuner.predict_step((X, y)))
    assert tuner.loss is not None


def test_auxiliary_outputs_count_in_the_training_loss_only(blobs) -> None:
    from torchvision.models import GoogLeNet
    from torchvision.models.googlenet import GoogLeNetOutputs

    class Tiny(GoogLeNet):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.fc, self.side = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return GoogLeNetOutputs(self.fc(x), self.side(x), None) if self.training else self.fc(x)

    X, y = blobs()
    tuner = FineTuner(Tiny(), device="cpu")
    main, side = (F.cross_entropy(layer(X), y) for layer in (tuner.model.fc, tuner.model.side))

    training, validation = tuner.training_step((X, y)), tuner.validation_step((X, y))

    torch.testing.assert_close(training.loss, main + 0.3 * side)
    torch.testing.assert_close(validation.loss, main)
    assert torch.equal(training.outputs, tuner.model.fc(X))


def test_ragged_targets_are_left_to_a_custom_step(blobs) -> None:
    X, _ = blobs(4)
    ragged = [(x, torch.arange(n + 1)) for n, x in enumerate(X)]

    class Own(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return self.model(batch).sum()

    class Ragged(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(ragged)

        def __getitem__(self, index: int) -> Any:
            return ragged[index]

        @staticmethod
        def collate_fn(items: list[Any]) -> Tensor:
            return torch.stack([x for x, _ in items])

    history = Own(nn.Linear(4, 3), device="cpu").fit(Ragged())

    assert list(history[0])[:4] == ["epoch", "phase", "loss", "lr"]


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_loss_that_depends_on_the_batch_size_is_an_error(reduction: str) -> None:
    with pytest.raises(ArgumentError, match="reduction='mean'"):
        infer_task(nn.CrossEntropyLoss(reduction=reduction), None, 3)


def test_label_smoothing_is_an_argument_of_the_loss(net, blobs) -> None:
    tuner = FineTuner(net(dropout=0.0), device="cpu", loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    tuner.fit(blobs(), blobs(9), lr=1e-3)
    X, y = blobs(9)

    smoothed = F.cross_entropy(tuner.predict(X), y, label_smoothing=0.1).item()

    assert tuner.history[0]["val_loss"] == pytest.approx(smoothed, rel=1e-5)
    assert "val_accuracy" in tuner.history[0]
