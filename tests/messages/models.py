"""Messages about models, their layers and their weights."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetune import FineTuner, Phase
from finetune.callbacks import ClassWeights, EarlyStopping
from tests.helpers.datasets import Items
from tests.messages.material import IMAGES, ITEMS, X, advised, case, error, fit, tuner, warned, y


@case("Correct its forward; a mean belongs in the loss")
def one_number_for_a_batch(tmp: Path) -> str:
    class Mean(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean()

    said = error(lambda: fit(FineTuner(Mean(4, 3), device="cpu")))
    fit(FineTuner(nn.Linear(4, 3), device="cpu"))
    return said


@case("leave out weights=None, or pass the file of its weights")
def random_weights(tmp: Path) -> str:
    data = torch.rand(12, 3, 32, 32), torch.arange(12) % 2
    model = FineTuner("squeezenet1_1", weights=None, device="cpu", seed=1)
    said = str(" ".join(model.advise(data).reasons))
    save_file(model.model.state_dict(), tmp / "mine.safetensors")
    trained = FineTuner("squeezenet1_1", weights=tmp / "mine.safetensors", device="cpu").advise(data)
    assert "nothing was pretrained" not in str(trained)
    return said


@case(
    "Pass {}=.",
    "Pass {}= to {}.",
    "Pass the pair (X, y) as the data",
    "Call replace_head(n) for n outputs",
    "Pass the size, mean and std as preprocessing=Preprocessing(...)",
    "Pass callbacks=ClassWeights() to fit",
    "Pass callbacks=EarlyStopping(patience=...) to fit",
    "Pass a DataLoader as the data to do it another way",
)
def arguments_of_others(tmp: Path) -> str:
    names = ("tokenizer", "learning_rate", "x", "num_classes", "transform", "class_weight", "patience", "num_workers")
    said = [error(lambda name=name: tuner(**{name: 2})) for name in names]  # type: ignore[misc]
    assert "Pass preprocessing=." in said[0]
    assert "Pass lr= to fit." in said[1]
    callbacks = [ClassWeights(), EarlyStopping(patience=2)]
    fit(tuner(preprocessing=IMAGES).replace_head(3), (X, y), (X, y), lr=1e-3, callbacks=callbacks)
    fit(tuner(), DataLoader(Items(ITEMS), batch_size=9, shuffle=True))
    return " ".join(said)


@case("For random weights, pass weights=None")
def unknown_weights(tmp: Path) -> str:
    said = error(lambda: FineTuner("squeezenet1_1", weights="IMAGENET", device="cpu"))
    FineTuner("squeezenet1_1", weights=None, device="cpu")
    return said


@case("Pass inputs of the shape and dtype that the model expects")
def inputs_of_another_shape(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), (X[:, :3], y)))
    fit(tuner(), (X, y))
    return said


@case("matches only modules without parameters")
def pattern_without_parameters(tmp: Path) -> str:
    said = error(lambda: tuner().freeze("1"))
    tuner().freeze("0")
    return said


@case("To select everything, leave the argument out")
def pattern_that_is_none(tmp: Path) -> str:
    said = error(lambda: tuner().unfreeze(3))  # type: ignore[arg-type]
    tuner().unfreeze()
    return said


@case("for LoRA to adapt. Choose another strategy")
def nothing_to_adapt(tmp: Path) -> str:
    model = FineTuner(nn.Linear(4, 3), device="cpu")
    said = error(lambda: fit(model, strategy="lora"))
    fit(model, strategy="full_finetune")
    return said


class Pair(nn.Module):
    """Two layers whose results are added, so that neither is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) * self.two(x)[:, :3]


@case("the first result of {} does not have {} outputs")
def wrong_layer(tmp: Path) -> str:
    model = FineTuner(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)), device="cpu")
    said = error(lambda: model.replace_head(5, layer="0"))
    fit(model.replace_head(5, layer="2"))
    return said


@case("Name it with replace_head(n, layer=...)")
def ambiguous_head(tmp: Path) -> str:
    said = error(lambda: FineTuner(Pair(), device="cpu").replace_head(5))
    fit(FineTuner(nn.Sequential(Pair(), nn.Linear(3, 3)), device="cpu").replace_head(5, layer="1"))
    return said


@case("so its size is unknown. Name the layer to replace")
def head_of_unknown_size(tmp: Path) -> str:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    model = FineTuner(nn.Sequential(nn.Linear(4, 4), Own()), device="cpu")
    said = error(lambda: model.replace_head(2, layer="1"))
    fit(FineTuner(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), device="cpu").replace_head(3, layer="0"))
    return said


@case("cannot be adapted to in_channels={}")
def channels_that_cannot_be_adapted(tmp: Path) -> str:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) @ self.weight

    said = error(lambda: FineTuner(Own(), in_channels=5, device="cpu"))
    front = nn.Sequential(nn.Conv2d(5, 3, 1), Own())
    fit(FineTuner(front, device="cpu", loss="cross_entropy"), (torch.randn(8, 5, 4, 4), torch.arange(8) % 2))
    return said


class Scaled(nn.Module):
    """A layer without reset_parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@case("Add a reset_parameters() method to that class")
def layer_without_reset(tmp: Path) -> str:
    class Resettable(Scaled):
        def reset_parameters(self) -> None:
            nn.init.ones_(self.scale)

    def made(layer: nn.Module) -> FineTuner:
        return FineTuner(nn.Sequential(layer, nn.Linear(4, 3)), device="cpu")

    said = error(lambda: fit(made(Scaled()), strategy="from_scratch"))
    fit(made(Resettable()), strategy="from_scratch")
    fit(made(Scaled()), strategy="full_finetune")
    return said


@case("is frozen, so it stays random if it is new. Train it with unfreeze(")
def frozen_head(tmp: Path) -> str:
    model = tuner().replace_head(3)
    model.freeze("2")
    said = warned(lambda: fit(model))
    fit(model.unfreeze(advised(r"unfreeze\('(.+?)'\)", said)))
    return said


@case("so adapters of rank {} cannot be added. Use rank")
def adapters_of_another_rank(tmp: Path) -> str:
    model = fit(tuner(), strategy=[Phase(lora_rank=2)])
    said = error(lambda: fit(model, strategy=[Phase(lora_rank=4)]))
    fit(model, strategy=[Phase(lora_rank=2)])
    fit(tuner(), strategy=[Phase(lora_rank=4)])
    return said


@case("The trainable weights are in half precision")
def half_weights(tmp: Path) -> str:
    model = tuner().model.half()
    said = warned(lambda: fit(FineTuner(model, device="cpu"), (X.half(), y)))
    fit(FineTuner(model.float(), device="cpu", precision="bf16"))
    return said


@case("whose gradients it scales. Pass model.float(); the computation then")
def half_weights_with_scaled_gradients(tmp: Path) -> str:
    model = tuner().model.half()
    said = error(lambda: fit(FineTuner(model, device="cpu", precision="fp16"), (X.half(), y)))
    fit(FineTuner(model.float(), device="cpu", precision="fp16"))
    return said


@case("The weights are {}. Pass X.to({}), or model.float()")
def inputs_of_another_dtype(tmp: Path) -> str:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = tuner().model.to(dtype)
        said = error(lambda model=model: FineTuner(model, device="cpu").predict(X))
        FineTuner(model, device="cpu").predict(X.to(dtype))
        FineTuner(model.float(), device="cpu").predict(X)
        assert f"Pass X.to({dtype})" in said
    return said


@case("Rename the method to {}; if it is no step, to a name unlike theirs")
def misspelled_step(tmp: Path) -> str:
    def step(own: FineTuner, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(own.model(batch[0]), batch[1])

    def made(name: str) -> FineTuner:
        return type("Own", (FineTuner,), {name: step})(tuner().model, device="cpu")

    said = error(lambda: made("train_step"))
    fit(made("training_step"))
    fit(made("batch_loss"))
    return said


class Picky(nn.Module):
    """A model that accepts large numbers only, so that no input for it can be guessed, with two layers of any name."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() < 100:
            raise ValueError("These inputs are scaled.")
        features = self.front(x / 1000)
        return self.first(features) + 0 * self.second(features).sum()


LARGE = X * 1000


@case("Pass inputs of one or more samples, as in replace_head(n, example=")
def head_of_unknown_input(tmp: Path) -> str:
    said = error(lambda: FineTuner(Picky(), device="cpu").replace_head(5))
    model = FineTuner(nn.Sequential(Picky(), nn.Linear(3, 3)), device="cpu")
    fit(model.replace_head(5, example=LARGE[:2]), (LARGE, y))
    return said


@case("Name another layer: replace_head({}, layer=")
def layer_beside_the_head(tmp: Path) -> str:
    model = FineTuner(Picky(), device="cpu")
    said = error(lambda: fit(model.replace_head(5, layer="second"), (LARGE, y)))
    fit(model.replace_head(5, layer="first"), (LARGE, y))
    return said


@case("does not accept the example: {}. Pass inputs as in training")
def example_of_another_shape(tmp: Path) -> str:
    said = error(lambda: tuner().replace_head(5, example=X[:2, :3]))
    fit(tuner().replace_head(5, example=X[:2]))
    return said


@case("Pass the module that it was made from; or add a head")
def head_of_a_program(tmp: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on a deprecation
        program = torch.jit.trace(tuner().model, X)
    said = error(lambda: FineTuner(program, device="cpu").replace_head(5))
    fit(FineTuner(tuner().model, device="cpu").replace_head(5))
    fit(FineTuner(nn.Sequential(program, nn.Linear(3, 5)), device="cpu"))
    return said


@case("Rename or remove the others, or return pairs")
def items_with_other_names(tmp: Path) -> str:
    def named(*names: str) -> Items:
        return Items([{**dict.fromkeys(names, x), "label": k} for x, k in ITEMS])

    said = error(lambda: fit(tuner(), named("input", "extra")))
    fit(tuner(), named("input"))
    fit(tuner(), Items(ITEMS))
    return said


class Bounded(nn.Linear):
    """A model that returns probabilities."""

    bounds = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid() if self.bounds else super().forward(x)


@case(", or pass a loss that expects them: loss={}")
def probabilities_for_logits(tmp: Path) -> str:
    data = X, nn.functional.one_hot(y, 3).float()
    said = error(lambda: fit(FineTuner(Bounded(4, 3), device="cpu"), data))
    fit(FineTuner(Bounded(4, 3), device="cpu", loss=eval(advised(r"loss=(.+)\.$", said))), data)
    unbounded = Bounded(4, 3)
    unbounded.bounds = False
    fit(FineTuner(unbounded, device="cpu"), data)
    return said


@case(
    "Build the model on the CPU, or call model.to_empty(device='cpu')",
    "Pass the module and the file of the weights: FineTuner(model, weights=...)",
    "its weights are constants and it cannot be trained. Pass the module that it was made from",
)
def models_that_cannot_be_trained(tmp: Path) -> str:
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(4, 3))
    with torch.inference_mode():
        inference = nn.Linear(4, 3)
    model = nn.Sequential(nn.Linear(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on TorchScript
        frozen = torch.jit.freeze(torch.jit.script(copy.deepcopy(model).eval()))
    refused: list[Any] = [meta, inference, model.state_dict(), frozen]
    said = [error(partial(FineTuner, each)) for each in refused]
    torch.save(model.state_dict(), tmp / "weights.pth")
    meta.to_empty(device="cpu").load_state_dict(model.state_dict())
    for each in (meta, model):
        fit(FineTuner(each, device="cpu"))
    fit(FineTuner(nn.Sequential(nn.Linear(4, 3)), weights=tmp / "weights.pth", device="cpu"))
    return " ".join(said)
