"""Kinds of task and their losses."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune import FineTuner
from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError, DataError
from finetune.training.metrics.trial import try_loss
from finetune.training.tasks import infer_task, takes_probabilities, task_of_kind

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
    logits, labels = torch.eye(3), torch.tensor([0, 2, 1])
    assert infer_task(None, None, None).loss(logits, labels) == F.cross_entropy(logits, labels)


def test_class_indices_for_one_output_are_an_error() -> None:
    with pytest.raises(DataError, match=r"class indices up to 2.*replace_head\(3\)"):
        infer_task(None, INDICES, 1)


def test_an_unknown_loss_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ArgumentError, match=r"There is no loss 'crossentropy'. Did you mean 'cross_entropy'"):
        infer_task("crossentropy", None, None)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("binary_crossentropy", "'bce'"),
        ("BCEWithLogitsLoss", "'bce'"),
        ("sparse_categorical_crossentropy", "'cross_entropy'"),
        ("mean_squared_error", "'mse'"),
        ("mae", "torch.nn.L1Loss()"),
        ("huber", "torch.nn.HuberLoss()"),
    ],
)
def test_a_loss_of_another_library_is_named_as_here(name: str, ours: str) -> None:
    with pytest.raises(ArgumentError, match=f"There is no loss '{name}'. Did you mean {re.escape(ours)}?"):
        infer_task(name, None, None)


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


# ---------------------------------------------------------------------- what could mean several tasks


@pytest.mark.parametrize(
    ("targets", "outputs", "message"),
    [
        (torch.tensor([-1, 1]), 1, r"-1 and 1, pass 0 and 1: \(y > 0\).*loss='mse'"),
        (torch.tensor([10, 50]), 1, r"replace_head\(51\).*loss='mse'"),
        (BITS.float(), 2, r"mean regression, but the model has 2 outputs.*y\.long\(\).*replace_head\(1\)"),
        (FLOATS, 3, r"mean regression, but the model has 3 outputs\. For a regression"),
        (HOT * 2, 3, "rows of 3 whole numbers from 0 to 2"),
        (HOT * 2 - 1, 3, "-1 marks unknown labels"),
        ((HOT * 2 - 1).float(), 3, "-1 marks unknown labels"),
        (torch.tensor([[3, 7], [1, 2]]), 2, "could mean several tasks"),
        (BITS.float() * 2 - 1, 1, r"pass 0 and 1: \(y > 0\).*loss='mse'"),
        (BITS.float()[:, None] * 2 - 1, 1, "could mean several tasks"),
        (torch.tensor([-1.0, 0.0, 1.0])[:, None], 1, "marks unknown labels"),
    ],
)
def test_targets_that_could_mean_several_tasks_are_errors(targets: Tensor, outputs: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        infer_task(None, targets, outputs)
    assert infer_task(lambda o, t: o.mean(), targets, outputs).kind is None  # a custom loss knows its task
    assert infer_task("mse", targets, outputs).kind == REGRESSION


@pytest.mark.parametrize(
    ("loss", "targets", "outputs", "why"),
    [
        (
            None,
            INDICES,
            3,
            "Classification with cross-entropy: the labels are classes and the model has 3 outputs",
        ),
        (None, BITS, 1, "Binary classification with binary cross-entropy: the labels are 0 and 1 and"),
        (None, HOT, 3, "Multi-label classification .* pass loss='cross_entropy'"),
        (None, torch.tensor([[0.9, 0.1], [0.5, 0.5]]), 2, "probabilities that sum to 1. Pass loss='mse'"),
        (None, FLOATS, 1, "Regression with mean squared error: the targets are decimal numbers. Pass loss='bce'"),
        ("mse", None, 1, "Regression with mean squared error, as the loss says"),
        (nn.L1Loss(), None, 1, "Regression with L1Loss, as the loss says"),
        (F.cross_entropy, None, 3, "Classification with cross_entropy, as the loss says"),
    ],
)
def test_a_task_says_why(loss: Any, targets: Tensor | None, outputs: int, why: str) -> None:
    assert re.search(why, infer_task(loss, targets, outputs).why)


@pytest.mark.parametrize("kind", [CLASSIFICATION, BINARY, MULTILABEL, REGRESSION])
def test_only_an_inferred_task_refuses_soft_targets(kind: str) -> None:
    assert task_of_kind(None, kind).rule(1).soft
    assert not infer_task(None, BITS, 1).rule(1).soft
    assert infer_task("bce", BITS, 1).rule(1).soft


# ---------------------------------------------------------------------- targets in the form that a loss takes

LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([0, 2, 1, 1])
ONE_HOT = F.one_hot(CLASSES, 3)


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss(), F.cross_entropy, partial(F.cross_entropy)])
@pytest.mark.parametrize(
    "targets",
    [
        CLASSES,
        CLASSES.int(),
        CLASSES.short(),
        CLASSES[:, None],
        CLASSES.double(),
        ONE_HOT,
        ONE_HOT.bool(),
        ONE_HOT.float(),
    ],
)
def test_a_cross_entropy_takes_classes_of_any_type(loss: Any, targets: Tensor) -> None:
    value = infer_task(loss, targets, 3).loss(LOGITS, targets)
    torch.testing.assert_close(value, F.cross_entropy(LOGITS, CLASSES))


@pytest.mark.parametrize("targets", [BITS, BITS.int(), BITS.bool(), BITS.double(), BITS[:, None], BITS.float()])
@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(), nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(), F.mse_loss]
)
def test_a_loss_of_floats_takes_numbers_of_any_type(loss: Any, targets: Tensor) -> None:
    value = infer_task(loss, targets, 1).loss(COLUMN, targets)
    torch.testing.assert_close(value, loss(COLUMN[:, 0], BITS.float()))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.MultiLabelSoftMarginLoss()])
def test_a_loss_of_rows_takes_whole_numbers(loss: Any) -> None:
    torch.testing.assert_close(infer_task(loss, ONE_HOT, 3).loss(LOGITS, ONE_HOT), loss(LOGITS, ONE_HOT.float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_weights_of_a_loss_may_have_another_type(dtype: torch.dtype) -> None:
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
    value = infer_task(nn.CrossEntropyLoss(weight=weights), CLASSES, 3).loss(LOGITS, CLASSES)
    torch.testing.assert_close(value.float(), F.cross_entropy(LOGITS, CLASSES, weight=weights.float()))


def test_weights_of_a_loss_follow_the_outputs_to_their_device(accelerator: torch.device) -> None:
    loss = infer_task(nn.CrossEntropyLoss(weight=torch.ones(3)), CLASSES, 3).loss
    assert loss(LOGITS.to(accelerator), CLASSES.to(accelerator)).device.type == accelerator.type


@pytest.mark.parametrize(
    ("loss", "outputs", "expected"),
    [
        (nn.BCELoss(), torch.tensor([[0.2], [0.8]]), torch.tensor([[0.2], [0.8]])),
        (F.binary_cross_entropy, torch.tensor([[0.2], [0.8]]), torch.tensor([[0.2], [0.8]])),
        (nn.BCEWithLogitsLoss(), torch.tensor([[0.0]]), torch.tensor([[0.5]])),
    ],
)
def test_the_loss_says_what_outputs_are(loss: Any, outputs: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(infer_task(loss, None, 1).probabilities(outputs), expected)


def test_log_probabilities_become_probabilities() -> None:
    task = infer_task(nn.NLLLoss(), None, 3)
    torch.testing.assert_close(task.probabilities(LOGITS.log_softmax(1)), LOGITS.softmax(1))


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(reduction="sum"), partial(F.cross_entropy, reduction="none"), nn.MSELoss(reduction="sum")],
)
def test_a_loss_that_is_no_mean_is_refused(loss: Any) -> None:
    with pytest.raises(ArgumentError, match="depends on the batch size"):
        infer_task(loss, None, 3)


# ---------------------------------------------------------------------- what a loss takes and leaves out


class OwnBinary(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy(outputs, targets)


def by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(targets * outputs.log() + (1 - targets) * (1 - outputs).log()).mean()


@pytest.mark.parametrize(
    ("loss", "taken"),
    [
        (nn.BCELoss(), True),
        (nn.BCELoss(weight=torch.ones(7)), True),
        (F.binary_cross_entropy, True),
        (partial(F.binary_cross_entropy, weight=None), True),
        (lambda outputs, targets: F.binary_cross_entropy(outputs[:, 0], targets), True),
        (OwnBinary(), True),
        (by_hand, True),
        (nn.BCEWithLogitsLoss(), False),
        (F.binary_cross_entropy_with_logits, False),
        (lambda outputs, targets: F.binary_cross_entropy(outputs.sigmoid(), targets), False),
        (nn.MSELoss(), False),
        (nn.CrossEntropyLoss(), False),
        (lambda outputs, targets: outputs["logits"], False),
        (nn.MultiLabelSoftMarginLoss(), False),
    ],
)
def test_which_losses_take_probabilities(loss: Any, taken: bool) -> None:
    assert takes_probabilities(loss) == taken
    outputs = torch.tensor([[0.2], [0.8]])
    task = infer_task(loss, torch.tensor([0.0, 1.0]), 1)
    if task.kind == BINARY:
        assert torch.equal(task.probabilities(outputs), outputs if taken else outputs.sigmoid())


@pytest.mark.parametrize("loss", [nn.BCELoss(), F.binary_cross_entropy, partial(F.binary_cross_entropy)])
@pytest.mark.parametrize("columns", [1, 2])
def test_metrics_of_a_model_that_gives_probabilities(loss: Any, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(40, 4, generator=generator)
    y = (X[:, :columns] > 0).float()
    torch.manual_seed(0)
    tuner = FineTuner(nn.Sequential(nn.Linear(4, columns), nn.Sigmoid()), device="cpu", loss=loss)

    tuner.fit((X, y), epochs=5, lr=1e-2)

    right = ((tuner.predict(X) > 0.5) == y.bool()).float().mean().item()
    assert tuner.evaluate((X, y))["accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("loss", ["bce", nn.BCEWithLogitsLoss()])
def test_soft_targets_count_by_the_nearer_label(loss: Any, columns: int) -> None:
    X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    hard = (X[:, :columns] > 0).float()
    torch.manual_seed(0)
    tuner = FineTuner(nn.Linear(4, columns), device="cpu", loss=loss)

    right = ((tuner.predict(X) > 0) == hard.bool()).float().mean().item()
    assert tuner.evaluate((X, hard * 0.9 + 0.05))["accuracy"] == pytest.approx(right)


def marked(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=2)


vars(marked)["ignore_index"] = 2


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (nn.CrossEntropyLoss(), -100),
        (nn.CrossEntropyLoss(ignore_index=2), 2),
        (nn.NLLLoss(ignore_index=1), 1),
        (F.cross_entropy, -100),
        (partial(F.cross_entropy, ignore_index=0), 0),
        (partial(F.nll_loss, ignore_index=0), 0),
        (nn.MultiMarginLoss(), None),
        (lambda outputs, targets: outputs.mean(), None),
        (lambda outputs, targets, ignore_index=1: outputs.mean(), 1),
        (marked, 2),
    ],
)
def test_which_targets_a_loss_counts(loss: Any, ignored: int | None) -> None:
    targets = torch.tensor([0, 1, 2, -100])
    counted = infer_task(loss, torch.tensor([0, 1, 2]), 3).counted(targets)

    if ignored is None:
        assert counted is None
    else:
        assert counted is not None
        assert torch.equal(counted, targets != ignored)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([-1, -1]), r"2 of 2 labels are out of range.*ignore_index=-1"),
        (torch.tensor([0, 255]), r"sample 1: 255.*ignore_index=255"),
        (torch.tensor([[[0, 255]]]), r"out of range.*ignore_index=255"),
        (torch.zeros(2, 5), "The loss does not accept outputs of shape"),
    ],
)
def test_a_trial_of_the_loss_names_the_target_at_fault(targets: Tensor, message: str) -> None:
    outputs = torch.zeros(1, 3, 1, 2) if targets.dim() == 3 else torch.zeros(2, 3)
    with pytest.raises(DataError, match=message):
        try_loss(None, infer_task("cross_entropy", None, 3), outputs, targets)


def test_complex_targets_belong_to_no_task() -> None:
    with pytest.raises(DataError, match=r"complex.*y\.real"):
        infer_task(None, torch.zeros(2, dtype=torch.complex64), 1)


def test_a_sum_over_the_batch_size_is_a_mean() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))
    FineTuner(model, device="cpu", loss=nn.KLDivLoss(reduction="batchmean")).fit(
        (torch.eye(3, 4), torch.eye(3) / 2 + 1 / 6), progress=False
    )


def test_names_are_not_offered_as_numbers() -> None:
    numbers = infer_task(None, torch.arange(3), 3)
    names = infer_task(None, torch.arange(3), 3, named=True)

    assert "train on the numbers" in numbers.why
    assert names.why.endswith("the labels are names and the model has 3 outputs.")
