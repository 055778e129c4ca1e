"""Find the parts of images that speak for the answers of a model, in one pass over data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.batch import split_batch
from finetune.data.loading.batches import Batches
from finetune.data.loading.parts import rows
from finetune.data.targets import BINARY, REGRESSION
from finetune.errors import ArgumentError, is_number, nearest, some_of, whole_number
from finetune.interpret.heatmaps import Heatmaps
from finetune.interpret.pictures import as_bytes
from finetune.interpret.predictions import Predictions
from finetune.model.compiling import run_eagerly
from finetune.model.inspection.feature_map import FeatureMap, find_feature_map
from finetune.model.inspection.grad_cam import evidence, heat
from finetune.nested import as_plain, described, map_tensors, tensors_of
from finetune.training import loop
from finetune.training.numerics.precision import Precision

Label = str | int | None  # name or number of a class, label or output; None for the answer of the model


def map_evidence(
    model: nn.Module,
    predict: Callable[[Any], Any],
    batches: Batches,
    judged: Callable[[Tensor], Predictions],
    precision: Precision,
    *,
    of: Label | Sequence[Label] = None,
    layer: str | None = None,
) -> Heatmaps:
    """Return the heatmaps of the images in `batches`. See `FineTuner.heatmaps`.

    Args:
        model: The model.
        predict: Function from a batch to outputs [N, ...].
        batches: Batches of images.
        judged: Function from outputs [N, ...] to predictions, which name the labels and know the answers.
        precision: Number format of the forward pass.
        of: Label to find the evidence for, or one per sample.
        layer: Full name of the layer, or None.

    Raises:
        ArgumentError: If the data are no images, the model has no layer with positions, or an argument is invalid.
    """
    layers = dict(model.named_modules())
    if layer is not None and layer not in layers:
        raise ArgumentError(
            f"{type(model).__name__} has no layer {layer!r}.{nearest(layer, layers)} Expected a full name, or None for "
            f"the deepest layer with positions."
        )
    found = _Evidence(model, predict, judged, _wanted(of, batches.num_samples), layer)
    with torch.inference_mode(False), run_eagerly(model):
        for _, part in loop.outputs(found.of_batch, model, batches, precision, "Explaining"):
            found.parts.append(part)
    assert found.feature_map is not None  # there is at least one sample
    images = torch.cat([as_bytes(part.images, batches.preprocessing) for part in found.parts])
    answers = tuple(answer for part in found.parts for answer in part.answers)
    names = tuple(map(batches.source.name, range(len(answers))))
    return Heatmaps(torch.cat([part.maps for part in found.parts]), images, answers, names, found.feature_map.layer)


@dataclass(frozen=True)
class _Part:
    """The heatmaps of a batch.

    Attributes:
        maps: float32 [N, H, W].
        images: Inputs of the model [N, C, H, W].
        answers: Name of the label of each map.
    """

    maps: Tensor
    images: Tensor
    answers: list[str]


@dataclass
class _Evidence:
    """The evidence of a model, mapped batch by batch, in a layer that the first batch shows."""

    model: nn.Module
    predict: Callable[[Any], Any]
    judged: Callable[[Tensor], Predictions]
    wanted: list[Label]
    layer: str | None
    feature_map: FeatureMap | None = None
    parts: list[_Part] = field(default_factory=list)

    def of_batch(self, batch: Any) -> _Part:
        images, answers = _images_of(batch), list[str]()
        if self.feature_map is None:
            few = min(2, len(images))
            self.feature_map = self._find(rows(batch, len(images), slice(0, few)), few)
        maps = evidence(self.model, lambda: self._scores(batch, answers), self.feature_map)
        height, width = images.shape[2:]
        return _Part(heat(maps, (height, width)).cpu(), images.detach().cpu(), answers)

    def _find(self, batch: Any, samples: int) -> FeatureMap:
        images = _images_of(batch)
        with torch.enable_grad():  # gradients flow from the images, because all parameters may be frozen
            tracked = images + torch.zeros_like(images, requires_grad=True)
        batch = map_tensors(lambda tensor: tracked if tensor is images else tensor, batch, None)
        height, width = images.shape[2:]
        found = find_feature_map(self.model, lambda: self._scores(batch, []), (height, width), samples, self.layer)
        if found is None and self.layer is not None:
            raise ArgumentError(
                f"The layer {self.layer!r} has no heatmap: its output has no positions of the image, or the answer "
                f"does not depend on them. Choose an earlier layer, or omit layer."
            )
        if found is None:
            raise ArgumentError(
                f"{type(self.model).__name__} has no layer with positions of the image on which its answer depends, "
                f"so it has no heatmaps. Expected convolutions or patches, and no torch.no_grad() after them."
            )
        return found

    def _scores(self, batch: Any, answers: list[str]) -> Tensor:
        """Return the score of the chosen label of each sample [N], and add the names of these labels to `answers`."""
        outputs = as_plain(self.predict(batch))
        if not isinstance(outputs, Tensor):
            raise ArgumentError(
                f"Expected predict_step to return a tensor [N, ...], but got a {type(outputs).__name__}."
            )
        predictions = self.judged(outputs.detach().float().cpu())
        chosen = self._chosen(predictions)
        answers += [predictions.labels[label] for label in chosen]
        labels = torch.tensor(chosen, device=outputs.device)
        if predictions.task.kind == BINARY:  # the only output is that of the second class
            return outputs.reshape(-1) * (2 * labels - 1)
        return outputs.reshape(len(chosen), -1).gather(1, labels[:, None])[:, 0]

    def _chosen(self, predictions: Predictions) -> list[int]:
        start = sum(len(part.answers) for part in self.parts)
        wanted = self.wanted[start : start + len(predictions)] if len(self.wanted) > 1 else self.wanted
        if len(wanted) == 1:
            wanted = wanted * len(predictions)
        if len(wanted) < len(predictions):
            raise ArgumentError(f"Expected of=... to name one label per sample, but got {len(self.wanted)} for more.")
        answers = _answers(predictions) if None in wanted else []
        return [
            answers[place] if label is None else _number(label, predictions.labels)
            for place, label in enumerate(wanted)
        ]


def _images_of(batch: Any) -> Tensor:
    """Return the images in a batch, [N, C, H, W]."""
    inputs = split_batch(batch)[0]
    images = [tensor for tensor in tensors_of(inputs) if tensor.dim() == 4 and tensor.is_floating_point()]
    if not images:
        raise ArgumentError(
            f"Heatmaps are for images, but the inputs of the model are {described(inputs)}. Expected "
            f"floats [N, C, H, W]."
        )
    return images[0]


def _wanted(of: Label | Sequence[Label], samples: int | None) -> list[Label]:
    """Return the label to find the evidence for, or several, one per sample."""
    plain: Any = getattr(of, "tolist", lambda: of)()
    if not isinstance(plain, Sequence) or isinstance(plain, str):
        return [plain]
    labels = list(plain)
    if samples is not None and len(labels) != samples:
        raise ArgumentError(
            f"Expected of=... to name one label, or one per sample, but got {len(labels)} for {samples:,} samples."
        )
    return labels


def _number(label: Label, labels: Sequence[str]) -> int:
    """Return the number of a label that is given by its name or number."""
    if label in labels:
        return labels.index(str(label))
    if is_number(label) and whole_number("of", label, 0) < len(labels):
        return whole_number("of", label, 0)
    raise ArgumentError(
        f"There is no class {label!r} to find the evidence for.{nearest(str(label), labels)} Expected one of "
        f"{some_of(labels, 10)}, or its number."
    )


def _answers(predictions: Predictions) -> list[int]:
    """Return the number of the likeliest label of each sample."""
    kind, scores = predictions.task.kind, predictions.scores
    if kind == BINARY:
        return (scores[:, 1] >= predictions.calibration.thresholds_for(1)[0]).long().tolist()
    if kind == REGRESSION and scores.shape[1] > 1:
        raise ArgumentError(
            f"The model has {scores.shape[1]} outputs per sample. Name the one to find the evidence for: "
            f"of={predictions.labels[0]!r}."
        )
    return scores.argmax(1).tolist()
