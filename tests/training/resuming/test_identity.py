"""A run to resume is the same as the saved one, or is refused by name."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetune import CheckpointError, FineTuner, Phase
from finetune.callbacks import EMA, L2SP, SWA, Callback, ClassWeights, EarlyStopping, SkipNonFinite
from finetune.checkpoint import file, schema
from tests.helpers.golden import net
from tests.helpers.image_files import picture

X, y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


class Noise(Callback):
    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.calls = 0

    def on_step_end(self, run: Any) -> None:
        self.calls += 1


class Clipped(Callback):
    clip = 1.0


class ClippedMore(Callback):
    clip = 0.5


ClippedMore.__name__ = Clipped.__name__


class Watching(Noise):
    only_watches = True


class Tuner(FineTuner):
    def training_step(self, batch: Any) -> Any:
        return super().training_step(batch)


class SameName(FineTuner):
    def training_step(self, batch: Any) -> Any:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])


def scaled(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: scale * nn.functional.cross_entropy(outputs, targets)


def rising(progress: float) -> float:
    return progress


def falling(progress: float) -> float:
    return 1 - progress


falling.__qualname__ = rising.__qualname__


def changed_value() -> Tensor:
    one = X.clone()
    one[5, 2] += 1e-3
    return one


def run(folder: Path, kind: type[FineTuner] = FineTuner, frozen: Any = None, epochs: int = 1, **given: Any) -> Any:
    settings = {name: given.pop(name) for name in ("loss", "optimizer", "preprocessing") if name in given}
    tuner = kind(net(), device="cpu", **settings)
    if frozen is not None:
        tuner.freeze(frozen)
    given = {"train": (X, y), "val": (X[:9], y[:9]), "checkpoint_dir": folder, "progress": False, **given}
    tuner.fit(**given, epochs=epochs, resume_from="auto")
    return tuner


def adam(beta: float) -> Any:
    return lambda groups: torch.optim.Adam(groups, betas=(beta, 0.99))


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "frozen": ({}, {"frozen": "stem"}, r"stem\.0\.weight, .* trainable, now frozen.*but with the freeze state of the"),
    "thawed": ({"frozen": "hidden"}, {}, r"hidden\.weight.* frozen, now trainable"),
    "scaled inputs": ({}, {"train": (X * 5 + 3, y)}, "training data of the inputs"),
    "flipped inputs": ({}, {"train": (X.flip(0), y)}, "training data of the inputs"),
    "one value": ({}, {"train": (changed_value(), y)}, "training data of the inputs"),
    "inputs in a loader": (
        {"train": DataLoader(TensorDataset(X, y), batch_size=8)},
        {"train": DataLoader(TensorDataset(X + 1, y), batch_size=8)},
        "training data of the inputs",
    ),
    "two inputs": (
        {"train": ({"x": X}, y)},
        {"train": ({"x": X + 1}, y)},
        "training data of the inputs",
    ),
    "validation inputs": ({}, {"val": (X[:9] + 1, y[:9])}, "validation data of the inputs"),
    "patience": (
        {"callbacks": EarlyStopping(patience=5)},
        {"callbacks": EarlyStopping(patience=6)},
        "patience of the callback EarlyStopping 5, now 6",
    ),
    "decay": ({"callbacks": EMA(0.9)}, {"callbacks": EMA(0.99)}, "decay of the callback EMA"),
    "start": ({"callbacks": SWA(0.5)}, {"callbacks": SWA(0.75)}, "start of the callback SWA"),
    "strength": ({"callbacks": L2SP(0.1)}, {"callbacks": L2SP(0.2)}, "strength of the callback L2SP"),
    "limit": ({"callbacks": SkipNonFinite(3)}, {"callbacks": SkipNonFinite(4)}, "limit of the callback SkipNonFinite"),
    "class weights": (
        {"callbacks": ClassWeights([1, 2, 3])},
        {"callbacks": ClassWeights([1, 2, 4])},
        "weights of the callback ClassWeights",
    ),
    "tensor": (
        {"callbacks": ClassWeights(torch.ones(3))},  # type: ignore[arg-type]
        {"callbacks": ClassWeights(torch.arange(3.0))},  # type: ignore[arg-type]
        "weights of the callback ClassWeights",
    ),
    "the second": (
        {"callbacks": [Noise(1), Noise(2)]},
        {"callbacks": [Noise(1), Noise(3)]},
        r"scale of the callback Noise\.1 2, now 3",
    ),
    "added": ({}, {"callbacks": Noise(1)}, r"callbacks without a state \[\], now Noise"),
    "removed": ({"callbacks": Noise(1)}, {}, r"callbacks without a state Noise, now \[\]"),
    "argument": ({"callbacks": Noise(1)}, {"callbacks": Noise(2)}, "scale of the callback Noise 1, now 2"),
    "attribute": ({"callbacks": Clipped()}, {"callbacks": ClippedMore()}, "clip of the callback Clipped 1.0, now 0.5"),
    "optimizer": ({"optimizer": adam(0.9)}, {"optimizer": adam(0.8)}, r"betas of the built optimizer"),
    "partial": (
        {"optimizer": functools.partial(torch.optim.SGD, momentum=0.5)},
        {"optimizer": functools.partial(torch.optim.SGD, momentum=0.6)},
        "momentum of the built optimizer 0.5, now 0.6",
    ),
    "class of optimizer": (
        {"optimizer": lambda groups: torch.optim.SGD(groups, foreach=False)},
        {"optimizer": lambda groups: torch.optim.RMSprop(groups, foreach=False)},
        "class of the built optimizer SGD, now RMSprop",
    ),
    "loss": ({"loss": scaled(1)}, {"loss": scaled(2)}, "scale of the loss function 1, now 2"),
    "code of loss": (
        {"loss": lambda outputs, targets: nn.functional.cross_entropy(outputs, targets) / 3},
        {"loss": lambda outputs, targets: nn.functional.cross_entropy(outputs, targets) / 2},
        "loss function of the code",
    ),
    "smoothing": (
        {"loss": nn.CrossEntropyLoss()},
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        "label_smoothing of the loss function 0.0, now 0.1",
    ),
    "weight of loss": (
        {"loss": nn.CrossEntropyLoss(torch.ones(3))},
        {"loss": nn.CrossEntropyLoss(torch.tensor([1.0, 2, 3]))},
        "weight of the loss function",
    ),
    "schedule": ({"schedule": rising}, {"schedule": falling}, "schedule code in Python"),
    "step": ({"kind": Tuner}, {"kind": SameName}, "training_step of the code"),
    "step removed": ({"kind": Tuner}, {}, r"custom steps training_step, now \[\]"),
    "phase": (
        {"strategy": [Phase("fc", 2, 1e-2)]},
        {"strategy": [Phase(["hidden", "fc"], 2, 1e-2)]},
        r"train fc, now",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_named_unless_it_is_meant(tmp_path: Path, change: str, caplog: Any) -> None:
    before, after, message = CHANGES[change]
    run(tmp_path, **before)
    with pytest.raises(CheckpointError, match=rf"The run to resume had other arguments: .*{message}"):
        run(tmp_path, epochs=2, **after)
    tuner = run(tmp_path, epochs=2, resume_changed=True, **after)
    assert len(tuner.history) == 2
    assert ("The freeze state of the checkpoint holds" in caplog.text) == (change in ("frozen", "thawed"))


def test_another_augmentation_or_preprocessing_is_named(tmp_path: Path) -> None:
    images = [picture(i) for i in range(8)], [0, 1] * 4
    small = {"crop_size": 16, "resize_size": 16}
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))

    def fit(**given: Any) -> None:
        tuner = FineTuner(model, device="cpu", preprocessing=given.pop("preprocessing", small))
        tuner.fit(images, checkpoint_dir=tmp_path, resume_from="auto", progress=False, **given)

    fit()
    fit()
    with pytest.raises(CheckpointError, match="policy of the augment None, now RandAugment"):
        fit(augment="randaugment")
    with pytest.raises(CheckpointError, match=r"crop_size of the preprocessing \[16, 16\], now \[24, 24\]"):
        fit(preprocessing={"crop_size": 24, "resize_size": 24})


SAME: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], dict[str, Any]]]] = {
    "functions made again": (
        lambda: {"loss": scaled(1), "optimizer": adam(0.9), "schedule": rising},
        lambda: {"loss": scaled(1), "optimizer": adam(0.9), "schedule": rising},
    ),
    "watching": (dict, lambda: {"callbacks": Watching(1)}),
    "watching no more": (lambda: {"callbacks": Watching(1)}, dict),
    "arrays": (dict, lambda: {"train": (X.numpy(), y.numpy()), "val": (X[:9].clone(), y[:9].tolist())}),
    "set by the phases": (
        lambda: {"strategy": "linear_probe"},
        lambda: {"strategy": "linear_probe", "frozen": "stem"},
    ),
    "a strided copy": (dict, lambda: {"train": (X.T.contiguous().T, y)}),
}


@pytest.mark.parametrize("case", SAME)
def test_what_is_the_same_resumes(tmp_path: Path, case: str) -> None:
    before, after = SAME[case]
    run(tmp_path, **before())
    assert len(run(tmp_path, epochs=2, **after()).history) == 2


def test_a_run_goes_on_in_the_process_that_began_it(tmp_path: Path) -> None:
    class Stop(Callback):
        count = 0

        def on_epoch_end(self, run: Any) -> None:
            self.count += 1
            if self.count == 2:
                raise KeyboardInterrupt

        def on_fit_begin(self, run: Any) -> None:
            run.tuner.freeze("stem")

    tuner = FineTuner(net(), device="cpu")
    stop, noise, stopping = Stop(), Noise(2), EarlyStopping()
    arguments = {"callbacks": [noise, stopping, stop], "epochs": 3, "checkpoint_dir": tmp_path, "resume_from": "auto"}
    with pytest.raises(KeyboardInterrupt):
        tuner.fit((X, y), (X, y), **arguments, progress=False)
    assert noise.calls
    assert len(tuner.fit((X, y), (X, y), **arguments, progress=False)) == 3


def test_a_copied_folder_is_the_same_data_and_another_picture_is_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            picture(i).save(tmp_path / "data" / name / f"{i}.png")
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))

    def fit(data: Path, epochs: int) -> int:
        tuner = FineTuner(model, device="cpu", preprocessing={"crop_size": 16, "resize_size": 16})
        return len(tuner.fit(data, checkpoint_dir=tmp_path / "run", resume_from="auto", epochs=epochs, progress=False))

    fit(tmp_path / "data", 1)
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "data")
    assert fit(tmp_path / "elsewhere" / "copy", 2) == 2
    with (tmp_path / "elsewhere" / "copy" / "a" / "0.png").open("ab") as one:
        one.write(b"more")
    with pytest.raises(CheckpointError, match="data of the inputs"):
        fit(tmp_path / "elsewhere" / "copy", 3)


def test_a_file_without_a_fact_resumes(tmp_path: Path) -> None:
    run(tmp_path, callbacks=Noise(1), frozen="stem")
    content = schema.to_content(schema.read(tmp_path / "last.safetensors"))
    kept = ("seed", "lr", "schedule", "training data", "validation data", "callbacks", "optimizer")
    identity = content["training"]["identity"]
    content["training"]["identity"] = {name: identity[name] for name in kept}
    file.write(tmp_path / "last.safetensors", content, version=schema.format_version())

    changed = {"train": (X + 1, y), "optimizer": "adamw", "callbacks": Noise(2)}
    assert len(run(tmp_path, epochs=2, **changed).history) == 2


def test_another_optimizer_of_the_same_name_begins_without_the_state(tmp_path: Path, caplog: Any) -> None:
    run(tmp_path, optimizer=lambda groups: torch.optim.SGD(groups, momentum=0.9))
    run(tmp_path, optimizer=lambda groups: torch.optim.Adam(groups, eps=1e-7), resume_changed=True, epochs=2)
    assert "The state of the optimizer is left out" in caplog.text


def test_phases_never_change_and_it_is_said(tmp_path: Path) -> None:
    run(tmp_path)
    for more in ({}, {"resume_changed": True}):
        with pytest.raises(CheckpointError, match=r"resume_changed=True allows no other phases.*start anew"):
            run(tmp_path, strategy="linear_probe", **more)
