"""Finding and replacing the head of models that no table knows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from finetune import FineTuner
from finetune.errors import HeadError
from finetune.model.freezing import freeze
from finetune.model.inspection.probing import accepted_example, example_inputs, undisturbed
from finetune.model.outputs import auxiliary_of, logits_of, results_of
from finetune.model.surgery.head_search import check_name, find_head
from finetune.model.surgery.heads import num_features, num_outputs, replace_head
from finetune.nested import tensors_of
from tests.helpers.models import (
    Functional,
    LastResidual,
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
    """Gives `[N]`, as models for one number do."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).tanh()).squeeze(-1)
        return out


class Config:
    """Counts classes the way Hugging Face's configurations do."""

    def __init__(self) -> None:
        self.num_labels = 5
        self.id2label = {i: str(i) for i in range(5)}


class Configured(nn.Module):
    """Counts its classes in three places."""

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
    """A convolution of stride, dilation and padding gives a map of classes."""

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
    """Begins with a recurrent layer or with attention."""

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


def test_searching_and_replacing_leave_no_trace() -> None:
    model = small_cnn()
    model.eval()
    model[5].training = True
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    find_head(model)
    assert accepted_example(model) is not None
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model] == [False, False, False, False, False, True, False]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_buffers_come_back_also_where_a_model_replaces_them() -> None:
    class Counting(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.fc = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            out: Tensor = self.fc(x)
            return out

    model = Counting()
    buffer = model.count
    with undisturbed(model):
        model(X)
        assert model.count == 1
    assert model.count is buffer
    assert model.count == 0
    find_head(model)
    assert model.count == 0


# ---------------------------------------------------------------- what is not clear


class Composed(nn.Module):
    """A layer that stands alone in it, and what happens to its output."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.body, self.fc, self.behind = nn.Linear(6, 8), nn.Linear(8, 5), behind

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.behind(self.fc(self.body(x).relu()))
        return out


class Widths(TwoHeads):
    """Two heads of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 4)


UNCLEAR: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "last residual": (LastResidual, "inner (Linear), last (Linear)"),
    "norm behind": (lambda: Composed(nn.BatchNorm1d(5)), "behind (BatchNorm1d)"),
    "functional": (Functional, "the model itself (Functional)"),
    "two widths": (Widths, "first (Linear), second (Linear)"),
    "no parameters": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1), Zero()), "no layer with parameters"),
    "no input": (lambda: nn.Sequential(nn.ReLU()), "accepted none of the inputs"),
    "strange input": (lambda: nn.Sequential(Zero("ask me"), nn.Linear(6, 5)), "accepted none of the inputs"),
}


class Zero(nn.Module):
    """Ignores its input, or refuses it."""

    def __init__(self, refusal: str = "") -> None:
        super().__init__()
        self.refusal = refusal

    def forward(self, x: Tensor) -> Tensor:
        if self.refusal:
            raise KeyError(self.refusal)
        return torch.zeros(2, 5)


def linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name and isinstance(module, (nn.Linear, nn.Conv2d))]


@pytest.mark.parametrize(("make", "words"), UNCLEAR.values(), ids=UNCLEAR)
def test_an_unclear_head_is_an_error_that_names_candidates(make: Callable[[], nn.Module], words: str) -> None:
    model = make()
    before = dict(model.named_modules())
    with pytest.raises(HeadError) as caught:
        find_head(model)
    message = str(caught.value)
    assert words in message
    assert "replace_head(n, layer=...)" in message
    for name in linear_layers(model):
        layer: Any = model.get_submodule(name)
        assert f"{name} ({layer.weight.shape[1]} -> {layer.weight.shape[0]})" in message
    assert dict(model.named_modules()) == before


def parts(model: nn.Module) -> dict[str, Any]:
    """Return a model's modules and parameters by name, to be compared by identity."""
    return {**{n: id(m) for n, m in model.named_modules()}, **{n: id(p) for n, p in model.named_parameters()}}


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (LastResidual, "last"),
        (lambda: Composed(nn.BatchNorm1d(5)), "fc"),
        (lambda: Composed(nn.BatchNorm1d(5, affine=False)), "fc"),
        (Functional, "backbone"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), "0"),
    ],
)
def test_a_layer_that_is_not_the_whole_head_is_put_back(make: Callable[[], nn.Module], layer: str) -> None:
    model = make()
    before = parts(model)
    with pytest.raises(HeadError, match=rf"With {layer} replaced, .* does not give 7 outputs.* as it was"):
        replace_head(model, 7, (layer,))
    assert parts(model) == before


def test_a_bare_layer_cannot_be_replaced_within_itself() -> None:
    model = nn.Linear(6, 5)
    with pytest.raises(HeadError, match=r"nn.Sequential\(model\)"):
        replace_head(model, 7, find_head(model))
    assert list(model.modules()) == [model]
    assert replace_head(nn.Sequential(model), 7, ("0",)) == ("0",)


def test_a_name_that_is_no_layer_is_an_error_with_the_nearest() -> None:
    model = TokenTransformer()
    check_name(model, "head")
    for name in ("heat", "", "cls", "head.weight"):
        with pytest.raises(HeadError, match=r"TokenTransformer has no layer .* head \(8 -> 5\)"):
            check_name(model, name)
    with pytest.raises(HeadError, match="Did you mean 'head'"):
        check_name(model, "heat")


def test_a_head_without_a_known_size_is_an_error() -> None:
    model = models.resnet18(weights=None)
    model.fc = nn.Identity()
    with pytest.raises(HeadError, match="Identity without a linear"):
        replace_head(model, 7, find_head(model))
    with pytest.raises(HeadError, match="ReLU without a linear"):
        num_outputs(nn.ReLU())


# ---------------------------------------------------------------- given heads


def test_a_module_is_taken_as_the_head_and_trains() -> None:
    model = mlp()
    head = frozen(nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 7)))
    assert replace_head(model, 7, ("2",), head) == ("2",)
    assert model[2] is head
    assert all(p.requires_grad for p in head.parameters())
    assert head.training
    assert (num_features(head), num_outputs(head)) == (8, 7)


def test_a_factory_is_asked_for_the_number_of_features() -> None:
    asked = []

    def make(features: int) -> nn.Module:
        asked.append(features)
        return nn.Linear(features, 7)

    model = mlp()
    replace_head(model, 7, ("2",), make)
    assert asked == [8]
    assert widths(model(X)) == {7}


def test_append_puts_a_layer_behind_the_outputs_there_are() -> None:
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
    "too narrow": (nn.Linear(8, 6), r"\[2, 7\] for two samples, but gave \[2, 6\]"),
    "wrong input": (nn.Linear(9, 7), r"does not accept the 8 features before it, shape \[2, 8\]"),
    "no batch": (nn.Sequential(nn.Linear(8, 1), nn.Flatten(0)), r"but gave \[2\]"),
    "a tuple": (nn.GRU(8, 7), "but gave tuple"),
    "a word": ("apend", "Expected head to be a module, 'append', or a function .* got 'apend'"),
    "a number": (7, "got 7"),
    "a factory of nothing": (lambda features: None, "got <function"),
    "a factory that fails": (broken, "makes no head of 8 features"),
    "a class": (nn.Bilinear, "makes no head of 8 features"),
    "no parameters": (nn.Identity(), r"but gave \[2, 8\]"),
}


@pytest.mark.parametrize(("head", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_head_is_an_error_before_any_change(head: Any, words: str) -> None:
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


@pytest.mark.gpu
def test_trap_29_on_a_gpu() -> None:
    model = small_cnn().cuda().half()
    assert replace_head(model, 7, find_head(model), nn.Linear(4, 7)) == ("6",)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cuda", torch.float16)}


def test_trap_28_counts_of_classes_follow() -> None:
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


def test_a_relu_behind_the_head_goes_also_where_it_is_used_twice() -> None:
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


def test_a_subclass_of_a_layer_gives_way_to_the_layer() -> None:
    class Scaled(nn.Linear):
        def __init__(self, scale: float) -> None:
            super().__init__(8, 5)
            self.scale = scale

    model = nn.Sequential(nn.Linear(6, 8), Scaled(2.0))
    replace_head(model, 7, find_head(model))
    assert type(model[1]) is nn.Linear


# ---------------------------------------------------------------- inputs and outputs


def test_a_models_own_example_comes_first() -> None:
    model = mlp()
    model.example_input_array = torch.ones(3, 6)
    assert next(iter(example_inputs(model))) is model.example_input_array
    assert accepted_example(model) is model.example_input_array
    assert accepted_example(model, X) is X
    assert accepted_example(model, torch.zeros(2, 7)) is None


def test_an_input_that_is_accepted_in_both_modes_is_preferred() -> None:
    class Picky(nn.Module):
        def __init__(self, smallest: int) -> None:
            super().__init__()
            self.conv, self.smallest = nn.Conv2d(3, 2, 1), smallest

        def forward(self, x: Tensor) -> Tensor:
            if self.training and x.shape[-1] < self.smallest:
                raise ValueError
            out: Tensor = self.conv(x)
            return out

    assert accepted_example(Picky(10)).shape[-1] == 224
    assert accepted_example(Picky(300)).shape[-1] == 384
    assert accepted_example(Picky(10_000)).shape[-1] == 224  # none in train mode: the first that runs at all


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


class Several(nn.Module):
    """Gives features and logits, in the order and form asked for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.body, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        features = self.body(x).relu()
        logits = self.fc(features)
        return {
            "logits first": (logits, features),
            "features first": (features, logits),
            "features first in a dictionary": {"features": features, "out": logits},
            "named": {"features": features, "logits": logits},
        }[self.form]


@pytest.mark.parametrize("form", ["logits first", "named"])
def test_features_beside_the_logits_do_not_hide_the_head(form: str) -> None:
    tuner = FineTuner(Several(form), device="cpu").replace_head(5)
    before = tuner.model.fc.weight.clone()
    tuner.fit((torch.randn(20, 4), torch.arange(20) % 5), progress=False)
    assert not torch.equal(before, tuner.model.fc.weight)
    assert tuner.predict(torch.randn(2, 4)).shape == (2, 5)


@pytest.mark.parametrize("form", ["features first", "features first in a dictionary"])
def test_features_are_never_trained_as_if_they_were_logits(form: str) -> None:
    with pytest.raises(HeadError, match=r"not clear that the first are the logits.*under 'logits'"):
        FineTuner(Several(form), device="cpu").fit((torch.randn(20, 4), torch.arange(20) % 3), progress=False)
    with pytest.raises(HeadError, match="is not the model's first"):
        FineTuner(Several(form), device="cpu").replace_head(5, layer="fc")


def test_a_named_layer_of_a_model_that_runs_on_no_guess_is_replaced() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out: Tensor = self.fc(self.a(a) + self.b(b))
            return out

    tuner = FineTuner(Two(), device="cpu").replace_head(5, layer="fc")
    assert tuner.model(torch.zeros(2, 4), torch.zeros(2, 6)).shape == (2, 5)
