"""`Samples`: the inputs that an exported file is tried on, with the outputs of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset

from finetune.data.batch import first_samples, join_batch, num_samples_of, split_batch
from finetune.data.pipeline import Pipeline
from finetune.data.preprocessing.base import IMAGE, InputPreprocessing, Waveform
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.sound import SoundPreprocessing
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.data.sources.base import Source
from finetune.data.targets import TargetRule
from finetune.nested import map_tensors, tensors_of
from finetune.training import loop
from finetune.training.numerics.precision import Precision

_TEXTS = ("A short text.", "Another text, which is somewhat longer than the first one.")
_SYNTHETIC = 8


@dataclass(frozen=True)
class Bytes(InputPreprocessing):
    """The host's part of a preprocessing of images: resized and cropped, and not yet normalized."""

    whole: Preprocessing
    kind: ClassVar[str] = IMAGE

    def check(self, item: Any) -> None:
        self.whole.check(item)

    def prepare(self, item: Any) -> Any:
        return self.whole.prepare(item)

    def is_unprepared(self, inputs: Any) -> bool:
        return self.whole.is_unprepared(inputs)

    def to_dict(self) -> dict[str, Any]:
        return self.whole.to_dict()


@dataclass(frozen=True, eq=False)
class Samples:
    """Batches of inputs as a file takes them, each with the outputs of the model.

    Images are bytes, which the file normalizes. Everything is on the CPU.

    Attributes:
        pipeline: Settings of the batches.
        source: The data, which has been checked.
        predict: Function from a batch that is ready for the model to its outputs.
        module: The model.
        precision: Number format of the forward pass.
        batch_size: Samples per batch.
        given: Whether the data is the user's own.
        rule: Labels that the task accepts, or None for data without labels.
        unlabeled: Reason why the user's data has no labels, or an empty text.
    """

    pipeline: Pipeline
    source: Source
    predict: Callable[[Any], Any]
    module: nn.Module
    precision: Precision
    batch_size: int = 32
    given: bool = True
    rule: TargetRule | None = None
    unlabeled: str = ""

    @property
    def as_bytes(self) -> bool:
        """Whether an image preprocessing normalizes what the file takes."""
        return type(self.pipeline.preprocessing) is Preprocessing

    def __iter__(self) -> Iterator[tuple[Any, Tensor, Tensor | None]]:
        """Yield the inputs of each batch, the outputs float32 [N, ...], and the targets, or None without labels."""
        batches = self._host.batches(self.source, self.batch_size, rule=self.rule)
        for batch, outputs in loop.outputs(self._step, self.module, batches, self.precision, "Verifying"):
            inputs, targets = split_batch(batch)
            labels = torch.as_tensor(targets).cpu() if self.rule is not None and targets is not None else None
            yield _on_cpu(inputs), torch.atleast_1d(outputs).float().cpu(), labels

    def example(self) -> Any:
        """Return the inputs of two samples.

        Raises:
            DataError: If they cannot be read.
        """
        some = replace(self, source=self.source.subset([0, -1 % len(self.source)])) if self.source.indexed else self
        inputs = next(iter(some))[0]
        two = first_samples(inputs, num_samples_of(inputs), 2)
        single = num_samples_of(two) == 1
        return map_tensors(lambda tensor: torch.cat([tensor, tensor]), two, None) if single else two

    @property
    def _host(self) -> Pipeline:
        preprocessing = self.pipeline.preprocessing
        return replace(self.pipeline, preprocessing=Bytes(preprocessing)) if self.as_bytes else self.pipeline  # type: ignore[arg-type]

    def _step(self, batch: Any) -> Any:
        inputs, targets = split_batch(batch)
        if self.as_bytes and self.pipeline.preprocessing is not None:
            inputs = self.pipeline.preprocessing.on_device(inputs)
        return self.predict(join_batch(batch, inputs, targets))


class Items(Dataset[Any]):
    """The samples of batched inputs, with a label that nobody reads."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return min(len(tensor) for tensor in tensors_of(self.inputs))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return tree_map(lambda value: value[index] if isinstance(value, Tensor) else value, self.inputs), 0


def synthetic(preprocessing: InputPreprocessing | None, example: Callable[[], Any]) -> Any:
    """Return synthetic data for a model: raw items that the preprocessing takes, or inputs of the form of an example.

    Args:
        preprocessing: The preprocessing, or None.
        example: Function that returns inputs of some samples.
    """
    generator = torch.Generator().manual_seed(0)
    if isinstance(preprocessing, Preprocessing):
        shape = (_SYNTHETIC, preprocessing.channels, *preprocessing.crop_size)
        return Items(torch.randint(256, shape, generator=generator, dtype=torch.uint8))
    if isinstance(preprocessing, TextPreprocessing):
        return [_TEXTS[0]] * 2 + [_TEXTS[1]] * 2
    if isinstance(preprocessing, SoundPreprocessing):
        return [sound for sound in sounds(preprocessing.rate) for _ in range(2)]
    return Items(_on_cpu(example()))


def sounds(rate: int) -> tuple[Waveform, Waveform]:
    """Return a tone of a second, and one of one and a half."""
    times = np.arange(rate * 3 // 2, dtype=np.float32) / rate
    tone = np.sin(2 * np.pi * 440 * times).astype(np.float32)
    return Waveform(tone[:rate], rate), Waveform(tone, rate)


def varying(preprocessing: InputPreprocessing | None, inputs: Any) -> dict[str, list[int]]:
    """Return the dimensions of each named input, besides the samples, whose size differs from batch to batch."""
    if isinstance(preprocessing, TextPreprocessing):
        short, long = (preprocessing.collate([text, text]) for text in _TEXTS)
    elif isinstance(preprocessing, SoundPreprocessing):
        short, long = (preprocessing.collate([preprocessing.prepare(each)] * 2) for each in sounds(preprocessing.rate))
    else:
        tokens = isinstance(inputs, dict) and "input_ids" in inputs
        return {name: [1] for name, value in inputs.items() if value.dim() == 2} if tokens else {}
    return {
        name: [dim for dim in range(1, value.dim()) if value.shape[dim] != long[name].shape[dim]]
        for name, value in short.items()
    }


def _on_cpu(inputs: Any) -> Any:
    halves = (torch.float16, torch.bfloat16)
    return map_tensors(lambda t: t.cpu().float() if t.dtype in halves else t.cpu(), inputs, torch.device("cpu"))
