"""Messages about data: arrays, datasets, folders and files."""

from __future__ import annotations

import warnings
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from finetune import FineTuner, Preprocessing
from finetune.callbacks import EarlyStopping
from finetune.data.preprocessing.provenance import PUBLISHED, Provenance
from finetune.data.sources.open_source import open_source
from tests.helpers.datasets import Items
from tests.messages.material import (
    IMAGES,
    ITEMS,
    X,
    advised,
    case,
    error,
    fit,
    folder,
    image,
    logged,
    of_images,
    tuner,
    y,
)


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


@case("pixels. Resize it, or set PIL.Image.MAX_IMAGE_PIXELS")
def too_many_pixels(tmp: Path) -> str:
    usual = Image.MAX_IMAGE_PIXELS
    large = image(folder(tmp / "pets") / "cat" / "large.png")
    Image.new("RGB", (20, 20)).save(large)
    try:
        Image.MAX_IMAGE_PIXELS = 100
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns too
            said = error(lambda: fit(of_images(), tmp / "pets"))
        image(large)
        fit(of_images(), tmp / "pets")
        Image.MAX_IMAGE_PIXELS = 400
        Image.new("RGB", (20, 20)).save(large)
        fit(of_images(), tmp / "pets")
    finally:
        Image.MAX_IMAGE_PIXELS = usual
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
    fit(of_images(), advised("Pass '(.+?)' as the training data", said), advised("and '(.+?)' as the val", said))
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


@case("The image has neither bytes nor a path. Remove the sample")
def cell_without_an_image(tmp: Path) -> str:
    content = image(tmp / "a.png").read_bytes()
    cells = [{"bytes": content, "path": None}, {"bytes": None, "path": None}, {"bytes": content, "path": None}]
    said = error(lambda: fit(of_images(), (cells, [0, 1, 1])))
    fit(of_images(), (cells[::2], [0, 1]))
    return said


@case("Convert NumPy arrays in the collate_fn; use torch.as_tensor(array)")
def arrays_in_a_batch(tmp: Path) -> str:
    def collate(items: list[Any]) -> Any:
        return np.stack([x.numpy() for x, _ in items]), torch.tensor([label for _, label in items])

    said = error(lambda: fit(tuner(), DataLoader(Items(ITEMS), 9, collate_fn=collate)))
    convert = torch.as_tensor
    fit(tuner(), DataLoader(Items(ITEMS), 9, collate_fn=lambda items: tuple(map(convert, collate(items)))))
    return said


@case("Pass the pair (X, y), with one y per sample")
def inputs_alone(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), X))
    fit(tuner(), (X, y))
    return said


@case("samples{} are too few to hold out")
def too_few_to_hold_out(tmp: Path) -> str:
    small = folder(tmp / "pets", count=1)
    said = error(lambda: fit(of_images(), small))
    fit(of_images(), small, val=folder(tmp / "val"))
    fit(of_images(), folder(tmp / "more"))
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


@case("The audio contains NaN or infinite values", "The text is empty. Fill it in", "half of a character, at position")
def items_that_cannot_be_used(tmp: Path) -> str:
    from finetune.data.preprocessing.sound import SoundPreprocessing
    from finetune.data.preprocessing.text import TextPreprocessing

    listen, read = SoundPreprocessing.__new__(SoundPreprocessing), TextPreprocessing.__new__(TextPreprocessing)
    said = [error(lambda: listen.check(np.array([0.0, np.nan], np.float32)))]
    said += [error(lambda text=text: read.check(text)) for text in (" ", "good\ud800")]
    listen.check(np.zeros(2, np.float32))
    read.check("good")
    return "\n".join(said)


@case("has a single folder, '{}', and the folders {} are in '{}'")
def folder_one_level_up(tmp: Path) -> str:
    folder(tmp / "images")
    said = error(lambda: fit(of_images(), tmp))
    fit(of_images(), advised(r"Pass '(.+?)'", said))
    return said


@case("are the same folder, but of two classes")
def one_folder_of_two_classes(tmp: Path) -> str:
    folder(tmp / "pets")
    (tmp / "pets" / "eel").symlink_to(tmp / "pets" / "cat")
    said = error(lambda: fit(of_images(3), tmp / "pets"))
    (tmp / "pets" / "eel").unlink()
    fit(of_images(), tmp / "pets")
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


@case("It has pixels that are NaN or infinite. Correct or remove the image")
def pixels_not_finite(tmp: Path) -> str:
    pixels = np.full((9, 9), np.nan, np.float32)
    bad = folder(tmp / "pets") / "cat" / "bad.tif"
    Image.fromarray(pixels).save(bad)
    said = error(lambda: fit(of_images(), tmp / "pets"))
    Image.fromarray(np.nan_to_num(pixels)).save(bad)
    fit(of_images(), tmp / "pets")
    bad.unlink()
    fit(of_images(), tmp / "pets")
    return said


@case("The image {} does not exist. Correct its path, or leave it out")
def image_that_is_gone(tmp: Path) -> str:
    """A file that is deleted after the data was opened."""
    paths = [image(tmp / f"{k}.png", 40 * k) for k in range(4)]
    source = open_source((paths, [0, 1, 0, 1]))
    paths[0].unlink()
    said = error(lambda: source[0])
    image(paths[0])
    assert source[0]
    assert open_source((paths[1:], [1, 0, 1]))[0]
    return said


@case("No image or audio file matches '{}'. Correct the pattern")
def pattern_of_no_file(tmp: Path) -> str:
    folder(tmp / "pets")
    said = error(lambda: of_images().predict(str(tmp / "pets" / "*.png")))
    assert len(of_images().predict(str(tmp / "pets" / "*" / "*.png"))) == 10
    return said


@case("If the training inputs were prepared in another way, pass FineTuner")
def published_preprocessing_after_arrays(tmp: Path) -> str:
    path, other = image(tmp / "a.png"), Preprocessing(crop_size=8)

    def trained(**given: Any) -> FineTuner:
        model = FineTuner(of_images().model, device="cpu", **given)
        if not given:  # as for a model by name, whose weights would be a download
            model._learn(preprocessing=IMAGES, inputs=Provenance(PUBLISHED))
        return fit(model, (torch.rand(12, 3, 8, 8), torch.arange(12) % 2))

    said = logged(lambda: trained().predict(path))
    assert "prepared in another way" not in logged(lambda: trained(preprocessing=other).predict(path))
    return said


@case("To normalize these, too, do so in the dataset, or pass X as bytes")
def floats_between_0_and_1(tmp: Path) -> str:
    unit, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 2
    said = logged(lambda: fit(of_images(), (unit, labels)))
    bytes_ = (255 * unit).round().to(torch.uint8)
    assert "between 0 and 1" not in logged(lambda: fit(of_images(), (bytes_, labels)))
    return said


@case("the stream shuffles. Pass the stream without shuffle(...)")
def predictions_of_a_shuffled_stream(tmp: Path) -> str:
    rows = datasets.Dataset.from_dict({"x": X.tolist(), "label": y.tolist()}).to_iterable_dataset()
    said = error(lambda: tuner().predict(rows.shuffle(seed=0)))
    tuner().predict(rows)
    return said


@case("Expected one data set. Pass one of them, such as data[{}]")
def several_data_sets(tmp: Path) -> str:
    rows = datasets.Dataset.from_dict({"x": X.tolist(), "label": y.tolist()})
    data = datasets.DatasetDict(train=rows, test=rows)
    said = error(lambda: fit(tuner(), data))
    fit(tuner(), data["train"], data["test"])
    return said


@case("Pass the DataLoader or dataset itself, the pair (X, y), or a list of samples")
def an_iterator(tmp: Path) -> str:
    loader = DataLoader(ITEMS, batch_size=4)  # type: ignore[arg-type]
    said = error(lambda: fit(tuner(), iter(loader)))
    for data in (loader, (X, y), ITEMS):
        fit(tuner(), data)
    return said


@case("number {} in its `class_to_idx`. Correct one of them, or remove it")
def classes_numbered_in_two_ways(tmp: Path) -> str:
    data = Items(ITEMS)
    data.classes, data.class_to_idx = ["a", "b", "c"], {"c": 0, "b": 1, "a": 2}  # type: ignore[attr-defined]
    said = error(lambda: fit(tuner(), data))
    data.class_to_idx = {"a": 0, "b": 1, "c": 2}  # type: ignore[attr-defined]
    assert fit(tuner(), data).classes == ("a", "b", "c")
    return said


@case("is a nested tensor. Expected a dense one")
def nested_inputs(tmp: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on a prototype
        nested = torch.nested.as_nested_tensor(list(X), layout=torch.strided)
    said = error(lambda: fit(tuner(), (nested, y)))
    fit(tuner(), (nested.to_padded_tensor(0), y))
    return said


@case("The arrays {} have no labels. Pass the pair (X, y) or a 'label'")
def named_arrays_without_labels(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), {"input": X}))
    fit(tuner(), (X, y))
    fit(tuner(), {"input": X, "label": y})
    return said


class Parts(IterableDataset):  # type: ignore[type-arg]
    """A stream with a length. Each worker reads all of it, or with `divided` its part."""

    def __init__(self, *, divided: bool) -> None:
        self.divided = divided

    def __len__(self) -> int:
        return len(ITEMS)

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info() if self.divided else None
        return iter(ITEMS if worker is None else ITEMS[worker.id :: worker.num_workers])


@case("workers, which take turns; use one")
def predictions_of_several_workers(tmp: Path) -> str:
    said = error(lambda: tuner().predict(DataLoader(Parts(divided=True), num_workers=2)))
    assert len(tuner().predict(DataLoader(Parts(divided=True), batch_size=9, num_workers=1))) == len(ITEMS)
    return said


@case("Divide the samples, or use num_workers=0")
def workers_that_read_the_same(tmp: Path) -> str:
    def loaded(workers: int, *, divided: bool) -> FineTuner:
        return fit(tuner(), DataLoader(Parts(divided=divided), batch_size=9, num_workers=workers))

    said = error(lambda: loaded(2, divided=False))
    loaded(2, divided=True)
    loaded(0, divided=False)
    return said


@case("Choose a batch size that leaves no batch of one sample, or set drop_last=True")
def batch_of_one_sample(tmp: Path) -> str:
    class Normed(nn.Module):
        """A norm of a batch's own statistics, as a function that no module tells of."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(nn.functional.batch_norm(x, None, None, training=True))

    data = torch.utils.data.TensorDataset(X[:9], y[:9])
    said = error(lambda: fit(FineTuner(Normed(), device="cpu"), data, batch_size=4))
    fit(FineTuner(Normed(), device="cpu"), data, batch_size=3)
    fit(FineTuner(Normed(), device="cpu"), DataLoader(data, batch_size=4, drop_last=True))
    return said


@case("Pass one of them as the training data, such as '{}'", "If the outer folders are the classes, pass the pair")
def folders_of_equal_folders(tmp: Path) -> str:
    for part in ("north", "south"):
        folder(tmp / "pets" / part)
    said = error(lambda: fit(of_images(), tmp / "pets"))
    north = advised(r"such as '(.+)', and", said)
    fit(of_images(), north, tmp / "pets" / "south")
    paths = sorted((tmp / "pets").rglob("*.png"))
    fit(of_images(), (paths, [path.parts[-3] for path in paths]))
    return said


@case("Pass a smaller batch_size, or cut long audio into parts")
def waveforms_that_do_not_fit_together(tmp: Path) -> str:
    from finetune.data.preprocessing.sound import check_padded

    check_padded(1, 10**5)
    check_padded(10**5, 1)
    return error(lambda: check_padded(10**5, 10**9))


@case("which holds no data but the system's state. Remove the link")
def link_to_the_system(tmp: Path) -> str:
    link = folder(tmp / "pets") / "eel"
    link.symlink_to("/proc")
    said = error(lambda: fit(of_images(), tmp / "pets"))
    link.unlink()
    fit(of_images(), tmp / "pets")
    return said
