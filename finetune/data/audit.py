"""What is wrong with the data, said before the first step and by name of the sample."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.loading.samples import unequal
from finetune.data.preprocessing.base import PICTURE, InputPreprocessing
from finetune.data.randomness import seeded
from finetune.data.sources.base import Arrays, Loader, MapDataset, Source, Stream, target_of
from finetune.data.sources.files import Files, RawItems
from finetune.errors import DataError
from finetune.nested import tensors_of

logger = logging.getLogger("finetune")

_MOST_INSPECTED = 2_000
_FEW_INSPECTED = 32  # where the targets are known, and only shapes and values are left to see
_CHUNK_BYTES = 64 * 2**20


def audit(
    source: Source,
    *,
    num_classes: int | None = None,
    role: str = "training",
    skip_corrupt: bool = False,
    preprocessing: InputPreprocessing | None = None,
) -> Source:
    """Look for what would stop or spoil a run, and say it before the first step.

    Picture and sound files are all decoded once, texts all looked at. Of a data set whose targets
    aren't at hand, up to 2,000 items are loaded, spread evenly. Streams and loaders can't be looked
    at: see `check_batch_targets`.

    Args:
        source: from `open_source`.
        num_classes: outputs of the model; None where targets aren't class indices.
        role: what messages call the data; of "training" data more than one class is asked.
        skip_corrupt: leave out files that can't be decoded, and warn, in place of raising.
        preprocessing: that of the raw items, which says of each whether it can be used.

    Returns:
        The source, without the files that were left out.

    Raises:
        DataError: empty data, a single class, labels out of range, a number of classes that isn't the
            model's, files that can't be decoded, empty texts, values that aren't finite, unequal shapes.
    """
    if isinstance(source, (Loader, Stream)):
        return source
    if len(source) == 0:
        raise DataError(f"The {role} data is empty. Expected at least one sample.")
    _check_class_count(source, num_classes, role)
    checked = preprocessing if preprocessing is not None and preprocessing.kind == source.kind else None
    if isinstance(source, Files):
        source = _decodable(source, role, skip_corrupt, checked)
    if isinstance(source, RawItems) and checked is not None:
        _check_items(source, checked)
    if isinstance(source, Arrays):
        _check_finite_inputs(source)
    if source.targets is not None:
        _check_targets(source, source.targets, range(len(source)), num_classes, role)
    if isinstance(source, MapDataset):
        _inspect(source, num_classes, role, checked)
    return source


def check_batch_targets(targets: Any, num_classes: int, name: str) -> None:
    """Raise DataError if the class indices [N] of a batch on the host aren't in 0 to `num_classes` - 1.

    A label out of range on CUDA is a device-side assert, which names nothing and ends the process.
    Targets that aren't integers [N], and those on a device already, are left alone.
    """
    if not isinstance(targets, Tensor) or targets.device.type != "cpu" or not _are_indices(targets):
        return
    _check_range(targets, num_classes, lambda i: f"sample {i} of {name}")


def _check_class_count(source: Source, num_classes: int | None, role: str) -> None:
    if num_classes is None or source.classes is None or len(source.classes) == num_classes:
        return
    k = len(source.classes)
    shown = ", ".join(source.classes[:10]) + (", ..." if k > 10 else "")
    raise DataError(
        f"The {role} data has {k} classes ({shown}) and the model {num_classes} outputs. "
        f"Call `replace_head({k})` to give it one output a class."
    )


def _decodable(source: Files, role: str, skip_corrupt: bool, preprocessing: InputPreprocessing | None) -> Files:
    """Decode every file once, in threads: Pillow's decoders run beside each other."""

    def error_of(path: Path) -> str | None:
        try:
            sound = source.verify(path)
            if sound is not None and preprocessing is not None:
                preprocessing.check(sound)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        errors = list(pool.map(error_of, source.paths))
    noun = source.noun
    logger.debug("Decoded each of the %d %ss of the %s data once.", len(errors), noun, role)
    bad = [i for i, error in enumerate(errors) if error is not None]
    if not bad:
        return source
    shown = ", ".join(f"'{source.paths[i]}'" for i in bad[:5]) + (", ..." if len(bad) > 5 else "")
    problem = "decoded" if source.kind == PICTURE else "used"
    what = f"{len(bad)} of the {len(errors)} {noun}s of the {role} data cannot be {problem}: {shown}."
    if not skip_corrupt:
        way_out = " To leave them out, give fit skip_corrupt=True." if role in ("training", "validation") else ""
        raise DataError(f"{what} The first: {errors[bad[0]]}{way_out}")
    logger.warning("%s They are left out.", what)
    if len(bad) == len(errors):
        raise DataError(f"{what} None is left.")
    return source.subset([i for i, error in enumerate(errors) if error is None])


def _check_items(source: RawItems, preprocessing: InputPreprocessing) -> None:
    for index, item in enumerate(source.raw()):
        _check_item(preprocessing, item, source.name(index))


def _check_item(preprocessing: InputPreprocessing, item: Any, name: str) -> None:
    try:
        preprocessing.check(item)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _check_targets(source: Source, targets: Tensor, indices: Any, num_classes: int | None, role: str) -> None:
    """Check targets [n], those of the samples at `indices`."""
    if targets.is_floating_point():
        finite = targets.isfinite().reshape(len(targets), -1).all(1)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            raise DataError(
                f"{int((~finite).sum())} of the {len(targets)} targets are not finite; the first is that of "
                f"{source.name(indices[first])}: {targets[first].tolist()}. Correct or remove these samples."
            )
    if not _are_indices(targets):
        return
    if num_classes is not None:
        _check_range(targets, num_classes, lambda i: source.name(indices[i]))
    if role == "training" and len(targets.unique()) == 1:
        label = int(targets[0])
        shown = repr(source.classes[label]) if source.classes and 0 <= label < len(source.classes) else label
        raise DataError(
            f"All {len(targets)} samples of the training data are of one class, {shown}. "
            "Expected at least two classes: there is nothing to tell apart."
        )


def _are_indices(targets: Tensor) -> bool:
    return targets.dim() == 1 and not targets.is_floating_point() and targets.dtype != torch.bool


def _check_range(targets: Tensor, num_classes: int, name: Any) -> None:
    outside = ((targets < 0) | (targets >= num_classes)).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        other = "" if targets.min() < 0 else f", or call `replace_head({int(targets.max()) + 1})`"
        raise DataError(
            f"{len(outside)} of {len(targets)} labels are out of range; the first is that of {name(first)}: "
            f"{int(targets[first])}. Expected 0 to {num_classes - 1}, for the model has {num_classes} "
            f"outputs. Correct the labels{other}."
        )


def _check_finite_inputs(source: Arrays) -> None:
    """Look at every value, a piece at a time: the inputs may be larger than memory."""
    inputs = source.inputs
    floats = inputs.is_floating_point() if isinstance(inputs, Tensor) else inputs.dtype.kind == "f"
    if not floats:
        return
    row_bytes = max(1, inputs[:1].nbytes)
    for rows in torch.arange(len(source)).split(max(1, _CHUNK_BYTES // row_bytes)):
        finite = source.rows(source.indices[rows]).isfinite().reshape(len(rows), -1).all(1)
        if not finite.all():
            first = int(rows[int((~finite).nonzero()[0])])
            raise _not_finite(source.name(first))


def _not_finite(name: str) -> DataError:
    return DataError(f"The input of {name} has values that are NaN or infinite. Correct or remove the sample.")


def _inspect(source: MapDataset, num_classes: int | None, role: str, preprocessing: InputPreprocessing | None) -> None:
    """Load items and look at their shapes, values and, where they aren't known, targets."""
    most = _MOST_INSPECTED if source.targets is None else _FEW_INSPECTED
    indices = np.linspace(0, len(source) - 1, min(len(source), most)).round().astype(int).tolist()
    first: Any = None
    targets: list[Any] = []
    for index in indices:
        with seeded("audit", index):
            item = source[index]
        first = item if first is None else first
        if source.collate_fn is None and (error := unequal([first, item], [indices[0], index], source.name)):
            raise error
        inputs = item[0] if isinstance(item, (tuple, list)) and item else item
        if preprocessing is not None:
            _check_item(preprocessing, inputs, source.name(index))
        elif isinstance(inputs, Tensor) and inputs.is_floating_point() and not inputs.isfinite().all():
            raise _not_finite(source.name(index))
        targets.append(target_of(item))
    collected = _stacked(targets) if source.targets is None else None
    if collected is not None:
        _check_targets(source, collected, indices, num_classes, role)


def _stacked(targets: list[Any]) -> Tensor | None:
    """Return the targets as one tensor, if each is a number or all are tensors of one shape."""
    try:
        return torch.stack([torch.as_tensor(target).cpu() for target in targets])
    except (TypeError, ValueError, RuntimeError):
        return None


def not_accepted(model: str, inputs: Any, error: Exception) -> DataError:
    """Say that a model raised `error` on inputs of the user's data, and what of them it may be."""
    tensors = list(tensors_of(inputs))
    shown = ", ".join(f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for tensor in tensors)
    first = tensors[0] if tensors else torch.empty(0)
    if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], str):
        shown = "texts"
    hint = "Give inputs of the shape and dtype that the model was made for."
    if shown == "texts":
        hint = "Give it its tokenizer: FineTuner(model, preprocessing=tokenizer)."
    elif first.dim() == 4 and first.shape[-1] in (1, 3) and first.shape[1] not in (1, 3):
        hint = "They look channels-last; [N, C, H, W] is expected: X.transpose(0, 3, 1, 2)."
    elif first.dtype == torch.uint8:
        hint = "Bytes are scaled only with a preprocessing: give FineTuner one, or X as floats."
    elif first.dtype == torch.float64:
        hint = "Most models are float32: X.float()."
    said = str(error).strip().splitlines() or [type(error).__name__]
    return DataError(f"{model} does not accept the data, two samples of which are {shown}: {said[0]}. {hint}")
