from __future__ import annotations

import gc
import io
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from finetune import FineTuner, Preprocessing
from finetune.data.batch import split_batch
from finetune.data.loading.batches import Batches
from finetune.data.prepare import prepare
from finetune.data.sources.arrays import Arrays
from finetune.data.sources.image_files import ImageFiles
from finetune.data.sources.labels import Meaning
from finetune.data.sources.open_source import open_source
from finetune.data.splitting import split
from finetune.errors import ArgumentError, DataError
from tests.helpers.datasets import Items
from tests.helpers.image_files import picture

MakeFolder = Callable[..., Path]


def test_lists_of_tensors_paths_and_images(tmp_path: Path, pictures: list[str]) -> None:
    stacked = open_source(([torch.ones(2), torch.zeros(2)], [0, 1]))
    assert isinstance(stacked, Arrays)
    with pytest.raises(DataError, match="differ in shape"):
        open_source(([torch.ones(2), torch.zeros(3)], [0, 1]))
    with pytest.raises(DataError, match="not an array of numbers"):
        open_source((np.array([{}, {}]), [0, 1]))
    files = open_source(([tmp_path / p for p in pictures], ["b", "a", "b", "a"]))
    assert isinstance(files, ImageFiles)
    assert files.classes == ("a", "b")
    with pytest.raises(DataError, match=r"3\.png' has the class 'z'"):
        open_source(([tmp_path / p for p in pictures], ["b", "a", "b", "z"]), classes=["a", "b"])
    images = open_source(([picture(1), picture(2)], ["x", "y"]))
    assert images.kind == "picture"
    assert images.classes == ("x", "y")
    assert int(images[1][1]) == 1
    assert open_source([picture(1), picture(2)], labeled=False).kind == "picture"
    assert open_source(([picture(1), picture(2)], ["x", "y"]), labeled=False).kind == "picture"


def test_inputs_alone() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    for alone in (x, x.numpy(), x.tolist(), list(x)):
        source = open_source(alone, labeled=False)
        assert isinstance(source, Arrays)
        assert source.gather(torch.tensor([1])).tolist() == [[2.0, 3.0]]
    with pytest.raises(DataError, match=r"X alone has no labels.*\(3, 2\)"):
        open_source(x)
    with pytest.raises(DataError, match=r"Paths alone have no labels: 'a.png', 'b', 'c', \.\.\."):
        open_source(["a.png", "b", "c", "d"])
    with pytest.raises(DataError, match=r"Texts alone have no labels: 'a', 'b'"):
        open_source(["a", "b"])


@pytest.mark.parametrize("data", [7, None, {"x": 1}, {1, 2}])
def test_unsupported_data_lists_the_accepted_forms(data: Any) -> None:
    with pytest.raises(DataError, match=r"type .* cannot be used\. Expected a folder.*DataLoader"):
        open_source(data)
    with pytest.raises(DataError, match="for predict also the path of an image"):
        open_source(data, labeled=False)


def test_opening_draws_no_random_numbers(class_folder: MakeFolder) -> None:
    class Noisy(Items):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(2), 0

    state = torch.random.get_rng_state()
    open_source(Noisy([0, 1]))
    split(open_source(class_folder(a=5, b=5)))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_one_image_in_every_form(tmp_path: Path) -> None:
    image = picture(1)
    image.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    pixels = np.asarray(image)
    forms: list[Any] = [
        image,
        content,
        bytearray(content),
        io.BytesIO(content),
        (tmp_path / "a.png").open("rb"),
        [content],
        [io.BytesIO(content)],
        str(tmp_path / "*.png"),
        str(tmp_path / "**" / "[a-c].png"),
        tmp_path / "?.png",
        [image],
        pixels,
        [pixels],
    ]
    for form in forms:
        source = open_source(form, labeled=False, takes="picture")
        assert len(source) == 1
        assert np.array_equal(np.asarray(source[0]), pixels)
    forms[4].close()
    grey = open_source(pixels[..., :1], labeled=False, takes="picture")
    assert np.array_equal(np.asarray(grey[0]), pixels[..., 0])
    sizes = open_source(([pixels, pixels[:5]], ["a", "b"]), takes="picture")
    assert sizes[1][0].size == (40, 5)
    labeled = open_source(([content, content], ["a", "b"]))
    assert labeled.classes == ("a", "b")
    assert np.array_equal(np.asarray(labeled[1][0]), pixels)


def test_encoded_images_train_as_their_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.png" for k in range(12)]
    for k, path in enumerate(paths):
        picture(k).save(path)
    contents, labels = [path.read_bytes() for path in paths], [k % 2 for k in range(12)]
    weights = []
    for data in (paths, contents, [io.BytesIO(content) for content in contents]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        tuner = FineTuner(model, preprocessing=Preprocessing(crop_size=(16, 16)), device="cpu")
        tuner.fit((data, labels), val=0.25, epochs=2, batch_size=4, progress=False)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_encoded_images_are_not_kept_decoded(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    data = [(tmp_path / "a.png").read_bytes()] * 50, [0, 1] * 25
    before = sum(issubclass(type(found), Image.Image) for found in gc.get_objects())
    prepared = prepare(data, 0.5).audited()
    assert sum(issubclass(type(found), Image.Image) for found in gc.get_objects()) <= before + 2
    assert isinstance(prepared.train[0][0], Image.Image)


def test_an_encoded_image_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    with pytest.raises(DataError, match=r"The image in sample 2 cannot be decoded"):
        prepare(([content, content, content[:60]], [0, 1, 0])).audited()
    text, closed = io.StringIO("text"), io.BytesIO(content)
    closed.close()
    with pytest.raises(DataError, match=r"The image in sample 1 is a file of text\. Expected one opened in binary"):
        open_source([content, text], labeled=False)
    with pytest.raises(DataError, match=r"The image in sample 1 cannot be read: .*closed file"):
        open_source([content, closed], labeled=False)


def test_one_image_has_no_label() -> None:
    for form in (picture(1), b"content"):
        with pytest.raises(DataError, match="no label"):
            open_source(form)


@pytest.mark.parametrize("data", ["https://host.org/a.png", "HTTP://host/x.csv"])
def test_urls_say_to_download(data: str) -> None:
    for labeled in (True, False):
        with pytest.raises(DataError, match=r"is a URL\. Download it first"):
            open_source(data, labeled=labeled)


def test_a_pattern_without_a_match(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No image or audio file matches '.*\*\.png'"):
        open_source(str(tmp_path / "*.png"), labeled=False)
    (tmp_path / "a[1].png").write_bytes(b"")
    assert len(open_source(tmp_path / "a[1].png", labeled=False)) == 1
    with pytest.raises(DataError, match="cannot be decoded"):
        open_source(b"no image", labeled=False)[0]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("item", [torch.ones(4), np.ones((2, 3), np.float32), torch.ones(3, dtype=torch.int64)])
def test_a_list_without_labels_is_one_of_samples(n: int, item: Any) -> None:
    assert len(open_source([item] * n, labeled=False)) == n
    assert open_source([item] * n, labeled=False)[n - 1].tolist() == item.tolist()


def test_only_a_tuple_is_a_pair_without_labels() -> None:
    X, y = torch.ones(4, 2), torch.arange(4)
    assert len(open_source((X, y), labeled=False)) == len(open_source([X, y])) == 4
    assert len(open_source([X, X], labeled=False)) == 2
    with pytest.raises(DataError, match="differ in shape"):
        open_source([X, y], labeled=False)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_masked_and_sparse_values_in_a_list_are_refused() -> None:
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    with pytest.raises(DataError, match=r"X\[1\] has 1 masked values"):
        open_source(([np.ones(2), masked], [0, 1]))
    with pytest.raises(DataError, match=r"y\[1\] has 1 masked values"):
        open_source((np.ones((2, 2)), [0, np.ma.masked]))
    with pytest.raises(DataError, match=r"X\[0\] is a sparse tensor"):
        open_source(([torch.ones(2).to_sparse(), torch.ones(2)], [0, 1]))
    whole = np.ma.array([1.0, 2.0], mask=[False, False])
    assert open_source(([whole, np.ones(2)], [np.array(0), np.array(1)]))[0][0].tolist() == [1, 2]


def test_several_arrays_are_the_inputs_also_beside_labels() -> None:
    X = torch.arange(6.0).reshape(3, 2)
    source = open_source(((X, X + 1), torch.arange(3)), labeled=False)
    ((first, second),) = source[1]
    assert (first.tolist(), second.tolist()) == ([2, 3], [3, 4])
    inputs, targets = split_batch(next(Batches(source, batch_size=3, shuffle=False).epoch(0)))
    assert (len(inputs), targets) == (2, None)


@pytest.mark.parametrize(
    "data",
    [iter([1]), zip([1], [2], strict=True), enumerate([1]), (k for k in [1])],
    ids=["list", "zip", "enumerate", "generator"],
)
def test_iterators_are_read_once(data: Any) -> None:
    with pytest.raises(DataError, match="can be read only once"):
        open_source(data)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_without_dense_values_are_refused() -> None:
    labels, nested = torch.tensor([0, 1]), torch.nested.nested_tensor([torch.ones(4), torch.ones(3)])
    with pytest.raises(DataError, match="X is on the meta device"):
        open_source((torch.empty(2, 4, device="meta"), labels))
    with pytest.raises(DataError, match=r"X is a nested tensor.*to_padded_tensor\(0\)"):
        open_source((nested, labels))
    assert len(open_source((nested.to_padded_tensor(0), labels))) == 2


class Viewed:
    """Numbers that only a protocol gives access to."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


class ByArray(Viewed):
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values if dtype is None else self.values.astype(dtype)


class ByDLPack(Viewed):
    def __dlpack__(self, **arguments: Any) -> Any:
        return torch.from_numpy(self.values).__dlpack__()

    def __dlpack_device__(self) -> Any:
        return torch.from_numpy(self.values).__dlpack_device__()


ROWS, NUMBERS = np.arange(24, dtype=np.float32).reshape(6, 4), np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("view", [memoryview, ByArray, ByDLPack])
def test_values_behind_a_protocol_are_arrays(view: Callable[[np.ndarray], Any]) -> None:
    for data in ((view(ROWS), view(NUMBERS)), (ROWS, view(NUMBERS)), {"x": view(ROWS), "label": view(NUMBERS)}):
        source = open_source(data)
        assert source.targets is not None
        assert source.targets.tolist() == NUMBERS.tolist()
        inputs, _ = source[1]
        assert torch.equal(inputs["x"] if isinstance(inputs, dict) else inputs, torch.from_numpy(ROWS[1]))
    alone = open_source(view(ROWS), labeled=False)
    assert torch.equal(alone[5], torch.from_numpy(ROWS[5]))


def test_arrays_of_the_standard_library_are_labels_and_numbers() -> None:
    source = open_source((ROWS, array("l", NUMBERS.tolist())))
    assert source.targets is not None
    assert source.targets.tolist() == NUMBERS.tolist()
    assert open_source((array("f", range(6)), NUMBERS))[2][0] == 2


@pytest.mark.parametrize("dtype", ["float32", "Float32", "Int64", "boolean"])
def test_frames_of_any_dtype_of_numbers_are_inputs(dtype: str) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(ROWS % 2).astype(dtype)
    for data in ((frame, pd.Series(NUMBERS)), {"x": frame, "label": pd.Series(NUMBERS)}):
        inputs, target = open_source(data)[1]
        assert torch.equal((inputs["x"] if isinstance(inputs, dict) else inputs).float(), torch.tensor([0.0, 1, 0, 1]))
        assert target == 1


def test_a_frame_with_missing_numbers_has_nan() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": pd.array([1.5, None], dtype="Float64")})
    assert open_source((frame, [0, 1]))[1][0].isnan().all()


ONE_HOT = np.eye(3, dtype=np.int64)[NUMBERS]


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("form", [tuple, lambda pair: dict(zip(("x", "label"), pair, strict=True))])
@pytest.mark.parametrize("values", [ONE_HOT, ONE_HOT == 1, ONE_HOT * 2.5])
def test_columns_of_y_are_outputs_by_name(library: str, form: Callable[[Any], Any], values: np.ndarray) -> None:
    frame = pytest.importorskip(library).DataFrame(dict(zip("abc", values.T, strict=True)))
    trained = open_source(form((ROWS, frame)))
    assert trained.classes == ("a", "b", "c")
    evaluated = open_source(form((ROWS, frame[["c", "a", "b"]])), classes=trained.classes)
    assert trained.targets is not None
    assert evaluated.targets is not None
    assert evaluated.targets.tolist() == trained.targets.tolist() == values.tolist()
    assert evaluated.classes == trained.classes
    with pytest.raises(DataError, match="label columns of y are a, b, but those of the training data are a, b, c"):
        open_source(form((ROWS, frame[["a", "b"]])), classes=trained.classes)


def test_columns_of_y_that_only_count_have_no_names() -> None:
    pd = pytest.importorskip("pandas")
    for frame in (pd.DataFrame(ONE_HOT), pd.DataFrame({"label": NUMBERS})):
        assert open_source((ROWS, frame)).classes is None
    tokens = pd.DataFrame({"first": NUMBERS, "second": NUMBERS})
    assert open_source((ROWS, tokens), meaning=Meaning(numbers=False)).classes is None
    assert open_source((ROWS, tokens), meaning=Meaning(numbers=True)).classes == ("first", "second")
    with pytest.raises(DataError, match="trained on numbers without names"):
        open_source((ROWS, pd.DataFrame(ONE_HOT)[[2, 0, 1]]), meaning=Meaning(numbers=True, names=False))
    with pytest.raises(ArgumentError, match="outputs 0 and 1 are both called 'a'"):
        open_source((ROWS, pd.DataFrame(ONE_HOT, columns=["a", "a", "b"])))


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_of_labels_has_no_order(kind: type) -> None:
    with pytest.raises(DataError, match="y is a set, which has no order"):
        open_source((ROWS, kind(range(6))))


@pytest.mark.parametrize("kind", ["DatasetDict", "dict", "streams"])
def test_a_dict_of_datasets_names_its_parts(kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"x": [[1.0], [2.0]], "label": [0, 1]})
    data = {
        "DatasetDict": datasets.DatasetDict({"train": part, "test": part}),
        "dict": {"train": part, "test": part},
        "streams": datasets.IterableDatasetDict({"train": part.to_iterable_dataset(), "test": part}),
    }[kind]
    for labeled in (True, False):
        with pytest.raises(DataError, match=r"'train', 'test'.*Pass one of them, such as data\['train'\]"):
            open_source(data, labeled=labeled)
