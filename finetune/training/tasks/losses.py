"""The default losses, and the user's own, called with targets of a shape and type that they take."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import DataError
from finetune.model.inspection.forward_graph import shapes_within
from finetune.threads.locks import GENERATORS

Loss = Callable[[Tensor, Tensor], Tensor]
Form = Callable[[Tensor, Tensor], Tensor]

_TRIED = 13  # samples in a trial of a loss, which no other dimension of it has


def option_of(loss: Loss, name: str) -> Any:
    """Return an option of a loss, such as `label_smoothing`: an attribute, or the default of an argument; or None.

    Example:
        >>> from functools import partial
        >>> option_of(nn.CrossEntropyLoss(), "ignore_index"), option_of(F.cross_entropy, "label_smoothing")
        (-100, 0.0)
        >>> option_of(partial(F.cross_entropy, label_smoothing=0.1), "label_smoothing")
        0.1
    """
    own = inspect.unwrap(loss)
    if isinstance(own, nn.Module) or hasattr(own, name):
        return getattr(own, name, None)
    try:
        default = inspect.signature(own).parameters[name].default
    except (KeyError, TypeError, ValueError):
        return None
    return None if default is inspect.Parameter.empty else default


def takes_probabilities(loss: Loss) -> bool:
    """Return whether a loss takes probabilities in [0, 1], as `nn.BCELoss` does, and fails on other outputs.

    Example:
        >>> takes_probabilities(nn.BCELoss()), takes_probabilities(nn.BCEWithLogitsLoss())
        (True, False)
    """
    own = inspect.unwrap(loss)
    if isinstance(own, nn.BCELoss):
        return True  # its weights may fit no trial

    def works(value: float, targets: Tensor) -> bool:
        found = tried(loss, torch.full((2, 1), value), targets)
        return isinstance(found, Tensor) and bool(found.isfinite().all())

    columns = torch.tensor([[0.0], [1.0]])
    return any(
        works(0.5, targets) and not works(2.0, targets) and not works(-1.0, targets)
        for targets in (columns, columns[:, 0])
    )


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy of logits [N, C] with class indices [N] or probabilities [N, C]."""
    return F.cross_entropy(outputs.float(), _for_classes(as_tensor(targets), outputs))


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the binary cross-entropy of logits with zeros and ones; [N, 1] matches [N]."""
    return F.binary_cross_entropy_with_logits(outputs.float(), _shaped(as_tensor(targets), outputs).float())


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean squared error; [N, 1] matches [N]."""
    return F.mse_loss(outputs.float(), _shaped(as_tensor(targets), outputs).float())


DEFAULT_LOSSES: dict[str, Loss] = {
    CLASSIFICATION: cross_entropy,
    BINARY: binary_cross_entropy,
    MULTILABEL: binary_cross_entropy,
    REGRESSION: mean_squared_error,
}


def as_tensor(targets: Any) -> Tensor:
    """Return the targets of a batch, which only a custom loss or step reads in another form than a tensor.

    Raises:
        DataError: If they are no tensor.
    """
    if isinstance(targets, Tensor):
        return targets
    raise DataError(
        f"The targets of a batch are a {type(targets).__name__}, {targets!r:.80}, which this loss cannot read. "
        f"Expected one number, or one row of numbers, per sample. Give each sample such a target, or pass a loss that "
        f"takes others."
    )


def class_indices(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return int64 class indices [N]: the likeliest class for probabilities [N, C], flattened for a column [N, 1]."""
    if targets.shape == outputs.shape and targets.dim() > 1:
        return targets.argmax(1)
    column = targets.dim() == outputs.dim() == 2 and targets.shape[1] == 1
    return (targets[:, 0] if column else targets).long()


def as_labels(targets: Tensor) -> Tensor:
    """Return class indices as int64 [N]; probabilities [N, C] are returned unchanged."""
    labels = targets.flatten() if targets.dim() == 2 and targets.shape[1] == 1 else targets
    return targets if targets.is_floating_point() else labels.long()


def _for_classes(targets: Tensor, outputs: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the targets of a cross-entropy: probabilities [N, C] as floats, or class indices as int64."""
    rows = targets.shape == outputs.shape and targets.dim() > 1
    return targets.to(dtype) if rows else class_indices(targets, outputs)


def typed(loss: Loss, kind: str | None) -> Loss:
    """Wrap a loss of torch so that it gets targets of the shape, type and device that it takes."""

    def typed_loss(outputs: Any, targets: Any) -> Tensor:
        targets = as_tensor(targets)
        if not isinstance(outputs, Tensor):
            return loss(outputs, targets)
        wide = torch.promote_types(outputs.dtype, torch.float32)
        if isinstance(loss, nn.Module):
            for weight in loss.buffers():
                wide = torch.promote_types(wide, weight.dtype)
            loss.to(outputs.device, wide)
        fitted = _for_classes(targets, outputs, wide) if kind == CLASSIFICATION else _shaped(targets, outputs).to(wide)
        return loss(outputs.to(wide), fitted)

    typed_loss.__wrapped__ = loss  # type: ignore[attr-defined]  # for inspect.unwrap
    return typed_loss


def aligned(loss: Loss) -> Loss:
    """Wrap a custom loss so that it gets targets in the first form that it takes: as they are, as floats, reshaped.

    Other forms are tried only for targets [N] beside outputs [N, 1], which may broadcast to [N, N], or the reverse, and
    for integers of the shape of the outputs.
    """
    chosen: dict[tuple[int, int, torch.dtype], Form] = {}

    def aligned_loss(outputs: Any, targets: Any) -> Tensor:
        forms = _forms(outputs, targets)
        if len(forms) > 1:
            key = outputs.dim(), targets.dim(), targets.dtype
            if key not in chosen:
                chosen[key] = _first_taken(loss, outputs, targets, forms)
            targets = chosen[key](targets, outputs)
        return loss(outputs, targets)

    aligned_loss.__wrapped__ = loss  # type: ignore[attr-defined]  # for inspect.unwrap
    return aligned_loss


def _forms(outputs: Any, targets: Any) -> list[Form]:
    """Return the forms in which a custom loss may expect the targets, those as they are first."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not targets.dim():
        return [_unchanged]
    whole = not targets.is_floating_point() and not targets.is_complex()
    if outputs.shape == targets.shape:
        return [_unchanged, _as_floats] if whole else [_unchanged]
    column = {tuple(outputs.shape), tuple(targets.shape)} == {(len(targets),), (len(targets), 1)}
    return [_unchanged, *([_as_floats] if whole else []), _as_outputs] if column else [_unchanged]


def _unchanged(targets: Tensor, outputs: Tensor) -> Tensor:
    return targets


def _as_floats(targets: Tensor, outputs: Tensor) -> Tensor:
    return targets.float()


def _as_outputs(targets: Tensor, outputs: Tensor) -> Tensor:
    shaped = targets.reshape(outputs.shape)
    return shaped if shaped.is_floating_point() or shaped.is_complex() else shaped.float()


def _first_taken(loss: Loss, outputs: Tensor, targets: Tensor, forms: Sequence[Form]) -> Form:
    """Return the first form of targets that a loss takes without pairing each sample with every other one."""
    rows = torch.arange(_TRIED, device=targets.device) % len(targets)
    outputs, targets = outputs.detach()[rows], targets[rows]
    for form in forms:
        value, shapes = shapes_within(partial(tried, loss, outputs, form(targets, outputs)))
        if not isinstance(value, Exception) and not any(shape.count(_TRIED) > 1 for shape in shapes):
            return form
    return forms[0]


def tried(loss: Loss, outputs: Tensor, targets: Tensor) -> Any:
    """Return the value of a loss, or the exception that it raises. The trial leaves no trace in the loss.

    Example:
        >>> type(tried(F.cross_entropy, torch.zeros(2, 3), torch.tensor([0, 5]))).__name__
        'IndexError'
    """
    own = inspect.unwrap(loss)
    if isinstance(own, nn.Module) and own.state_dict():
        with suppress(Exception):
            loss = deepcopy(loss if loss is own else own)
    with GENERATORS.held(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            differentiable = torch.zeros((), device=outputs.device, requires_grad=True)
            return loss(outputs.detach() + differentiable if outputs.is_floating_point() else outputs, targets)
        except Exception as error:
            return error


def _shaped(targets: Tensor, outputs: Tensor) -> Tensor:
    if targets.numel() == outputs.numel():
        return targets.reshape(outputs.shape)
    elements = min(targets.dim(), outputs.dim()) > 1 and outputs[:, 0].shape == targets.shape
    classes = " or, for one class per element, loss='cross_entropy'" if elements else ""
    shapes = f"outputs of shape {list(outputs.shape)}, but the targets have shape {list(targets.shape)}"
    raise DataError(
        f"The model gives {shapes}. Expected the same shape{classes}. Set the number of outputs with "
        f"replace_head({targets.shape[1] if targets.dim() == 2 else 1})."
    )
