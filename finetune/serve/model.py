"""`ServedModel`: a tuner that reads uploads in any thread, and answers batches of them in one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from finetune.data.preprocessing.base import IMAGE, SOUND, TEXT, InputPreprocessing, Waveform
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.image_files import TooManyPixelsError, read_image
from finetune.data.sources.sound_files import read_waveform
from finetune.data.targets import CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError, DataError
from finetune.interpret.classification import Answer, Classification, Estimates, MultiLabelClassification
from finetune.serve.errors import RequestError
from finetune.serve.uploads import Limits, Upload

_OVERLAY = 512  # pixels of the longer side of an overlay, at most

if TYPE_CHECKING:
    from finetune.tuner import FineTuner


class ServedModel:
    """A tuner behind a page.

    The thread of a request reads and prepares its upload, and keeps only the small crop of an image that the model
    sees. The forward pass runs over batches.

    Args:
        tuner: A trained tuner, whose model is not changed.
        threshold: Lowest probability of a class in an answer, as in `FineTuner.classify`.
        reject: Probability of the best class below which the answer is "don't know", as in `FineTuner.classify`.
        limits: Limits of an upload.

    Attributes:
        kind: Kind of the uploads, such as `"picture"`.
        is_regression: Whether an answer is a value.
        is_multilabel: Whether an answer is any number of labels.
        classes: Class names; none for a regression.
        has_heatmaps: Whether `look` shows where the model looked.

    Raises:
        ArgumentError: If the model takes no images, texts or audio, or gives no answers in words.
    """

    def __init__(self, tuner: FineTuner, *, threshold: Any = None, reject: float | None = None, limits: Limits) -> None:
        self._tuner, self._limits = tuner, limits
        self._given: dict[str, Any] = {"threshold": threshold, "reject": reject}
        self.preprocessing = _preprocessing_of(tuner)
        self.kind = self.preprocessing.kind
        answers = self._classified([self.prepare(self._example())])  # fails here, and not with the first visitor
        self.is_regression = isinstance(answers, Estimates)
        self.is_multilabel = isinstance(answers, MultiLabelClassification)
        self.classes = () if self.is_regression else tuner.classes or answers[0].classes
        self.has_heatmaps = self.kind == IMAGE and self._has_positions()

    @property
    def task(self) -> str:
        """Kind of the task: `"classification"`, `"multilabel"` or `"regression"`."""
        return REGRESSION if self.is_regression else MULTILABEL if self.is_multilabel else CLASSIFICATION

    def read(self, upload: Upload) -> Any:
        """Return an upload, ready for `answer`.

        Raises:
            RequestError: If it is too large, or not of the model's kind.
        """
        content = upload.content
        if isinstance(content, str):
            if len(content) > self._limits.characters:
                raise RequestError(413, "too_large", f"Expected at most {self._limits.characters:,} characters.")
            if not content.strip():
                raise RequestError(400, "nothing_sent", "The text is empty.")
        elif len(content) > self._limits.file_bytes:
            raise RequestError(413, "too_large", f"Expected a file of at most {self._limits.file_bytes:,} bytes.")
        elif not content:
            raise RequestError(400, "nothing_sent", "The file is empty.")
        try:
            return self.prepare(self._decoded(content))
        except TooManyPixelsError as error:
            raise RequestError(413, "too_large", str(error)) from error
        except DataError as error:
            raise RequestError(415, "not_readable", str(error)) from error

    def prepare(self, item: Any) -> Any:
        """Return a raw item as a sample: the crop of an image, uint8 [C, H, W]; other items are only checked."""
        if self.kind == IMAGE:
            return self.preprocessing.prepare(item)
        self.preprocessing.check(item)
        return item

    def answer(self, samples: Sequence[Any]) -> list[Answer]:
        """Return the answer to each sample, as if it came alone: from one forward pass, or one per length of sounds.

        Many models of sound see how a shorter sound is padded to the longest of its batch.
        """
        groups: dict[Any, list[int]] = {}
        for place, sample in enumerate(samples):
            groups.setdefault(self._length(sample), []).append(place)
        found: dict[int, Answer] = {}
        for places in groups.values():
            found.update(zip(places, self._classified([samples[place] for place in places]), strict=True))
        return [found[place] for place in range(len(samples))]

    def look(self, samples: Sequence[Any]) -> list[bytes]:
        """Return a PNG file of each image, with the evidence for its answer laid over it."""
        found = self._tuner.heatmaps(torch.stack(list(samples)), batch_size=len(samples))
        return [found.png(place, side=_OVERLAY) for place in range(len(found))]

    def _has_positions(self) -> bool:
        try:
            self.look([self.prepare(self._example())])
        except ArgumentError:  # its features have no positions
            return False
        return True

    def _classified(self, samples: Sequence[Any]) -> Classification:
        batch = torch.stack(list(samples)) if self.kind == IMAGE else list(samples)
        return self._tuner.classify(batch, top=2**31, batch_size=len(samples), **self._given)

    def _length(self, sample: Any) -> Any:
        return (len(sample.samples), sample.rate) if self.kind == SOUND else None

    def _decoded(self, content: bytes | str) -> Any:
        if isinstance(content, str):
            return content
        file = io.BytesIO(content)
        file.name = "upload"  # the name in messages
        if self.kind == IMAGE:
            return read_image(file, max_pixels=self._limits.pixels)
        return read_waveform(file)

    def _example(self) -> Any:
        if self.kind == IMAGE:
            generator = torch.Generator().manual_seed(0)
            noise = torch.randint(
                256, (64, 64, 3), generator=generator, dtype=torch.uint8
            )  # one color has no gradients
            return Image.fromarray(noise.numpy())
        if self.kind == TEXT:
            return "An example."
        rate = getattr(self.preprocessing, "rate", 16_000)
        return Waveform(np.zeros(rate, np.float32), rate)


def _preprocessing_of(tuner: FineTuner) -> InputPreprocessing:
    """Return the preprocessing of a tuner.

    Raises:
        ArgumentError: If it has none, or the bytes of an image do not pass through it.
    """
    preprocessing = tuner.preprocessing
    if preprocessing is None:
        raise ArgumentError(
            "No preprocessing is known, so how a file becomes an input of the model is not known either. Train on "
            "images, texts or audio, or pass preprocessing=... to FineTuner or load_checkpoint."
        )
    if preprocessing.kind == IMAGE and not isinstance(preprocessing, Preprocessing):
        raise ArgumentError(f"A page serves images prepared by Preprocessing, but got {preprocessing!r}.")
    return preprocessing
