"""Messages about tasks and losses."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetune import FineTuner
from tests.messages.material import X, advised, case, error, fit, masked, tried, tuner, y


@case("Correct the targets, set the number of outputs with replace_head, or pass another loss")
def loss_for_other_outputs(tmp: Path) -> str:
    said = error(lambda: fit(tuner(loss=nn.CrossEntropyLoss(weight=torch.ones(2)))))
    fit(tuner(loss=nn.CrossEntropyLoss(weight=torch.ones(3))))
    fit(tuner(loss=nn.CrossEntropyLoss(weight=torch.ones(2))).replace_head(2), (X, y % 2))
    return said


@case("For classes, give the model one output per class with replace_head(", "If the labels are -1 and 1, pass 0 and 1")
def one_output(tmp: Path) -> str:
    said = error(lambda: fit(tuner(1)))
    fit(tuner(1).replace_head(int(advised(r"replace_head\((\d+)\)", said))))
    fit(tuner(1, loss="mse"))
    signs = (y > 0) * 2 - 1
    other = error(lambda: fit(tuner(1), (X, signs)))
    fit(tuner(1), (X, (signs > 0).long()))
    return f"{said} {other}"


@case("For two classes, pass 0 and 1: (y > 0). If -1 marks unknown labels, pass a loss that masks them")
def floats_of_signs(tmp: Path) -> str:
    signs = (y > 0).float() * 2 - 1
    said = error(lambda: fit(tuner(1), (X, signs)))
    assert fit(tuner(1), (X, (signs > 0).float())).task.kind == "binary"
    fit(tuner(1, loss=masked), (X, signs))
    assert fit(tuner(1, loss="mse"), (X, signs)).task.kind == "regression"
    return said


@case("The labels are -1 and 1. Pass 0 and 1: (y > 0)")
def signs_as_labels(tmp: Path) -> str:
    signs = (y > 0) * 2 - 1
    said = error(lambda: fit(tuner(2), (X, signs)))
    fit(tuner(2), (X, (signs > 0).long()))
    fit(tuner(1, loss="bce"), (X, (signs > 0).long()))
    return said


@case("the labels are classes{}. Pass loss='mse' to train on the numbers instead")
def numbers_as_classes(tmp: Path) -> str:
    said = tried(tuner())
    assert fit(tuner(1, loss="mse")).task.kind == "regression"
    return said


@case("the labels are 0 and 1 and the model has one output. Pass loss='mse'")
def zeros_and_ones(tmp: Path) -> str:
    said = tried(tuner(1), (X, (y > 0).long()))
    assert fit(tuner(1, loss="mse"), (X, (y > 0).long())).task.kind == "regression"
    return said


@case("the targets are 0 and 1 and the model has one output. Pass loss='mse'")
def floats_of_zeros_and_ones(tmp: Path) -> str:
    said = tried(tuner(1), (X, (y > 0).float()))
    assert fit(tuner(1, loss="mse"), (X, (y > 0).float())).task.kind == "regression"
    return said


@case("If each sample has one class, pass loss='cross_entropy'")
def rows_of_zeros_and_ones(tmp: Path) -> str:
    rows = nn.functional.one_hot(y, 3)
    said = tried(tuner(), (X, rows))
    assert fit(tuner(loss="cross_entropy"), (X, rows)).task.kind == "classification"
    return said


@case("Pass loss='mse' for a regression.")
def rows_of_probabilities(tmp: Path) -> str:
    rows = torch.rand(36, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    said = tried(tuner(), (X, rows))
    assert fit(tuner(loss="mse"), (X, rows)).task.kind == "regression"
    return said


@case("Pass loss='bce' for probabilities of several labels", "Pass loss='bce' for probabilities.")
def decimal_numbers(tmp: Path) -> str:
    rows = X[:, :3].sigmoid()
    said = tried(tuner(), (X, rows)) + tried(tuner(1), (X, rows[:, 0]))
    assert fit(tuner(loss="bce"), (X, rows)).task.kind == "multilabel"
    assert fit(tuner(1, loss="bce"), (X, rows[:, 0])).task.kind == "binary"
    return said


@case("For classes, pass whole numbers: y.long()", "For a regression, give the model one output with replace_head(1)")
def floats_for_several_outputs(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), (X, y.float())))
    fit(tuner(), (X, y.float().long()))
    fit(tuner().replace_head(1), (X, y.float()))
    return said


@case("If -1 marks unknown labels, pass a loss that masks them", "For a regression on the numbers, pass loss='mse'")
def unknown_labels(tmp: Path) -> str:
    rows = nn.functional.one_hot(y, 3)
    rows[::5] = -1
    said = error(lambda: fit(tuner(), (X, rows)))
    fit(tuner(loss=masked, metrics=[]), (X, rows))
    fit(tuner(loss="mse"), (X, rows))
    return said


@case(
    "If -1 marks unknown labels, pass a loss that leaves them out",
    "To train on the numbers themselves, pass loss='mse'",
)
def labels_beyond_zero_and_one(tmp: Path) -> str:
    rows = nn.functional.one_hot(y, 3)
    rows[::5] = -1
    said = error(lambda: fit(tuner(loss="bce"), (X, rows))) + error(lambda: fit(tuner(loss="bce"), (X, rows * 5)))
    fit(tuner(loss=masked, metrics=[]), (X, rows))
    fit(tuner(loss="mse"), (X, rows * 5))
    return said


@case("pass torch.nn.functional.one_hot(y, num_classes); for one class per sample, loss='cross_entropy'")
def indices_for_zeros_and_ones(tmp: Path) -> str:
    rows = nn.functional.one_hot(y, 3)
    trained = fit(tuner(loss="bce"), (X, rows))
    said = error(lambda: trained.evaluate((X, y)))
    trained.evaluate((X, rows))
    fit(tuner(loss="cross_entropy"))
    return said


@case("Class labels are whole numbers. To train on the numbers themselves, pass loss='mse'")
def fractions_as_classes(tmp: Path) -> str:
    said = error(lambda: fit(tuner(loss="cross_entropy"), (X, y + 0.5)))
    fit(tuner(1, loss="mse"), (X, y + 0.5))
    return said


@case("Cross-entropy is for one class per sample. For several, pass loss='bce'")
def several_classes_per_sample(tmp: Path) -> str:
    rows = nn.functional.one_hot(y, 3)
    rows[0] = 1
    said = error(lambda: fit(tuner(loss="cross_entropy"), (X, rows)))
    fit(tuner(loss="bce"), (X, rows))
    return said


@case("The task is a regression, but the labels are names")
def names_for_a_regression(tmp: Path) -> str:
    names = [("cat", "dog", "eel")[label] for label in y.tolist()]
    said = error(lambda: fit(tuner(1, loss="mse"), (X, names)))
    fit(tuner(1).replace_head(int(advised(r"replace_head\((\d+)\)", said))), (X, names))
    return said


@case("Expected the same shape{}. Set the number of outputs with replace_head({})")
def targets_of_another_shape(tmp: Path) -> str:
    said = error(lambda: fit(tuner(3, loss="mse"), (X, X[:, :2])))
    fit(tuner(3, loss="mse").replace_head(int(advised(r"replace_head\((\d+)\)", said))), (X, X[:, :2]))
    return said


@case("Name it with loss=..., or call fit")
def loss_before_data(tmp: Path) -> str:
    said = error(lambda: tuner().loss)
    assert tuner(loss="cross_entropy").loss
    assert fit(tuner()).loss
    return said


@case("Pass a function of the two, which may split the outputs")
def loss_with_more_arguments(tmp: Path) -> str:
    class Both(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).split(1, dim=1)

    class Gaussian(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            (mean, var), targets = self.model(batch[0]), batch[1]
            loss: Tensor = nn.GaussianNLLLoss()(mean[:, 0], targets, var[:, 0].exp())
            return loss

    data = (X, X[:, 0])
    said = error(lambda: fit(tuner(2, loss=nn.GaussianNLLLoss()), data))
    fit(tuner(2, loss=eval(advised(r"(lambda .+exp\(\)\))", said), {"torch": torch})), data)
    fit(Gaussian(Both(4, 2), device="cpu"), data)
    return said


@case(", or pass a loss that takes logits: nn.CrossEntropyLoss()")
def logits_as_log_probabilities(tmp: Path) -> str:
    said = error(lambda: fit(tuner(loss=nn.NLLLoss())))
    layers = nn.Linear(4, 3), nn.LogSoftmax(1)
    fit(FineTuner(nn.Sequential(*layers), loss=nn.NLLLoss(), device="cpu"))
    fit(tuner(loss=nn.CrossEntropyLoss()))
    return said


@case("but they are other numbers, such as {}. Correct the targets, or set log_target={}")
def targets_of_a_divergence(tmp: Path) -> str:
    def trained(rows: Tensor, log_target: bool) -> FineTuner:
        loss = nn.KLDivLoss(reduction="batchmean", log_target=log_target)
        return fit(FineTuner(nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), loss=loss, device="cpu"), (X, rows))

    rows = X[:, :3].softmax(1)
    said = error(lambda: trained(rows.log(), False))
    trained(rows, False)
    trained(rows.log(), True)
    error(lambda: trained(rows, True))
    return said


class Tokens(nn.Module):
    """A model of tokens [N, T, 4], with outputs [N, 3, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).transpose(1, 2)


@case("For one class per element, with outputs [N, C, T], pass loss='cross_entropy'")
def labels_of_tokens(tmp: Path) -> str:
    sequences, said = X.reshape(9, 4, 4), ""
    for tokens in (y.reshape(9, 4), y.reshape(9, 4) % 2):
        said += error(lambda tokens=tokens: fit(FineTuner(Tokens(), device="cpu"), (sequences, tokens)))
        fit(FineTuner(Tokens(), device="cpu", loss="cross_entropy"), (sequences, tokens))
    assert "Expected the same shape or, for one class per element, loss='cross_entropy'." in said
    return said


@case("The rows sum to 1. For probabilities of the classes of each sample, pass loss='cross_entropy'")
def soft_rows_in_a_later_batch(tmp: Path) -> str:
    rows = nn.functional.one_hot(y, 3).float()
    rows[18:] = rows[18:] * 0.7 + 0.1
    loader = DataLoader(TensorDataset(X, rows), batch_size=9)
    said = error(lambda: fit(tuner(), loader))
    fit(tuner(loss="cross_entropy"), loader)
    return said


@case("Give each sample such a target, or pass a loss that takes others")
def targets_that_are_no_tensor(tmp: Path) -> str:
    for target in (["a"], {"y": 1}):
        loader = DataLoader([(row, target) for row in X], batch_size=9)
        models = [tuner(loss=loss) for loss in (None, "cross_entropy", "mse")]
        said = [error(partial(fit, model, loader)) for model in models]
        assert len({*said}) == 1
    fit(tuner(), DataLoader([(row, (int(label),)) for row, label in zip(X, y, strict=True)], batch_size=9))
    fit(tuner(loss=lambda outputs, targets: outputs[:, targets["y"]].mean(), metrics=[]), loader)
    return said[0]
