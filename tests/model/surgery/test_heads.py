"""Find and replace the head of models that no family knows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from finetune import FineTuner
from finetune.errors import HeadError
from finetune.model.freezing import freeze
from finetune.model.outputs import results_of
from finetune.model.surgery.head_search import find_head
from finetune.model.surgery.heads import num_features, num_outputs, replace_head
from tests.helpers.models import (
    Functional,
    LastResidual,
    LayerBehind,
    Recurrent,
    TiedLanguageModel,
    TokenTransformer,
    TwoHeads,
    small_cnn,
)

X = torch.zeros(2, 6)
TOKENS = torch.zeros(2, 9, dtype=torch.long)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


class Squeezed(nn.Module):
    """Returns `[N]`, as some regression models do."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).tanh()).squeeze(-1)
        return out


class Config:
    """Counts classes as Hugging Face configs do."""

    def __init__(self) -> None:
        self.num_labels = 5
        self.id2label = {i: str(i) for i in range(5)}


class Configured(nn.Module):
    """Records the number of classes in three places."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.num_labels = self.num_classes = 5
        self.classifier = nn.Linear(6, 5)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(pixels), "features": pixels}


class TrainOnly(nn.Module):
    """Has an auxiliary head in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.aux, self.main = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).relu()
        return {"logits": self.main(x), "aux": self.aux(x)} if self.training else self.main(x)


class Dense(nn.Module):
    """A segmentation model whose last convolution has stride, dilation and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.top = nn.Conv2d(8, 4, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="reflect", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.top(self.body(x))
        return out


FOUND: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], Tensor]] = {
    "mlp": (mlp, ("2",), X),
    "cnn": (small_cnn, ("6",), torch.zeros(2, 3, 16, 16)),
    "lstm": (lambda: Recurrent(nn.LSTM), ("classify",), TOKENS),
    "gru": (lambda: Recurrent(nn.GRU), ("classify",), TOKENS),
    "transformer": (TokenTransformer, ("head",), torch.zeros(2, 16, 6)),
    "tuple": (TwoHeads, ("first", "second"), X),
    "list": (lambda: TwoHeads("list"), ("first", "second"), X),
    "dict": (lambda: TwoHeads("dict"), ("first", "second"), X),
    "namedtuple": (lambda: TwoHeads("named"), ("first", "second"), X),
    "mean of two": (lambda: TwoHeads("mean"), ("first", "second"), X),
    "tied": (TiedLanguageModel, ("out",), TOKENS),
    "auxiliary in training": (TrainOnly, ("main", "aux"), X),
    "logits beside features": (Configured, ("classifier",), X),
    "behind an activation": (lambda: nn.Sequential(nn.Linear(6, 5), nn.LogSoftmax(1)), ("0",), X),
    "frozen": (lambda: frozen(mlp()), ("2",), X),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 5)),
               ("3",), torch.zeros(2, 2, 16)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 5, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten()),
               ("1",), torch.zeros(2, 1, 8, 8, 8)),
    "dense": (Dense, ("top",), torch.zeros(2, 3, 16, 16)),
    "rnn first": (lambda: First(nn.GRU(4, 3, batch_first=True)), ("fc",), torch.zeros(2, 5, 4)),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5)), ("1",), X),
    "attention first": (lambda: First(nn.MultiheadAttention(4, 2, batch_first=True)), ("fc",), torch.zeros(2, 5, 4)),
}  # fmt: skip


class First(nn.Module):
    """Starts with a recurrent layer or with attention."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.fc = nn.Linear(3 if isinstance(layer, nn.GRU) else 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)[0]
        out: Tensor = self.fc(y[:, -1])
        return out


def frozen(model: nn.Module) -> nn.Module:
    freeze(model, "*")
    return model


def widths(output: Any) -> set[int]:
    return {tensor.shape[1 if tensor.dim() == 4 else -1] for tensor in results_of(output)}


@pytest.mark.parametrize(("make", "names", "x"), FOUND.values(), ids=FOUND)
@pytest.mark.parametrize("n", [1, 7])
def test_the_head_is_found_and_replaced(
    make: Callable[[], nn.Module], names: tuple[str, ...], x: Tensor, n: int
) -> None:
    model = make()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    values = copy.deepcopy(model.state_dict())
    assert find_head(model) == names
    assert find_head(model, x) == names
    features = [num_features(model.get_submodule(name)) for name in names]
    assert replace_head(model, n, names) == names
    assert [num_features(model.get_submodule(name)) for name in names] == features
    after = {name: id(parameter) for name, parameter in model.named_parameters()}
    new = {name for name in after if after[name] != before.get(name)}
    assert {name.rpartition(".")[0] for name in new} == set(names)
    assert all(model.get_parameter(name).requires_grad for name in new)
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items() if k.rpartition(".")[0] not in names)
    for mode in (True, False):
        assert widths(model.train(mode)(x)) == {n}
    assert find_head(model) == names


def parts(model: nn.Module) -> dict[str, Any]:
    """Return the identities of a model's modules and parameters by name."""
    return {**{n: id(m) for n, m in model.named_modules()}, **{n: id(p) for n, p in model.named_parameters()}}


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (LastResidual, "last"),
        (lambda: LayerBehind(nn.BatchNorm1d(5)), "fc"),
        (lambda: LayerBehind(nn.BatchNorm1d(5, affine=False)), "fc"),
        (Functional, "backbone"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), "0"),
    ],
)
def test_a_layer_that_is_not_the_whole_head_is_restored(make: Callable[[], nn.Module], layer: str) -> None:
    model = make()
    before = parts(model)
    with pytest.raises(HeadError, match=rf"With {layer} replaced, .* does not have 7 outputs.* is unchanged"):
        replace_head(model, 7, (layer,))
    assert parts(model) == before


def test_a_bare_layer_cannot_be_replaced_in_place() -> None:
    model = nn.Linear(6, 5)
    with pytest.raises(HeadError, match=r"nn.Sequential\(model\)"):
        replace_head(model, 7, find_head(model))
    assert list(model.modules()) == [model]
    assert replace_head(nn.Sequential(model), 7, ("0",)) == ("0",)


def test_a_head_of_unknown_size_is_an_error() -> None:
    model = models.resnet18(weights=None)
    model.fc = nn.Identity()
    with pytest.raises(HeadError, match="Identity without a linear"):
        replace_head(model, 7, find_head(model))
    with pytest.raises(HeadError, match="ReLU without a linear"):
        num_outputs(nn.ReLU())


# ---------------------------------------------------------------- given heads


def test_a_given_module_becomes_the_head_and_is_trainable() -> None:
    model = mlp()
    head = frozen(nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 7)))
    assert replace_head(model, 7, ("2",), head) == ("2",)
    assert model[2] is head
    assert all(p.requires_grad for p in head.parameters())
    assert head.training
    assert (num_features(head), num_outputs(head)) == (8, 7)


def test_a_factory_receives_the_number_of_features() -> None:
    asked = []

    def make(features: int) -> nn.Module:
        asked.append(features)
        return nn.Linear(features, 7)

    model = mlp()
    replace_head(model, 7, ("2",), make)
    assert asked == [8]
    assert widths(model(X)) == {7}


def test_append_adds_a_layer_behind_the_present_outputs() -> None:
    model = mlp()
    old = model[2]
    assert replace_head(model, 7, ("2",), "append") == ("2.1",)
    assert model[2][0] is old
    assert (model[2][1].in_features, model[2][1].out_features) == (5, 7)
    squeeze = models.squeezenet1_1(weights=None)
    assert replace_head(squeeze, 7, find_head(squeeze), "append") == ("classifier.1.1",)
    assert widths(squeeze(torch.zeros(2, 3, 64, 64))) == {7}
    two = TwoHeads()
    assert replace_head(two, 7, ("first", "second"), "append") == ("first.1", "second")
    assert widths(two(X)) == {7}


def broken(features: int) -> nn.Module:
    raise KeyError(features)


WRONG = {
    "too narrow": (nn.Linear(8, 6), r"\[2, 7\] for two samples, but got \[2, 6\]"),
    "wrong input": (nn.Linear(9, 7), r"does not accept the model's 8 features, shape \[2, 8\]"),
    "no batch": (nn.Sequential(nn.Linear(8, 1), nn.Flatten(0)), r"but got \[2\]"),
    "a tuple": (nn.GRU(8, 7), "but got tuple"),
    "an unknown word": ("apend", "Expected head to be a module, 'append', or a function .* got 'apend'"),
    "a number": (7, "got 7"),
    "a factory that returns None": (lambda features: None, "got <function"),
    "a factory that fails": (broken, "function given as head fails for 8 features"),
    "a class": (nn.Bilinear, "function given as head fails for 8 features"),
    "no parameters": (nn.Identity(), r"but got \[2, 8\]"),
}


@pytest.mark.parametrize(("head", "words"), WRONG.values(), ids=WRONG)
def test_an_invalid_head_is_an_error_before_any_change(head: Any, words: str) -> None:
    model = mlp()
    before = parts(model)
    with pytest.raises(HeadError, match=words):
        replace_head(model, 7, ("2",), head)
    assert parts(model) == before


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_trap_29_the_new_head_has_the_old_ones_device_and_dtype(dtype: torch.dtype) -> None:
    heads: list[Any] = [None, "append", nn.Linear(8, 7), lambda f: nn.Sequential(nn.Linear(f, 7))]
    for head in heads:
        model = mlp().to(dtype)
        replace_head(model, 7, ("2",), copy.deepcopy(head))
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model(X.to(dtype)).dtype == dtype
    for head in heads:
        model = mlp().to("meta")
        replace_head(model, 7, ("2",), copy.deepcopy(head))
        assert {p.device.type for p in model.parameters()} == {"meta"}


def test_trap_29_on_a_gpu(accelerator: torch.device) -> None:
    model = small_cnn().to(accelerator).half()
    assert replace_head(model, 7, find_head(model), nn.Linear(4, 7)) == ("6",)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {(accelerator.type, torch.float16)}


def test_trap_28_class_counts_follow() -> None:
    model = Configured()
    replace_head(model, 7, find_head(model))
    assert (model.num_classes, model.num_labels, model.config.num_labels) == (7, 7, 7)
    with pytest.raises(HeadError):
        replace_head(model, 9, ("classifier",), nn.Linear(6, 8))
    assert (model.num_classes, model.num_labels, model.config.num_labels) == (7, 7, 7)
    vision = models.mnasnet0_5(weights=None)
    replace_head(vision, 7, find_head(vision), verify=False)
    assert not hasattr(vision, "num_labels")


def test_a_convolution_keeps_its_geometry() -> None:
    model = Dense()
    assert num_features(model.top) == 8
    size = model(torch.zeros(2, 3, 16, 16)).shape[2:]
    replace_head(model, 7, ("top",))
    top = model.top
    assert (top.kernel_size, top.stride, top.padding, top.dilation) == ((3, 3), (2, 2), (2, 2), (2, 2))
    assert top.padding_mode == "reflect"
    assert top.bias is None
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7, *size)


def test_a_relu_behind_the_head_is_removed_even_if_it_is_used_twice() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(6, 8), relu, nn.Linear(8, 5), relu)
    replace_head(model, 7, find_head(model))
    assert model[1] is relu
    assert isinstance(model[3], nn.Identity)
    named = nn.Sequential()
    named.add_module("fc", nn.Linear(6, 5))
    named.add_module("act", nn.ReLU())
    whole = nn.Sequential(named)
    replace_head(whole, 7, ("0.fc",))
    assert isinstance(named.act, nn.Identity)


def test_a_single_output_may_be_squeezed_away() -> None:
    for outputs in (1, 3):
        model = Squeezed(outputs)
        assert find_head(model) == ("b",)
        replace_head(model, 1, ("b",))
        assert model(X).shape == (2,)
        replace_head(model, 7, ("b",))
        assert model(X).shape == (2, 7)


def test_a_subclass_of_linear_is_replaced_by_a_plain_linear() -> None:
    class Scaled(nn.Linear):
        def __init__(self, scale: float) -> None:
            super().__init__(8, 5)
            self.scale = scale

    model = nn.Sequential(nn.Linear(6, 8), Scaled(2.0))
    replace_head(model, 7, find_head(model))
    assert type(model[1]) is nn.Linear


def test_a_named_layer_is_replaced_even_if_no_input_can_be_guessed() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out: Tensor = self.fc(self.a(a) + self.b(b))
            return out

    tuner = FineTuner(Two(), device="cpu").replace_head(5, layer="fc")
    assert tuner.model(torch.zeros(2, 4), torch.zeros(2, 6)).shape == (2, 5)


class Ending(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.fc, self.end = nn.Linear(4, 8), nn.Linear(8, 5), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.fc(self.body(x).relu()))


FEATURES, LABELS = torch.randn(12, 4), torch.arange(12) % 3


@pytest.mark.parametrize(
    "end",
    [nn.ReLU(), nn.ReLU6(), nn.Softmax(1), nn.Sigmoid(), nn.Sequential(nn.Dropout(0.1), nn.ReLU()), nn.Hardtanh()],
)
def test_a_module_that_bounds_the_outputs_is_removed_and_said(
    end: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuner = FineTuner(Ending(end), device="cpu").replace_head(5)
    assert "behind the head is removed" in caplog.text
    tuner.fit((FEATURES, LABELS), progress=False)
    loaded = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "x"), Ending(end), device="cpu")
    assert torch.equal(loaded.predict(FEATURES), tuner.predict(FEATURES))
    assert tuner.predict(FEATURES).min() < 0


def test_loading_does_not_say_again_that_a_relu_was_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def clamped() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU())

    tuner = FineTuner(clamped(), device="cpu").replace_head(3)
    assert "The ReLU '2' behind the head is removed" in caplog.text
    path = tuner.save_checkpoint(tmp_path / "x.safetensors")
    caplog.clear()
    loaded = FineTuner.load_checkpoint(path, clamped(), device="cpu")
    assert caplog.text == ""
    assert isinstance(loaded.model[2], nn.Identity)


@pytest.mark.parametrize(
    ("end", "function"),
    [
        (lambda x: x.softmax(1), "softmax"), (torch.sigmoid, "sigmoid"), (torch.relu, "relu"), (F.relu6, "hardtanh"),
        (lambda x: x.clamp(min=0), "clamp"), (lambda x: F.dropout(x, training=False).relu_().view(-1, 3), "relu"),
    ],
)  # fmt: skip
def test_a_function_that_bounds_the_logits_is_refused_before_training(end: Any, function: str) -> None:
    tuner = FineTuner(Ending(end), device="cpu").replace_head(3)
    before = tuner.model.fc.weight.clone()
    with pytest.raises(HeadError, match=f"its forward applies {function}"):
        tuner.fit((FEATURES, LABELS), progress=False)
    assert torch.equal(tuner.model.fc.weight, before)


@pytest.mark.parametrize(
    ("end", "loss", "labels"),
    [
        (nn.LogSoftmax(1), nn.NLLLoss(), LABELS),
        (lambda x: x.log_softmax(1), None, LABELS),
        (lambda x: x.softmax(1), lambda outputs, targets: F.nll_loss(outputs.log(), targets), LABELS),
        (nn.Sigmoid(), nn.BCELoss(), F.one_hot(LABELS).float()),
        (torch.sigmoid, torch.nn.BCELoss(), F.one_hot(LABELS).float()),
        (torch.relu, "mse", torch.rand(12, 3)),
        (torch.tanh, None, torch.randn(12, 3).tanh()),
    ],
)
def test_what_suits_the_loss_stays_behind_the_head(end: Any, loss: Any, labels: Tensor) -> None:
    tuner = FineTuner(Ending(end), device="cpu", loss=loss).replace_head(3)
    tuner.fit((FEATURES, labels), progress=False)
    assert tuner.model.end is end


def test_an_activation_that_the_body_uses_too_is_not_removed() -> None:
    class Shared(Ending):
        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.fc(self.end(self.body(x))))

    relu = nn.ReLU()
    tuner = FineTuner(Shared(relu), device="cpu").replace_head(3)
    assert tuner.model.end is relu
    with pytest.raises(HeadError, match="its forward applies relu"):
        tuner.fit((FEATURES, LABELS), progress=False)


def test_scores_without_a_layer_of_their_width_have_no_head_to_replace() -> None:
    class Scores(Ending):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([(self.fc(self.body(x)) * k).sum(1) for k in range(3)], 1)

    for n in (2, 3):
        with pytest.raises(HeadError, match="so that is not the whole head"):
            FineTuner(Scores(nn.Identity()), device="cpu").replace_head(n)
