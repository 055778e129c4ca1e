from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.data.batch import split_batch
from finetune.data.loading.batches import Batches
from finetune.data.sources.arrays import Arrays
from finetune.data.sources.image_files import ImageFiles
from finetune.data.sources.open_source import open_source
from finetune.data.splitting import split
from finetune.errors import DataError
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


def test_one_image_has_no_label() -> None:
    for form in (picture(1), b"content"):
        with pytest.raises(DataError, match="no label"):
            open_source(form)


@pytest.mark.parametrize("data", ["https://host.org/a.png", "s3://bucket/train", "HTTP://host/x.csv"])
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
        open_source(b"no image", labeled=False)


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


@pytest.mark.parametrize("data", [iter([1]), zip([1], [2], strict=True), enumerate([1]), (k for k in [1])], ids=repr)
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
