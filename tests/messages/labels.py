"""Messages about labels and classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

from tests.helpers.datasets import Items
from tests.messages.material import ITEMS, X, advised, case, error, fit, folder, logged, of_images, tuner, y


@case("Correct or remove these samples.")
def targets_not_finite(tmp: Path) -> str:
    target = X[:, 0].clone()
    target[5] = torch.inf
    said = error(lambda: fit(tuner(1), (X, target)))
    fit(tuner(1), (X[target.isfinite()], target[target.isfinite()]))
    return said


@case("Call `replace_head({})` to give it one output per")
def too_few_outputs(tmp: Path) -> str:
    data = folder(tmp / "pets", "cat", "dog", "eel")
    model = of_images(2)
    said = error(lambda: fit(model, data))
    fit(model.replace_head(int(advised(r"replace_head\((\d+)\)", said))), data)
    return said


@case("Correct the labels", ", or call `replace_head({})`")
def labels_out_of_range(tmp: Path) -> str:
    labels = y.clone()
    labels[0] = 4
    said = error(lambda: fit(tuner(), (X, labels)))
    fit(tuner(), (X, y))
    fit(tuner().replace_head(int(advised(r"replace_head\((\d+)\)", said))), (X, labels))
    return said


@case("has the class {}, which the training data does not have")
def unknown_class(tmp: Path) -> str:
    model = fit(of_images(), folder(tmp / "train"), val=False)
    folder(tmp / "test", "cat", "eel")
    said = error(lambda: model.evaluate(tmp / "test"))
    fit(of_images(3), folder(tmp / "more", "cat", "dog", "eel"), val=False).evaluate(tmp / "test")
    for file in (tmp / "test" / "eel").iterdir():
        file.unlink()
    (tmp / "test" / "eel").rmdir()
    model.evaluate(tmp / "test")
    return said


@case("numbers the classes differently")
def classes_in_another_order(tmp: Path) -> str:
    def numbered(*names: str) -> Items:
        data = Items([(X[i], i % 2) for i in range(12)])
        data.classes = list(names)  # type: ignore[attr-defined]
        return data

    train, other = numbered("cat", "dog"), numbered("dog", "cat")
    said = error(lambda: fit(tuner(2), DataLoader(train), DataLoader(other)))
    fit(tuner(2), train, other)
    fit(tuner(2), DataLoader(train), DataLoader(numbered("cat", "dog")))
    return said


@case("so which output stands for which name is not known", "so its outputs are taken to be %s, in this order")
def names_after_numbers(tmp: Path) -> str:
    names = [("cat", "dog", "eel")[label] for label in y.tolist()]
    model = fit(tuner())
    said = error(lambda: model.evaluate((X, names)))
    model.evaluate((X, y))
    model.classes = ("cat", "dog", "eel")
    model.evaluate((X, names))
    other = tuner()
    assumed = logged(lambda: other.evaluate((X, names)))
    other.classes = ("eel", "dog", "cat")
    other.evaluate((X, names))
    return f"{said} {assumed}"


@case("masked values. Expected every value. Pass {}.filled(0)")
def masked_labels(tmp: Path) -> str:
    labels = np.ma.masked_array(y.numpy(), y.numpy() == 5)
    labels[0] = np.ma.masked
    said = error(lambda: fit(tuner(), (X.numpy(), labels)))
    fit(tuner(), (X.numpy(), labels.filled(0)))
    fit(tuner(), (X.numpy()[1:], labels[1:]))
    return said


@case("has no label. Every sample needs one: fill it in, or remove the sample")
def sample_without_a_label(tmp: Path) -> str:
    names: list[Any] = [("cat", "dog", "eel")[label] for label in y.tolist()]
    said = error(lambda: fit(tuner(), (X, [None, *names[1:]])))
    fit(tuner(), (X, names))
    fit(tuner(), (X[1:], names[1:]))
    return said


@case("The labels are bytes, such as {}. Expected names or numbers. Pass label.decode()")
def bytes_as_labels(tmp: Path) -> str:
    names = [b"cat", b"dog", b"eel"]
    said = error(lambda: fit(tuner(), [(x, names[k]) for x, k in zip(X, y.tolist(), strict=True)]))
    fit(tuner(), [(x, names[k].decode()) for x, k in zip(X, y.tolist(), strict=True)])
    return said


@case("marks samples without a label, remove them or pass loss=nn.CrossEntropyLoss(ignore_index={})")
def unlabeled_samples(tmp: Path) -> str:
    labels = y.clone()
    labels[0] = -1
    said = error(lambda: fit(tuner(), (X, labels)))
    fit(tuner(), (X[1:], labels[1:]))
    fit(tuner(loss=nn.CrossEntropyLoss(ignore_index=-1)), (X, labels))

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, ignore_index=-1)

    assert "loss.ignore_index = -1" in error(lambda: fit(tuner(loss=loss), (X, labels)))
    vars(loss)["ignore_index"] = -1
    fit(tuner(loss=loss), (X, labels), (X, labels))
    return said


@case("The targets are complex. Expected real numbers. Pass y.real")
def complex_targets(tmp: Path) -> str:
    values = torch.complex(torch.arange(float(len(y))) + 0.5, torch.zeros(len(y)))
    said = error(lambda: fit(tuner(1), (X, values)))
    fit(tuner(1), (X, values.real))
    return said


@case("which is not a whole number. Class labels are whole numbers or names")
def fractions_as_labels(tmp: Path) -> str:
    names, values = [("10", "20", "30")[k] for k in y.tolist()], (10.5 * y + 10).tolist()
    said = error(lambda: fit(tuner(), (X, names), (X, values)))
    fit(tuner(1, loss="mse"), (X, values))
    return said


@case("so a label could be the name of a class or its position")
def numbers_as_names(tmp: Path) -> str:
    numbers = (10 * y + 10).tolist()
    model, data = fit(tuner(), (X, list(map(str, numbers)))), Items(list(zip(X, numbers, strict=True)))
    said = error(lambda: model.evaluate(DataLoader(data, batch_size=9)))
    assert model.evaluate((X, numbers)) == model.evaluate(data)
    return said


@case("and their numbers are not known. Set the dataset's `classes`")
def names_from_a_loader(tmp: Path) -> str:
    names = ("cat", "dog", "eel")
    data: Any = Items([(x, names[k]) for x, k in ITEMS])
    said = error(lambda: fit(tuner(), DataLoader(data, batch_size=9)))
    data.classes = names
    fit(tuner(), DataLoader(data, batch_size=9))
    fit(tuner(), DataLoader(Items(ITEMS), batch_size=9))
    return said


@case("The parts of the dataset number their classes differently")
def parts_with_other_classes(tmp: Path) -> str:
    def part(*names: str) -> Items:
        return Items([(x, k % 2) for x, k in ITEMS], classes=list(names))

    both = ConcatDataset([part("cat", "dog"), part("dog", "cat")])
    said = error(lambda: fit(tuner(2), DataLoader(both, batch_size=9)))
    assert fit(tuner(2), both).classes == ("cat", "dog")
    fit(tuner(2), DataLoader(ConcatDataset([part("cat", "dog"), part("cat", "dog")]), batch_size=9))
    return said


@case("Expected real numbers. Pass y.real, or a loss for complex numbers")
def complex_targets_of_a_regression(tmp: Path) -> str:
    def distance(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs().mean()

    values = torch.complex(X[:, 0], X[:, 1])
    said = error(lambda: fit(tuner(1, loss="mse"), (X, values)))
    fit(tuner(1, loss="mse"), (X, values.real))
    fit(tuner(1, loss=distance), (X, values))
    return said
