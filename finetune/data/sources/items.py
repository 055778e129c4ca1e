"""Raw items in memory: texts, images and waveforms for the preprocessing."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finetune.data.preprocessing.base import is_image_cell
from finetune.data.sources.base import Indices, Source
from finetune.data.sources.image_files import read_image, read_image_cell
from finetune.data.sources.labels import Classes
from finetune.errors import DataError

if TYPE_CHECKING:
    from finetune.data.audit import Audit


class RawItems(Source):
    """Raw items in memory.

    Args:
        items: [N], all of one kind: strings, `TextPair`s, PIL images or 1-d arrays.
        kind: Kind of the items.
        targets: [N, ...] or None.
        classes: Class names by index, or None.
        table: File that the items were read from, or None.
        rows: Positions in `items` that belong to this source. None for all.
    """

    stochastic = False

    def __init__(
        self,
        items: Sequence[Any],
        kind: str,
        targets: Tensor | None = None,
        classes: Classes | None = None,
        *,
        table: Path | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        self.items = items
        self.kind: str = kind
        self.targets = targets
        self.classes = classes
        self.table = table
        self.splits = table is not None
        self._rows = range(len(items)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        item = self.items[self._rows[index]]
        return item if self.targets is None else (item, self.targets[index])

    def name(self, index: int) -> str:
        row = self._rows[index]
        return f"sample {row}" if self.table is None else f"row {row + 1} of '{self.table}'"

    def subset(self, indices: Indices) -> RawItems:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        targets = None if self.targets is None else self.targets[chosen.to(self.targets.device)]
        rows = [self._rows[i] for i in chosen.tolist()]
        return RawItems(self.items, self.kind, targets, self.classes, table=self.table, rows=rows)

    def check(self, audit: Audit) -> RawItems:
        """Raise DataError if the preprocessing cannot use an item. One that several rows share is checked once."""
        cells = getattr(self.items, "contents", self.items)
        checked: set[int] = set()
        for index, row in enumerate(self._rows):
            if not (isinstance(cells, list) and id(cells[row]) in checked):
                audit.check_item(self.items[row], self.name(index))
                checked.add(id(cells[row]))
        return self

    def describe(self) -> Iterator[Any]:
        return (self.items[row] for row in self._rows)

    def identify(self) -> Iterator[Any]:
        items = getattr(self.items, "contents", self.items)  # those of encoded images, which are not decoded for this
        for item in (items[row] for row in self._rows):
            yield item["bytes"] or os.path.basename(item["path"]) if is_image_cell(item) else item


class EncodedImages(Sequence[Any]):
    """Images that are decoded each time they are asked for, because decoded ones may not fit into memory together.

    Args:
        items: Contents of files, open files, cells of a Hugging Face column, or bytes [H, W, C]. Open files are read.

    Raises:
        DataError: If an open file cannot be read, or a cell has neither bytes nor a path.
    """

    def __init__(self, items: Sequence[Any]) -> None:
        self.contents = [_content(item, f"sample {index}") for index, item in enumerate(items)]

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: Any) -> Any:
        content = self.contents[index]
        if isinstance(content, np.ndarray):
            return Image.fromarray(content[..., 0] if content.ndim == 3 and content.shape[2] == 1 else content)
        if is_image_cell(content):
            return read_image_cell(content)
        file = io.BytesIO(content)
        file.name = f"sample {index}"  # for the error of an image that cannot be decoded
        return read_image(file).copy()


def _content(item: Any, name: str) -> Any:
    if isinstance(item, (bytes, bytearray)):
        return bytes(item)
    if not hasattr(item, "read"):
        if is_image_cell(item) and item["bytes"] is None and item["path"] is None:
            return read_image_cell(item)  # which says so
        return item
    try:
        item.seek(0)
        content = item.read()
    except (OSError, ValueError) as error:
        raise DataError(f"The image in {name} cannot be read: {error}.") from error
    if not isinstance(content, bytes):
        raise DataError(f"The image in {name} is a file of text. Expected one opened in binary mode.")
    return content
