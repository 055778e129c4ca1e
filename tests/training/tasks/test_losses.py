"""Custom losses get targets of a form that they take, and are tried before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune import FineTuner
from finetune.errors import ArgumentError
from finetune.training.tasks import infer_task

COLUMN = torch.tensor([[0.2], [1.5], [-0.4], [3.0]])
BITS = torch.tensor([0, 1, 1, 0])
X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
SIGNS = (X[:, 0] > 0).long()


def centred(outputs: Tensor, targets: Tensor) -> Tensor:
    outputs, targets = outputs.flatten() - outputs.mean(), targets - targets.float().mean()
    return -F.cosine_similarity(outputs, targets, dim=0)


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.mse_loss(outputs.squeeze(1) * self.scale, targets.float())


@pytest.mark.parametrize("targets", [BITS, BITS.float(), BITS.bool()])
@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (lambda o, t: F.mse_loss(o.squeeze(1), t.float()), F.mse_loss),
        (lambda o, t: ((o[:, 0] - t.float()) ** 2).mean(), F.mse_loss),
        (lambda o, t: F.l1_loss(o.flatten(), t.float()), F.l1_loss),
        (lambda o, t: F.mse_loss(o, t.float().unsqueeze(1)), F.mse_loss),
        (lambda o, t: F.binary_cross_entropy_with_logits(o.squeeze(1), t), F.binary_cross_entropy_with_logits),
        (F.smooth_l1_loss, F.smooth_l1_loss),
        (lambda o, t: (o - t.float()).abs().mean(), F.l1_loss),
        (lambda o, t: F.binary_cross_entropy_with_logits(o, t) * 1, F.binary_cross_entropy_with_logits),
        (
            lambda o, t: F.cross_entropy(torch.cat([torch.zeros_like(o), o], 1), t.long()),
            F.binary_cross_entropy_with_logits,
        ),
        (lambda o, t: centred(o, t.float()), centred),
        (Learned(), F.mse_loss),
    ],
)
def test_a_custom_loss_gets_targets_as_it_takes_them(loss: Any, plain: Any, targets: Tensor) -> None:
    value = infer_task(loss, None, 1).loss(COLUMN, targets)
    torch.testing.assert_close(value, plain(COLUMN[:, 0], BITS.float()))


def test_a_trial_leaves_the_state_of_a_loss() -> None:
    loss = Learned()
    infer_task(loss, None, 1).loss(COLUMN, BITS)
    assert loss.calls == 1


def test_a_loss_of_pairs_gets_targets_as_they_are() -> None:
    seen: list[Tensor] = []

    def ranking(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return ((outputs - outputs.T) * (targets[:, None] < targets[None, :])).relu().mean()

    infer_task(ranking, None, 1).loss(COLUMN, BITS)
    assert seen[-1] is BITS


def test_rows_of_integers_become_floats_where_a_loss_takes_only_those() -> None:
    rows = torch.tensor([[0, 1, 1], [1, 0, 0]])
    outputs = torch.linspace(-1, 1, 6).reshape(2, 3)
    value = infer_task(lambda o, t: F.binary_cross_entropy_with_logits(o, t) * 1, None, 3).loss(outputs, rows)
    torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(outputs, rows.float()))


@pytest.mark.parametrize(
    ("loss", "outputs", "said"),
    [
        (lambda t, o: F.cross_entropy(o, t), 2, "works on them in the other order"),
        (lambda t, o: F.nll_loss(o.log_softmax(1), t), 2, "works on them in the other order"),
        (lambda o, t: F.cross_entropy(o, t, reduction="sum"), 2, "depends on the batch size"),
        (lambda o, t: (o[:, 0] - t).square().sum(), 1, "depends on the batch size"),
    ],
)
def test_a_custom_loss_at_fault_is_an_error_before_training(loss: Any, outputs: int, said: str) -> None:
    tuner = FineTuner(nn.Linear(4, outputs), device="cpu", loss=loss)
    before = tuner.model.weight.clone()
    for verb in (tuner.fit, tuner.evaluate, tuner.find_lr):
        with pytest.raises(ArgumentError, match=said):
            verb((X, SIGNS))
    assert torch.equal(tuner.model.weight, before)


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: F.cross_entropy(o, t) * 1,
        lambda o, t: F.cross_entropy(o, t, reduction="sum") / len(t),
        lambda o, t: F.cross_entropy(o, t) + (o @ o.T).logsumexp(1).mean(),
        lambda o, t: F.cross_entropy(o, t) if len(t) == 12 else 1 / 0,
        lambda o, t: torch.cdist(o, o).mean() + o.sum() * 0,
    ],
)
def test_other_custom_losses_are_trained_on(loss: Any) -> None:
    FineTuner(nn.Linear(4, 2), device="cpu", loss=loss).fit((X, SIGNS), batch_size=12, progress=False)
