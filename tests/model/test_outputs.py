"""Which tensors of an output are the logits, and which are auxiliary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from finetune import FineTuner
from finetune.errors import FineTuneError, HeadError
from finetune.model.outputs import auxiliary_of, call, check_logits, logits_of, results_of
from finetune.nested import tensors_of


def test_results_are_found_in_any_form() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    output = models.GoogLeNetOutputs(a, b, None)
    assert logits_of(output) is a
    assert auxiliary_of(output) == [b]
    assert logits_of({"features": b, "logits": a}) is a
    assert auxiliary_of({"logits": a, "aux": b, "aux_loss": 3, 0: b}) == [b]
    assert logits_of(a) is a
    assert logits_of([None, (b, a)]) is b
    assert logits_of("nothing") == "nothing"
    assert logits_of({"logits": torch.zeros(2, 1, 7)}).shape == (2, 7)  # as VideoPrism gives them
    assert logits_of({"logits": torch.zeros(2, 3, 7)}).shape == (2, 3, 7)
    assert auxiliary_of((a, b), heads=1) == []
    assert auxiliary_of((a, b, torch.zeros(2)), heads=2) == [b]
    assert auxiliary_of(a) == []
    assert results_of(output) == [a, b]
    assert results_of([a, b]) == [a, b]
    assert results_of((a, [b, b], None)) == [a]  # logits and hidden states
    assert results_of(([a], b)) == [a, b]
    assert tensors_of({"x": [a, {"y": (b,)}], "z": 3}) == [a, b]
    assert tensors_of(None) == []


def test_logits_are_checked_only_where_several_results_differ_in_shape() -> None:
    model, features, logits = nn.Linear(1, 1), torch.zeros(2, 8), torch.zeros(2, 3)
    for output, outputs in (
        (logits, 5),
        ((logits, logits), 5),
        ((logits, features), 3),
        ((features, logits), None),
        ((logits, features), 1),
    ):
        check_logits(model, output, outputs)
    for output, outputs in (((features, logits), 3), ((logits, features), 0)):
        with pytest.raises(
            HeadError, match=r"Linear returns several results, .* may not be the logits: their shapes are"
        ):
            check_logits(model, output, outputs)


class One(nn.Module):
    def forward(self, x: Any) -> Any:
        return x


class OneOrMore(nn.Module):
    def forward(self, x: Any, extra: Any = None) -> Any:
        return x if extra is None else (x, extra)


class Several(nn.Module):
    def forward(self, a: Any, b: Any) -> Any:
        return a, b


class Anything(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


A, B = torch.zeros(2, 3), torch.ones(2, 4)
RAGGED = [torch.zeros(5, 3), torch.zeros(1, 3)]
PACKED = nn.utils.rnn.pack_sequence(RAGGED)


class Inputs(NamedTuple):
    a: Tensor
    b: Tensor


@pytest.mark.parametrize(
    ("model", "inputs", "samples", "expected"),
    [
        (One(), A, 2, A),
        (One(), [A], 2, A),
        (One(), RAGGED, 2, RAGGED),
        (One(), RAGGED[:1], 1, RAGGED[:1]),  # a last batch of one
        (One(), tuple(RAGGED), None, tuple(RAGGED)),
        (One(), PACKED, 2, PACKED),
        (One(), Inputs(A, B), 2, Inputs(A, B)),
        (OneOrMore(), PACKED, None, PACKED),
        (OneOrMore(), [A, B], 2, (A, B)),
        (OneOrMore(), RAGGED, 2, RAGGED),
        (OneOrMore(), Inputs(A, B), None, Inputs(A, B)),
        (Several(), [A, B], 2, (A, B)),
        (Several(), RAGGED, 2, tuple(RAGGED)),
        (Several(), Inputs(A, B), 2, (A, B)),
        (Several(), {"b": B, "a": A}, 2, (A, B)),
        (One(), {"image": A}, 2, A),
        (One(), {"x": A}, 2, A),
        (nn.Identity(), {"image": A}, 2, A),
        (OneOrMore(), {"extra": B, "x": A}, 2, (A, B)),
        (Anything(), {"image": A}, 2, ((), {"image": A})),
        (Anything(), [A, B], 2, ((A, B), {})),
        (Anything(), PACKED, 2, ((PACKED,), {})),
    ],
)
def test_inputs_are_passed_as_forward_takes_them(model: nn.Module, inputs: Any, samples: int, expected: Any) -> None:
    found = call(model, inputs, samples)
    assert type(found) is type(expected)
    assert all(one is other for one, other in zip(tensors_of(found), tensors_of(expected), strict=True))


class Squeezed(nn.Module):
    """A model that drops every dimension of length one, as many do for a single output."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x).squeeze()
        return out


@pytest.mark.parametrize(
    ("inputs", "samples", "shape"),
    [
        (torch.rand(1, 4), None, (1, 3)),
        (torch.rand(1, 4), 1, (1, 3)),
        ({"x": torch.rand(1, 4)}, 1, (1, 3)),
        ((torch.rand(1, 4),), 1, (1, 3)),
        (torch.rand(2, 4), 2, (2, 3)),
        (torch.rand(1, 5, 4), 5, (5, 3)),  # five samples of one time step
        (torch.rand(5, 1, 4), 1, (5, 3)),  # one sample of five time steps
    ],
)
def test_outputs_of_one_sample_keep_its_dimension(inputs: Any, samples: int | None, shape: tuple[int, ...]) -> None:
    assert call(Squeezed(3), inputs, samples).shape == shape


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (1, torch.rand(9)),
        (1, torch.arange(9) % 2),
        (1, (torch.arange(9) % 2).float()),
        (3, torch.arange(9) % 3),
        (3, (torch.rand(9, 3) > 0.5).float()),
        (3, torch.rand(9, 3) * 7),
    ],
    ids=["regression", "binary", "binary in decimals", "classes", "several labels", "several numbers"],
)
def test_every_verb_takes_a_last_batch_of_one(outputs: int, targets: Tensor) -> None:
    X = torch.rand(9, 4)
    tuner = FineTuner(Squeezed(outputs), device="cpu")
    tuner.fit((X, targets), (X, targets), batch_size=4, progress=False)
    whole = tuner.evaluate((X, targets), batch_size=9)
    assert tuner.evaluate((X, targets), batch_size=4) == pytest.approx(whole, rel=1e-3)
    shape = (9,) if outputs == 1 else (9, outputs)
    assert tuner.predict(X, batch_size=4).shape == shape


class Ending(nn.Module):
    """A model with a function behind its head."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.end = nn.Linear(4, 3), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.fc(x))


@pytest.mark.parametrize("verb", ["fit", "find_lr"])
@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda z: None, "Ending returns a NoneType. Expected tensors"),
        (lambda z: z.detach().numpy(), "Ending returns a ndarray. Expected tensors"),
        (lambda z: "cat", "Ending returns a str. Expected tensors"),
        (lambda z: [], "Ending returns a list. Expected tensors"),
        (torch.mean, "one number for a batch"),
        (torch.sum, "one number for a batch"),
        (torch.tanh, "applies tanh to them"),
        (lambda z: z.tanh().unsqueeze(1).squeeze(1), "applies tanh to them"),
    ],
    ids=["nothing", "array", "text", "empty", "mean", "sum", "tanh", "tanh and a view"],
)
def test_outputs_that_cannot_be_trained_on_are_refused(end: Callable[[Tensor], Any], said: str, verb: str) -> None:
    tuner = FineTuner(Ending(end), device="cpu")
    with pytest.raises(FineTuneError, match=said):
        getattr(tuner, verb)((torch.rand(8, 4), torch.arange(8) % 3))
    assert not tuner.history


def test_capped_logits_are_logits() -> None:
    tuner = FineTuner(Ending(lambda z: 30 * torch.tanh(z / 30)), device="cpu")  # as in Gemma
    tuner.fit((torch.rand(8, 4), torch.arange(8) % 3), val=False, progress=False)
    assert len(tuner.history) == 1
