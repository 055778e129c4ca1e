from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from finetune.data.sources.open_source import open_source
from finetune.data.sources.streams import Loader, Stream
from finetune.errors import DataError
from tests.helpers.datasets import Items, Numbers

MakeFolder = Callable[..., Path]


def test_streams_and_loaders_have_no_samples_by_index() -> None:
    stream, loader = open_source(Numbers()), open_source(DataLoader(Items([1, 2])))
    assert isinstance(stream, Stream)
    assert isinstance(loader, Loader)
    for source in (stream, loader):
        for use in (len, lambda s: s[0], lambda s: s.subset([0])):
            with pytest.raises(TypeError, match="read as a stream"):
                use(source)
    assert open_source(stream) is stream
    assert stream.name(3) == "sample 3"


def test_trap_35_loaders_and_streams_cannot_be_renumbered(class_folder: MakeFolder) -> None:
    folder = ImageFolder(str(class_folder("val", bee=1, cat=2)))
    with pytest.raises(DataError, match="its class 0 is 'bee', the training data's is 'ant'"):
        open_source(DataLoader(folder), classes=["ant", "bee", "cat"])
    with pytest.raises(DataError, match="its class 1 is 'cat', the training data's is none"):
        open_source(DataLoader(folder), classes=["bee"])
    assert open_source(DataLoader(folder), classes=["bee", "cat", "dog"]).classes == ("bee", "cat", "dog")
    assert open_source(DataLoader(folder)).classes == ("bee", "cat")
    opened = open_source(folder)
    assert open_source(opened, classes=["bee", "cat", "dog"]) is opened
    with pytest.raises(DataError, match="The source numbers the classes differently"):
        open_source(opened, classes=["cat", "bee"])
