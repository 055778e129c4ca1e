"""Advice is true: each message that says what to do is provoked, its advice is followed, and it works.

The messages are read off the source, so a new one without a case here turns a test red.
"""

from __future__ import annotations

import ast
import logging
import re
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset

from finetune import Comparison, FineTuner, Phase, Preprocessing, compare
from finetune.callbacks import Callback, ClassWeights, EarlyStopping, Mixup, ModelCheckpoint
from finetune.comparison.comparison import RunResult
from finetune.errors import FineTuneError

PACKAGE = Path(__file__).resolve().parent.parent / "finetune"

VERBS = (
    "Adapt|Add|Call|Change|Choose|Compute|Correct|Give|Increase|Leave|Load|Name|Omit|Pass|Remove|Rename|Replace|Resume|"
    "Set|Start|Train|Use"
)
ADVICE = re.compile(rf"(?:(?:^|[.;:] )(?:{VERBS})\b)|(?:, or |; |, |: )(?:{VERBS.lower()}) ")
NO_MESSAGES = ("cli.py", "demo.py", "display/options.py")  # help, and rewritten messages

Case = Callable[[Path], str]
CASES: dict[str, Case] = {}

# Advice without a case. Write one, and shorten this list; it is not for new messages.
UNTRIED = (
    "which is unknown for the head of this model. Pass a torchmetrics",
    "It has pixels that are NaN or infinite",
    "If the training inputs were prepared in another way, pass FineTuner",
    "which is not a whole number. Class labels are whole numbers or names",
    "so a label could be the name of a class or its position",
    "and their numbers are not known. Set the names in the order",
    "Pass the module that it was exported from",
    "The image {} does not exist. Correct its path",
    "No image or audio file matches",
    "The table '{}' does not exist",
    "The folder '{}' of the table '{}' does not exist",
    "have no {}, first row {}. Fill them in",
    "Paths are relative to '{}'. For another folder",
    "which stands for a missing one",
    "whose parts are labels of other rows",
    "Save it as CSV in the spreadsheet",
    "Pass `pandas.read_json(",
    "Pass `pandas.read_feather(",
    "Pass `datasets.Dataset.from_file(",
    "If it is a table, rename it to .csv",
    "has several columns called {}. Rename or remove",
    "The cells are delimited by {}; for another, pass Table(",
    "is not UTF-8 text ({})",
    "Pass the module that it was made from; or add a head",
    "is a nested tensor. Expected a dense one",
    "The arrays {} have no labels. Pass the pair (X, y) or a 'label'",
    "workers, which take turns; use one",
    "Divide the samples, or use num_workers=0",
    "Pass the pair (X, y) of lists",
    "Expected real numbers. Pass y.real, or a loss for complex numbers",
    "Choose a batch size that leaves no batch of one sample",
    "does not accept the example: {}. Pass inputs as in training",
    "Rename or remove the others, or return pairs",
    ", or pass a loss that expects them: loss={}",
    "Name another layer: replace_head({}, layer=",
    "Pass inputs of one or more samples, as in replace_head(n, example=",
    "Remove the callback, and give the weights to the loss itself",
)

# Advice that needs a package or a download, and the file that tries it.
ELSEWHERE = {
    "Pass the tokenizer or feature extractor to FineTuner as preprocessing=": "data/preprocessing/test_text.py",
    "Pass FineTuner a custom Preprocessing, or pass data": "data/preprocessing/test_presets.py",
    "Set tokenizer.pad_token to one of its tokens": "data/preprocessing/test_text.py",
    "Name the column of labels 'label'": "data/sources/test_datasets.py",
    "Load the model with a class such as AutoModel": "model/families/test_huggingface.py",
    "or pass a folder written by save_pretrained": "model/families/test_huggingface.py",
    "Download them on a machine with network access": "model/families/test_timm.py",
    "Append a head, as in nn.Sequential(model, pooling": "model/families/test_timm.py",
    "Put the file there, pass another one": "model/families/test_torchvision.py",
    "Delete the file to download it again": "model/families/test_torchvision.py",
    "Pass the model's tokenizer: FineTuner(model": "data/preprocessing/test_text.py",
    "Replace the head and freeze first, then wrap the model": "model/test_network.py",
    "Change it first: get_peft_model(": "model/surgery/test_adapters.py",
    "Pass FineTuner the model without adapters": "model/surgery/test_reinitialize.py",
    "is a sparse {}. Expected an array. Pass {}.toarray()": "data/sources/test_arrays.py",
    "Or pass a file with weights='FILE', or start from random weights": "model/families/test_hub.py",
}


def messages() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every string of the package that gives advice, with {} for its fields."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        parts = {id(part) for node in joined for part in ast.walk(node) if part is not node}
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) not in parts | docs and name not in NO_MESSAGES and ADVICE.search(text := _text(node)):
                yield f"{name}:{node.lineno}", text


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_every_message_that_advises_is_tried() -> None:
    known = [*CASES, *ELSEWHERE, *UNTRIED]
    untried = [f"{place}: {text}" for place, text in messages() if not any(part in text for part in known)]
    assert not untried, "add a case that follows the advice of:\n" + "\n".join(untried)


def test_every_case_has_its_message() -> None:
    texts = [text for _, text in messages()]
    stale = [part for part in (*CASES, *ELSEWHERE, *UNTRIED) if not any(part in text for text in texts)]
    assert not stale, "no message holds:\n" + "\n".join(stale)
    missing = [name for name in ELSEWHERE.values() if not (PACKAGE.parent / "tests" / name).is_file()]
    assert not missing


@pytest.mark.parametrize("text", ["Call f.", "It is wrong. Pass x.", "Either wait, or call f().", "It ends; use g."])
def test_advice_is_recognized(text: str) -> None:
    assert ADVICE.search(text)


@pytest.mark.parametrize("text", ["Expected a call of f.", "The data has no use.", "epoch 1", "a set, a name"])
def test_other_text_is_no_advice(text: str) -> None:
    assert not ADVICE.search(text)


# ---------------------------------------------------------------- material

_generator = torch.Generator().manual_seed(0)
y = torch.arange(36) % 3
X = torch.randn(3, 4, generator=_generator)[y] * 3 + torch.randn(36, 4, generator=_generator) / 4
IMAGES = Preprocessing(crop_size=8, resize_size=None, mean=(0.5,) * 3, std=(0.5,) * 3)


def tuner(outputs: int = 3, **settings: Any) -> FineTuner:
    torch.manual_seed(0)
    return FineTuner(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs)), device="cpu", **settings)


def of_images(outputs: int = 2) -> FineTuner:
    layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs)
    return FineTuner(nn.Sequential(*layers), device="cpu", preprocessing=IMAGES)


def fit(model: FineTuner, data: Any = (X, y), val: Any = None, **arguments: Any) -> FineTuner:
    model.fit(data, val, progress=False, **arguments)
    return model


def compared(val: Any = (X, y), model: Any = None, **arguments: Any) -> Comparison:
    given = {"strategies": "linear_probe", "seeds": 1, "budget": 1, "device": "cpu", "progress": False, **arguments}
    return compare(model or tuner().model, (X, y), val, **given)


def image(path: Path, level: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (level, 50, 50)).save(path)
    return path


def folder(path: Path, *names: str, count: int = 5) -> Path:
    for level, name in enumerate(names or ("cat", "dog")):
        for index in range(count):
            image(path / name / f"{index}.png", 60 * level + 40)
    return path


class Items(Dataset[Any]):
    """A dataset of given items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


ITEMS = [(X[i], int(y[i])) for i in range(len(X))]


def error(action: Callable[[], Any]) -> str:
    """Return the message of the error that an action raises."""
    with pytest.raises(FineTuneError) as raised:
        action()
    return str(raised.value)


def warned(action: Callable[[], Any]) -> str:
    """Return the message of the warning that an action gives."""
    with pytest.warns(UserWarning) as given:  # noqa: PT030
        action()
    return str(given[0].message)


def logged(action: Callable[[], Any]) -> str:
    """Return what an action logs."""
    lines: list[str] = []
    logger, handler = logging.getLogger("finetune"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        action()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    return "\n".join(lines)


def tried(model: FineTuner, data: Any = (X, y)) -> str:
    """Return what a model learns its task to be."""
    return str(fit(model, data).task.why)


def case(*fragments: str) -> Callable[[Case], Case]:
    """Register a function that provokes the messages with these fragments, follows them, and returns their text."""

    def register(function: Case) -> Case:
        CASES.update(dict.fromkeys(fragments, function))
        return function

    return register


# ---------------------------------------------------------------- data


@case("The parts of the dataset number their classes differently: {}. Pass the ConcatDataset itself")
def parts_numbered_differently(tmp: Path) -> str:
    def part(*names: str) -> Items:
        items = Items([(X[k], k % 2) for k in range(8)])
        items.classes = names  # type: ignore[attr-defined]
        return items

    whole = ConcatDataset([part("ant", "bee"), part("bee", "cat")])
    said = error(lambda: fit(tuner(), DataLoader(whole)))
    assert fit(tuner(), whole).classes == ("ant", "bee", "cat")
    fit(tuner(2), DataLoader(ConcatDataset([part("ant", "bee"), part("ant", "bee")])))
    return said


@case("Advice requires at least two classes with two samples each")
def advise_more_data(tmp: Path) -> str:
    said = error(lambda: tuner().advise((X[:2], y[:2])))
    tuner().advise((X, y))
    return said


@case("has values that are NaN or infinite. Correct or remove")
def inputs_not_finite(tmp: Path) -> str:
    bad = X.clone()
    bad[3, 1] = torch.nan
    said = error(lambda: fit(tuner(), (bad, y)))
    kept = torch.arange(len(X)) != 3
    fit(tuner(), (bad.nan_to_num(), y))
    fit(tuner(), (bad[kept], y[kept]))
    return said


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
    fit(model.replace_head(int(_number(r"replace_head\((\d+)\)", said))), data)
    return said


@case("Correct the labels", ", or call `replace_head({})`")
def labels_out_of_range(tmp: Path) -> str:
    labels = y.clone()
    labels[0] = 4
    said = error(lambda: fit(tuner(), (X, labels)))
    fit(tuner(), (X, y))
    fit(tuner().replace_head(int(_number(r"replace_head\((\d+)\)", said))), (X, labels))
    return said


@case("Correct its forward; a mean belongs in the loss")
def one_number_for_a_batch(tmp: Path) -> str:
    class Mean(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean()

    said = error(lambda: fit(FineTuner(Mean(4, 3), device="cpu")))
    fit(FineTuner(nn.Linear(4, 3), device="cpu"))
    return said


@case("Pass {}(), an instance.")
def a_class_for_an_instance(tmp: Path) -> str:
    fit(tuner(loss=nn.CrossEntropyLoss()))
    fit(tuner(), (X, y), (X, y), callbacks=EarlyStopping())
    error(lambda: fit(tuner(), (X, y), (X, y), callbacks=EarlyStopping))
    return error(lambda: tuner(loss=nn.CrossEntropyLoss))


@case("or pass data that is already model input.")
def text_without_a_tokenizer(tmp: Path) -> str:
    said = error(lambda: fit(tuner(2), (["good", "bad"] * 9, [0, 1] * 9)))
    fit(tuner(2), (X[:18], [0, 1] * 9))
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


@case("needs data with fixed views of each sample")
def views_of_arrays(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), augment_views=2))
    fit(tuner())
    return said


@case("give the dataset a `collate_fn`, or pass a DataLoader")
def samples_of_another_kind(tmp: Path) -> str:
    class Own:
        pass

    def collate(items: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([X[0]] * len(items)), torch.tensor([label for _, label in items])

    data = Items([(Own(), index % 2) for index in range(12)])
    said = error(lambda: fit(tuner(2), data))
    fit(tuner(2), DataLoader(data, batch_size=4, collate_fn=collate))
    data.collate_fn = collate  # type: ignore[attr-defined]
    fit(tuner(2), data)
    return said


@case("Pass val=False to train on all samples")
def held_out(tmp: Path) -> str:
    said = logged(lambda: of_images().fit(folder(tmp / "pets")))
    assert "val_loss" not in fit(of_images(), tmp / "pets", val=False).history[0]
    return said


@case("Augment inside the dataset, or pass images")
def augmented_numbers(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), Items(ITEMS), augment=lambda sample: sample))
    fit(tuner(), Items([(x + 0.01, label) for x, label in ITEMS]))
    fit(of_images(), folder(tmp / "pets"), augment=lambda item: item)
    return said


@case("Test-time augmentation needs images")
def views_of_numbers(tmp: Path) -> str:
    said = error(lambda: tuner().predict(X, tta=True))
    tuner().predict(X)
    return said


@case("To leave them out, pass skip_corrupt=True to fit", "cannot be decoded ({}: {}). Replace the file or remove")
def damaged_image(tmp: Path) -> str:
    bad = folder(tmp / "pets") / "cat" / "0.png"
    bad.write_bytes(b"none")
    said = error(lambda: fit(of_images(), tmp / "pets"))
    fit(of_images(), tmp / "pets", skip_corrupt=True)
    image(bad)
    fit(of_images(), tmp / "pets")
    bad.unlink()
    fit(of_images(), tmp / "pets")
    return said


@case("Correct the path of the {}, or leave it out")
def missing_image(tmp: Path) -> str:
    there = [str(image(tmp / f"{index}.png", 40 * index)) for index in range(4)]
    said = error(lambda: fit(of_images(), ([*there, str(tmp / "gone.png")], [0, 1, 0, 1, 0]), val=False))
    fit(of_images(), (there, [0, 1, 0, 1]), val=False)
    return said


@case("contains a training and a validation folder instead of one folder per class. Pass")
def divided_folder(tmp: Path) -> str:
    for part in ("train", "val"):
        folder(tmp / part)
    said = error(lambda: of_images().evaluate(tmp))
    train, val = re.findall(r"Pass '(.+?)' as the training data and '(.+?)' as", said)[0]
    fit(of_images(), train, val)
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


@case("Paths alone have no labels")
def paths_alone(tmp: Path) -> str:
    paths = sorted(str(path) for path in folder(tmp / "pets").rglob("*.png"))
    said = error(lambda: fit(of_images(), paths))
    labels = [Path(path).parent.name for path in paths]
    (tmp / "pets.csv").write_text("\n".join(["path,label", *map(",".join, zip(paths, labels, strict=True))]))
    for data in ((paths, labels), tmp / "pets", tmp / "pets.csv"):
        fit(of_images(), data)
    return said


@case("Pass the pair (X, y), with one y per sample")
def inputs_alone(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), X))
    fit(tuner(), (X, y))
    return said


@case("Rename them to 'path' or 'text', and 'label'")
def unclear_columns(tmp: Path) -> str:
    rows = [f"{path},{path.parent.name},1" for path in folder(tmp / "pets").rglob("*.png")]
    table = tmp / "pets.csv"
    table.write_text("\n".join(["a,b,c", *(f"{row},{row % 2},1" for row in range(9))]))
    said = error(lambda: fit(of_images(), table))
    rows = [f"{path},{path.parent.name},1" for path in (tmp / "pets").rglob("*.png")]
    table.write_text("\n".join(["path,label,c", *rows]))
    fit(of_images(), table)
    fit(tuner(), (X, y))
    return said


@case("Rename the column to 'label'")
def unclear_label(tmp: Path) -> str:
    rows = [f"{path},{path.parent.name},1" for path in folder(tmp / "pets").rglob("*.png")]
    table = tmp / "pets.csv"
    table.write_text("\n".join(["path,b,c", *rows]))
    said = error(lambda: fit(of_images(), table))
    table.write_text("\n".join(["path,label,c", *rows]))
    fit(of_images(), table)
    return said


@case("Rename the column of class names to 'label'")
def label_columns_of_names(tmp: Path) -> str:
    rows = [f"{path},{path.parent.name},1" for path in folder(tmp / "pets").rglob("*.png")]
    table = tmp / "pets.csv"
    table.write_text("\n".join(["path,label_a,label_b", *rows]))
    said = error(lambda: fit(of_images(), table))
    table.write_text("\n".join(["path,label,b", *rows]))
    fit(of_images(), table)
    return said


@case("samples are too few to hold out")
def too_few_to_hold_out(tmp: Path) -> str:
    small = folder(tmp / "pets", count=1)
    said = error(lambda: fit(of_images(), small))
    fit(of_images(), small, val=folder(tmp / "val"))
    fit(of_images(), folder(tmp / "more"))
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


def sound(path: Path, level: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(800) * level) * 9999).astype("<i2").tobytes())
    return path


@case("The audio file '{}' does not exist", "The audio file '{}' cannot be read")
def missing_sound(tmp: Path) -> str:
    from finetune.data.sources.sound_files import SoundFiles

    (tmp / "bad.wav").write_bytes(b"none")
    said = [error(lambda path=path: SoundFiles.read(path)) for path in (tmp / "gone.wav", tmp / "bad.wav")]
    SoundFiles.read(sound(tmp / "bad.wav"))
    return "\n".join(said)


@case("The audio contains NaN or infinite values", "The text is empty. Fill it in")
def items_that_cannot_be_used(tmp: Path) -> str:
    from finetune.data.preprocessing.sound import SoundPreprocessing
    from finetune.data.preprocessing.text import TextPreprocessing

    listen, read = SoundPreprocessing.__new__(SoundPreprocessing), TextPreprocessing.__new__(TextPreprocessing)
    said = [error(lambda: listen.check(np.array([0.0, np.nan], np.float32))), error(lambda: read.check(" "))]
    listen.check(np.zeros(2, np.float32))
    read.check("good")
    return "\n".join(said)


@case("has a single folder, '{}', and the folders {} are in '{}'")
def folder_one_level_up(tmp: Path) -> str:
    folder(tmp / "images")
    said = error(lambda: fit(of_images(), tmp))
    fit(of_images(), _number(r"Pass '(.+?)'", said))
    return said


@case("are the same folder, but of two classes")
def one_folder_of_two_classes(tmp: Path) -> str:
    folder(tmp / "pets")
    (tmp / "pets" / "eel").symlink_to(tmp / "pets" / "cat")
    said = error(lambda: fit(of_images(3), tmp / "pets"))
    (tmp / "pets" / "eel").unlink()
    fit(of_images(), tmp / "pets")
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


@case("are {}, but those of the training data are {}. Give both files the same label columns")
def other_label_columns(tmp: Path) -> str:
    def table(name: str, *columns: str) -> Path:
        rows = [f"{image(tmp / f'{index}.png', 20 * index)},{index % 2},{index // 2 % 2}" for index in range(8)]
        (tmp / name).write_text("\n".join([",".join(["path", *columns]), *rows]))
        return tmp / name

    model = fit(of_images(2), table("a.csv", "label_x", "label_y"), val=False)
    said = error(lambda: model.evaluate(table("b.csv", "label_x", "label_z")))
    model.evaluate(table("b.csv", "label_y", "label_x"))
    return said


@case("so how {} become such inputs is not known. Pass inputs prepared as for training")
def images_after_arrays(tmp: Path) -> str:
    model = of_images()
    model = fit(FineTuner(model.model, device="cpu"), (torch.rand(12, 3, 8, 8), torch.arange(12) % 2))
    path = image(tmp / "a.png")
    said = error(lambda: model.predict(path))
    model.predict(torch.rand(1, 3, 8, 8))
    model.preprocessing = IMAGES
    model.predict(path)
    return said


# ---------------------------------------------------------------- models


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


@case("uint8 inputs are scaled only as images")
def bytes_without_preprocessing(tmp: Path) -> str:
    data = (X * 9 + 90).byte()
    said = error(lambda: fit(tuner(), (data, y)))
    fit(tuner(), (data.float(), y))
    return said


class Endless(IterableDataset):  # type: ignore[type-arg]
    """A stream with a length, which does not end there."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        yield from zip(X, y, strict=True)


@case("Correct __len__, which the schedule of learning rates follows")
def wrong_length(tmp: Path) -> str:
    said = logged(lambda: fit(tuner(), Endless(len(y) - 1)))
    assert "Correct __len__" not in logged(lambda: fit(tuner(), Endless(len(y))))
    return said


@case("Pass its dataset, or a DataLoader without shuffle, drop_last and sampler")
def shuffled_predictions(tmp: Path) -> str:
    data = torch.utils.data.TensorDataset(X, y)
    said = error(lambda: tuner().predict(DataLoader(data, shuffle=True)))
    assert torch.allclose(tuner().predict(data), tuner().predict(DataLoader(data)), atol=1e-6)
    return said


@case("The labels are bytes, such as {}. Expected names or numbers. Pass label.decode()")
def bytes_as_labels(tmp: Path) -> str:
    names = [b"cat", b"dog", b"eel"]
    said = error(lambda: fit(tuner(), [(x, names[k]) for x, k in zip(X, y.tolist(), strict=True)]))
    fit(tuner(), [(x, names[k].decode()) for x, k in zip(X, y.tolist(), strict=True)])
    return said


@case("is a sparse tensor. Expected a dense one. Pass {}.to_dense()")
def sparse_inputs(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), (X.to_sparse(), y)))
    fit(tuner(), (X.to_sparse().to_dense(), y))
    return said


@case("has one sample, but a norm of the model has no running statistics and needs several")
def last_batch_of_one(tmp: Path) -> str:
    def normed() -> FineTuner:
        return FineTuner(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)), device="cpu")

    data = torch.utils.data.TensorDataset(X[:9], y[:9])
    said = error(lambda: fit(normed(), DataLoader(data, batch_size=4)))
    fit(normed(), DataLoader(data, batch_size=3))
    fit(normed(), DataLoader(data, batch_size=4, drop_last=True))
    return said


@case("with one epoch trains the head only. Pass epochs=2 or more to train the other layers too")
def one_epoch_for_two_phases(tmp: Path) -> str:
    said = logged(lambda: fit(tuner(), strategy="lp_ft", epochs=1))
    assert "trains the head only" not in logged(lambda: fit(tuner(), strategy="lp_ft", epochs=2))
    return said


@case("marks samples without a label, remove them or pass loss=nn.CrossEntropyLoss(ignore_index={})")
def unlabeled_samples(tmp: Path) -> str:
    labels = y.clone()
    labels[0] = -1
    said = error(lambda: fit(tuner(), (X, labels)))
    fit(tuner(), (X[1:], labels[1:]))
    fit(tuner(loss=nn.CrossEntropyLoss(ignore_index=-1)), (X, labels))
    return said


@case("Correct the targets, set the number of outputs with replace_head, or pass another loss")
def loss_for_other_outputs(tmp: Path) -> str:
    said = error(lambda: fit(tuner(loss=nn.CrossEntropyLoss(weight=torch.ones(2)))))
    fit(tuner(loss=nn.CrossEntropyLoss(weight=torch.ones(3))))
    fit(tuner(loss=nn.CrossEntropyLoss(weight=torch.ones(2))).replace_head(2), (X, y % 2))
    return said


@case("which fails at a number: {}. Pass a name such as 'cosine', or a function that returns a factor")
def class_as_schedule(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), schedule=torch.optim.lr_scheduler.CosineAnnealingLR))
    fit(tuner(), schedule="cosine")
    fit(tuner(), schedule=lambda progress: 1 - progress)
    return said


@case("The targets are complex. Expected real numbers. Pass y.real")
def complex_targets(tmp: Path) -> str:
    values = torch.complex(torch.arange(float(len(y))) + 0.5, torch.zeros(len(y)))
    said = error(lambda: fit(tuner(1), (X, values)))
    fit(tuner(1), (X, values.real))
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
    fit(model.unfreeze(_number(r"unfreeze\('(.+?)'\)", said)))
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


# ---------------------------------------------------------------- training


@case("pass cache='memory' if yours does not")
def uncached_dataset(tmp: Path) -> str:
    data = Items(ITEMS * 3)
    said = logged(lambda: tuner().freeze().fit(data, epochs=3, progress=False))
    assert "cache: off" not in logged(lambda: tuner().freeze().fit(data, epochs=3, cache="memory", progress=False))
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
def weights_of_another_number(tmp: Path) -> str:
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


@case("Pass another optimizer, such as torch.optim.Adam", "Set sparse=False on {}, with an optimizer such as")
def gradients_of_another_layout(tmp: Path) -> str:
    ids = (torch.arange(36).reshape(12, 3) % 9, torch.arange(12) % 2)
    model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 2))
    said = error(lambda: fit(tuner(optimizer=torch.optim.SparseAdam)))
    said += error(lambda: fit(FineTuner(model, device="cpu"), ids))
    fit(tuner(optimizer=torch.optim.Adam))
    model.get_submodule(_number("sparse=False on (.+?),", said)).sparse = False  # type: ignore[assignment]
    fit(FineTuner(model, device="cpu", optimizer=torch.optim.Adam), ids)
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
    fit(tuner(2, loss=eval(_number(r"(lambda .+exp\(\)\))", said), {"torch": torch})), data)
    fit(Gaussian(Both(4, 2), device="cpu"), data)
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


@case("For classes, give the model one output per class with replace_head(", "If the labels are -1 and 1, pass 0 and 1")
def one_output(tmp: Path) -> str:
    said = error(lambda: fit(tuner(1)))
    fit(tuner(1).replace_head(int(_number(r"replace_head\((\d+)\)", said))))
    fit(tuner(1, loss="mse"))
    signs = (y > 0) * 2 - 1
    other = error(lambda: fit(tuner(1), (X, signs)))
    fit(tuner(1), (X, (signs > 0).long()))
    return f"{said} {other}"


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


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    known = targets != -1
    return nn.functional.binary_cross_entropy_with_logits(outputs[known], targets[known].float())


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
    fit(tuner(1).replace_head(int(_number(r"replace_head\((\d+)\)", said))), (X, names))
    return said


@case("Expected the same shape. Set the number of outputs with replace_head({})")
def targets_of_another_shape(tmp: Path) -> str:
    said = error(lambda: fit(tuner(3, loss="mse"), (X, X[:, :2])))
    fit(tuner(3, loss="mse").replace_head(int(_number(r"replace_head\((\d+)\)", said))), (X, X[:, :2]))
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


@case("Name it with loss=..., or call fit")
def loss_before_data(tmp: Path) -> str:
    said = error(lambda: tuner().loss)
    assert tuner(loss="cross_entropy").loss
    assert fit(tuner()).loss
    return said


# ---------------------------------------------------------------- metrics


@case("does not say whether a higher value is better. Pass mode=")
def metric_without_direction(tmp: Path) -> str:
    def own(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) == targets).float().mean())

    def stopped(**options: Any) -> FineTuner:
        return fit(tuner(metrics={"own": own}), val=(X, y), callbacks=[EarlyStopping("val_own", **options)])

    said = error(stopped)
    stopped(mode="max")
    stopped(mode="min")
    return said


@case("Two metrics would be called {}. Name them in a mapping")
def two_metrics_of_a_name(tmp: Path) -> str:
    from torchmetrics.classification import MulticlassAccuracy

    one, two = (MulticlassAccuracy(3, top_k=k) for k in (1, 2))
    said = error(lambda: fit(tuner(metrics=[one, two])))
    fit(tuner(metrics={"top1": one, "top2": two}))
    return said


@case("has no name. Name it in a mapping")
def nameless_metric(tmp: Path) -> str:
    metric = lambda outputs, targets: float(outputs.mean())  # noqa: E731
    said = error(lambda: fit(tuner(metrics=[metric])))
    fit(tuner(metrics={"own": metric}))
    return said


@case("Expected a metric, but got the class")
def metric_class(tmp: Path) -> str:
    from torchmetrics.classification import MulticlassAccuracy

    said = error(lambda: fit(tuner(metrics=[MulticlassAccuracy])))
    fit(tuner(metrics=[MulticlassAccuracy(3)]))
    return said


@case("The history cannot call a metric")
def reserved_name(tmp: Path) -> str:
    said = error(lambda: fit(tuner(metrics={"loss": "accuracy"})))
    fit(tuner(metrics={"own": "accuracy"}))
    return said


@case("Set how it averages, as in average='macro'")
def metric_of_several_numbers(tmp: Path) -> str:
    from torchmetrics.classification import MulticlassRecall

    said = error(lambda: fit(tuner(metrics=[MulticlassRecall(3, average="none")])))
    fit(tuner(metrics=[MulticlassRecall(3, average="macro")]))
    return said


@case("Pass a metric of this task, or remove it")
def metric_of_another_task(tmp: Path) -> str:
    from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix  # noqa: F401

    said = error(lambda: fit(tuner(metrics=[MulticlassAUROC(5)])))
    fit(tuner(metrics=[MulticlassAUROC(3)]))
    fit(tuner(metrics=[]))
    return said


# ---------------------------------------------------------------- checkpoints and comparisons


@case("For weights from elsewhere, use FineTuner(..., weights='FILE')")
def weights_as_checkpoint(tmp: Path) -> str:
    save_file(tuner().model.state_dict(), tmp / "w.safetensors")
    said = error(lambda: FineTuner.load_checkpoint(tmp / "w.safetensors"))
    fit(FineTuner(tuner().model, weights=tmp / "w.safetensors", device="cpu"))
    return said


@case("which a checkpoint cannot hold, so the default is used. Pass %s again")
def settings_that_are_lost(tmp: Path) -> str:
    path = fit(tuner(loss=masked, metrics=[]), (X, nn.functional.one_hot(y, 3))).save_checkpoint(tmp / "a.safetensors")
    said = logged(lambda: FineTuner.load_checkpoint(path, tuner().model))
    again = logged(lambda: FineTuner.load_checkpoint(path, tuner().model, loss=masked))
    assert "so the default is used" not in again
    return said


@case("its content does not match its checksum. Use another copy")
def damaged_checkpoint(tmp: Path) -> str:
    content = tuner().save_checkpoint(tmp / "a.safetensors").read_bytes()
    (tmp / "b.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = error(lambda: FineTuner.load_checkpoint(tmp / "b.safetensors", tuner().model))
    FineTuner.load_checkpoint(tmp / "a.safetensors", tuner().model)
    return said


@case("Build the model, replace its head in the same way, and pass it as model=")
def custom_head(tmp: Path) -> str:
    class Own(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.linear = nn.Linear(features, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)[:, : self.linear.in_features])

    def made() -> FineTuner:
        return FineTuner("shufflenet_v2_x0_5", weights=None, device="cpu").replace_head(3, head=Own)

    path = made().save_checkpoint(tmp / "own.safetensors")
    said = error(lambda: FineTuner.load_checkpoint(path))
    FineTuner.load_checkpoint(path, model=made().model)
    return said


@case("To continue from its weights, load it with load_checkpoint and call fit")
def checkpoint_without_a_run(tmp: Path) -> str:
    path = tuner().save_checkpoint(tmp / "model.safetensors")
    said = error(lambda: fit(tuner(), resume_from=path))
    fit(FineTuner.load_checkpoint(path, tuner().model))
    fit(tuner(), checkpoint_dir=tmp / "run")
    fit(tuner(), resume_from=tmp / "run" / "last.safetensors")
    return said


@case("Pass fit the folder of the checkpoints")
def resume_from_nowhere(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), resume_from="auto"))
    fit(tuner(), resume_from="auto", checkpoint_dir=tmp)
    return said


@case("Resume with the same values")
def resume_another_plan(tmp: Path) -> str:
    fit(tuner(), strategy="linear_probe", checkpoint_dir=tmp)
    said = error(lambda: fit(tuner(), strategy="full_finetune", resume_from=tmp))
    fit(tuner(), strategy="linear_probe", resume_from=tmp)
    return said


@case("Pass fit and FineTuner the same arguments as in that run")
def resume_with_other_metrics(tmp: Path) -> str:
    fit(tuner(), checkpoint_dir=tmp)
    said = error(lambda: fit(tuner(metrics=["f1"]), resume_from=tmp, epochs=2))
    fit(tuner(), resume_from=tmp, epochs=2)
    return said


@case("Change their epochs or the budget, or pass a strategy function")
def phases_beyond_the_budget(tmp: Path) -> str:
    said = error(lambda: compared(strategies=[[Phase("*", 2)]]))
    compared(strategies=[[Phase("*", 2)]], budget=2)
    compared(strategies=[[Phase("*", 1)]])
    compared(strategies=[lambda stages, epochs, lr: [Phase("*", epochs)]])
    return said


@case("use cache=False to compare speed")
def reused_activations(tmp: Path) -> str:
    said = str(Comparison([RunResult("net", "lp_ft", 0, "accuracy", 0.9, found=0.5)], budget=1))
    assert "*: reused" not in str(compared(cache=False))
    return said


@case("so its runs could not be recognized later. Omit folder")
def settings_without_a_fingerprint(tmp: Path) -> str:
    class Own:
        def __init__(self) -> None:
            self.me = [self]

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs, targets)

    said = error(lambda: compared(loss=Own(), folder=tmp))
    compared(loss=Own())
    return said


@case("A comparison requires validation data. Pass val, or omit it")
def compare_without_validation(tmp: Path) -> str:
    said = error(lambda: compared(val=False))
    compared(val=(X, y))
    compared(val=None)
    return said


def _number(pattern: str, text: str) -> str:
    """Return what the pattern captures."""
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in {text}"
    return found[1]


@pytest.mark.parametrize("function", dict.fromkeys(CASES.values()), ids=lambda function: function.__name__)
def test_the_advice_works(function: Case, tmp_path: Path) -> None:
    said = function(tmp_path)
    for fragment in (part for part, own in CASES.items() if own is function):
        words = [re.escape(part) for part in re.split(r"\{\}|%[sd]", fragment)]
        assert re.search(".*".join(words), " ".join(said.split()), re.DOTALL), said
