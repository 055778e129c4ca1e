"""Messages about strategies, optimizers, rates and callbacks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from finetune import FineTuner, Phase
from finetune.callbacks import Callback, ClassWeights, Mixup, ModelCheckpoint, Report
from tests.helpers.datasets import Items
from tests.messages.material import ITEMS, X, advised, case, error, fit, logged, tuner, y


@case("with one epoch trains the head only. Pass epochs=2 or more to train the other layers too")
def one_epoch_for_two_phases(tmp: Path) -> str:
    said = logged(lambda: fit(tuner(), strategy="lp_ft", epochs=1))
    assert "trains the head only" not in logged(lambda: fit(tuner(), strategy="lp_ft", epochs=2))
    return said


@case("which fails at a number: {}. Pass a name such as 'cosine', or a function that returns a factor")
def class_as_schedule(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), schedule=torch.optim.lr_scheduler.CosineAnnealingLR))
    fit(tuner(), schedule="cosine")
    fit(tuner(), schedule=lambda progress: 1 - progress)
    return said


@case("pass cache='memory' if yours does not")
def uncached_dataset(tmp: Path) -> str:
    data = Items(ITEMS * 3)
    said = logged(lambda: tuner().freeze().fit(data, epochs=3, progress=False))
    assert "cache: off" not in logged(lambda: tuner().freeze().fit(data, epochs=3, cache="memory", progress=False))
    return said


@case("the run has no validation data. Pass val=... to fit, or Report({}, data=...)")
def report_without_data(tmp: Path) -> str:
    path = tmp / "report.html"
    said = error(lambda: fit(tuner(), val=False, callbacks=Report(path)))
    for options in ({"val": (X, y), "callbacks": Report(path)}, {"val": False, "callbacks": Report(path, data=(X, y))}):
        fit(tuner(), **options)
        path.unlink()
    return said


@case("Pass one weight per class instead")
def weights_of_a_stream(tmp: Path) -> str:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from ITEMS

    said = error(lambda: fit(tuner(), Stream(), callbacks=[ClassWeights("balanced")]))
    fit(tuner(), Stream(), callbacks=[ClassWeights([1.0, 5.0, 2.0])])
    return said


@case("ClassWeights has {} weights, but the model has {} classes. Pass one per class")
def weights_of_anotheradvised(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), callbacks=[ClassWeights([1.0, 2.0])]))
    fit(tuner(), callbacks=[ClassWeights([1.0, 2.0, 1.0])])
    return said


@case("Mixup expects batches of images")
def mixup_of_numbers(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), callbacks=[Mixup()]))
    fit(tuner())
    return said


@case("needs a classification task with one output per class")
def mixup_of_a_regression(tmp: Path) -> str:
    said = error(lambda: fit(tuner(1), (X, X[:, 0]), callbacks=[ClassWeights([1.0])]))
    fit(tuner(1), (X, X[:, 0]))
    return said


@case("Checkpoints cannot be kept in {}: {}. Choose a writable folder")
def folder_that_is_a_file(tmp: Path) -> str:
    (tmp / "file").write_text("")
    said = error(lambda: fit(tuner(), callbacks=[ModelCheckpoint(tmp / "file")]))
    fit(tuner(), callbacks=[ModelCheckpoint(tmp / "folder")])
    return said


@case("does not depend on any trainable parameter")
def loss_without_gradient(tmp: Path) -> str:
    class Detached(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]).detach(), batch[1])

    class Attached(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    said = error(lambda: fit(Detached(tuner().model, device="cpu")))
    fit(Attached(tuner().model, device="cpu"))
    return said


@case("The loss fell at no rate from")
def loss_that_does_not_fall(tmp: Path) -> str:
    flat = tuner(loss=lambda outputs, targets: outputs.sum() * 0 + 1)
    said = error(lambda: flat.find_lr((X, y), steps=10))
    tuner().find_lr((X, y), steps=60, batch_size=36)
    return said


@case("Nothing is trainable: every parameter is frozen")
def all_frozen(tmp: Path) -> str:
    model = tuner().freeze("*")
    said = error(lambda: fit(model))
    fit(model.unfreeze("2"))
    fit(tuner().freeze("*").replace_head(3))
    return said


@case("The optimizer does not hold exactly the trainable parameters")
def optimizer_with_part_of_the_groups(tmp: Path) -> str:
    said = error(lambda: fit(tuner(optimizer=lambda groups: torch.optim.SGD(groups[:1], lr=0.1))))
    fit(tuner(optimizer=lambda groups: torch.optim.SGD(groups, momentum=0.9)))
    return said


@case("Expected the optimizer factory to return a torch Optimizer, but got {}. Pass a {}")
def factory_of_something_else(tmp: Path) -> str:
    said = error(lambda: fit(tuner(optimizer=lambda groups: None)))  # type: ignore[arg-type, return-value]
    fit(tuner(optimizer=torch.optim.Adam))
    return said


@case("Pass an optimizer whose step needs no closure, such as torch.optim.Adam")
def optimizer_with_a_closure(tmp: Path) -> str:
    def factory(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS([parameter for group in groups for parameter in group["params"]])

    said = error(lambda: fit(tuner(optimizer=factory)))
    fit(tuner(optimizer=torch.optim.Adam))
    return said


@case("The optimizer factory makes lr void", "The optimizer factory changes the weight decay of %d parameters")
def factory_with_its_own_rates(tmp: Path) -> str:
    def factory(groups: Any) -> torch.optim.Optimizer:
        flat = [parameter for group in groups for parameter in group["params"]]
        return torch.optim.SGD(flat, lr=0.5, weight_decay=0.5)

    said = error(lambda: fit(tuner(optimizer=factory), lr=1e-3)) + logged(lambda: fit(tuner(optimizer=factory)))
    whole = tuner(optimizer=lambda groups: torch.optim.SGD(groups, momentum=0.9))
    assert "weight decay" not in logged(lambda: fit(whole, lr=1e-3))
    return said


@case("lr has no rate for {} trainable parameters")
def rates_for_a_part(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), lr={"2": 1e-3}))
    fit(tuner(), lr={"2": 1e-3, "0": 1e-4})
    fit(tuner().freeze("0"), lr={"2": 1e-3})
    fit(tuner(), lr={"*": 1e-4, "2": 1e-3})
    return said


@case("For more than two rates, use a mapping")
def three_rates(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), lr=(1e-4, 1e-3, 1e-2)))  # type: ignore[arg-type]
    fit(tuner(), lr={"0": 1e-4, "2": 1e-3})
    return said


@case("Remove the callback, and give the weights to the loss itself")
def loss_without_probabilities(tmp: Path) -> str:
    weights = [1.0, 5.0, 2.0]
    said = error(lambda: fit(tuner(loss=nn.MultiMarginLoss()), callbacks=[ClassWeights(weights)]))
    fit(tuner(loss=nn.MultiMarginLoss(weight=torch.tensor(weights))))
    return said


@case("Rename the method; if it is no hook, to a name unlike theirs")
def misspelled_hook(tmp: Path) -> str:
    class Nearly(Callback):
        def on_epoch_ends(self, run: Any) -> None:
            run.row["seen"] = True

    class Helper(Callback):
        on_epoch_end = Nearly.on_epoch_ends

        def at_the_end(self) -> None: ...

    said = error(lambda: fit(tuner(), callbacks=Nearly()))
    assert fit(tuner(), callbacks=Helper()).history[-1]["seen"]
    return said


@case("Pass another optimizer, such as torch.optim.Adam", "Set sparse=False on {}, with an optimizer such as")
def gradients_of_another_layout(tmp: Path) -> str:
    ids = (torch.arange(36).reshape(12, 3) % 9, torch.arange(12) % 2)
    model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 2))
    said = error(lambda: fit(tuner(optimizer=torch.optim.SparseAdam)))
    said += error(lambda: fit(FineTuner(model, device="cpu"), ids))
    fit(tuner(optimizer=torch.optim.Adam))
    model.get_submodule(advised("sparse=False on (.+?),", said)).sparse = False  # type: ignore[assignment]
    fit(FineTuner(model, device="cpu", optimizer=torch.optim.Adam), ids)
    return said


class Acting(Callback):
    """Call a function of the tuner at the end of each epoch."""

    def __init__(self, action: Callable[[Any], Any]) -> None:
        self.action = action

    def on_epoch_end(self, run: Any) -> None:
        self.action(run.tuner)


@case("in another thread, which changes its weights and modes. Call it {}, or on a copy from before")
def predict_while_another_thread_trains(tmp: Path) -> str:
    model, said = tuner(), []
    before = copy.deepcopy(model)

    def asked(running: FineTuner) -> None:
        with ThreadPoolExecutor(1) as pool:
            said.append(pool.submit(error, lambda: running.predict(X)).result())
            pool.submit(before.predict, X).result()
        running.predict(X)

    fit(model, callbacks=Acting(asked)).predict(X)
    return said[0]


@case("and would change what {} goes on with. Call it before or after, or on a copy: copy.deepcopy(tuner)")
def fit_in_a_callback(tmp: Path) -> str:
    said = []

    def fitted(running: FineTuner) -> None:
        said.append(error(lambda: fit(running)))
        fit(copy.deepcopy(running))

    fit(fit(tuner(), callbacks=Acting(fitted)))
    return said[0]


@case("The weights from before are in {}: load them with FineTuner.load_checkpoint")
def weights_that_overflow(tmp: Path) -> str:
    class Overflow(Callback):
        def on_step_end(self, run: Any) -> None:
            if run.position.step == 2:
                run.model.state_dict()["0.bias"].fill_(torch.inf)

    saving = ModelCheckpoint(tmp, every_steps=1)
    said = error(lambda: fit(tuner(), epochs=2, batch_size=18, callbacks=[Overflow(), saving]))
    assert FineTuner.load_checkpoint(tmp / "last.safetensors", tuner().model).model[0].bias.isfinite().all()
    assert "No weights from before were saved" in error(lambda: fit(tuner(), epochs=2, callbacks=[Overflow()]))
    return said


@case("Pass fit a strategy with one phase per freeze state")
def layers_unfrozen_in_a_callback(tmp: Path) -> str:
    class Unfreeze(Callback):
        def on_epoch_end(self, run: Any) -> None:
            run.tuner.unfreeze()

    said = error(lambda: fit(tuner().freeze(), epochs=2, callbacks=[Unfreeze()]))
    fit(tuner(), strategy=[Phase("2", epochs=1), Phase("*", epochs=2)])
    return said
