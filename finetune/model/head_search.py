"""Find the head of a model.

torchvision's classifiers are found by their family's table, every other model by what its forward
pass does: the last parametrised layers whose output reaches the model's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from finetune.errors import HeadError, nearest
from finetune.model.calling import call
from finetune.model.examples import example_inputs
from finetune.model.freezing import eval_mode, modes_restored, train_mode
from finetune.model.recorder import Operation, record

RESIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# The main head first, then the auxiliary ones, which exist only if the model was built with them.
_TORCHVISION = {
    "ResNet": ("fc",),
    "RegNet": ("fc",),
    "ShuffleNetV2": ("fc",),
    "GoogLeNet": ("fc", "aux1.fc2", "aux2.fc2"),
    "Inception3": ("fc", "AuxLogits.fc"),
    "DenseNet": ("classifier",),
    "EfficientNet": ("classifier.1",),
    "MobileNetV2": ("classifier.1",),
    "MNASNet": ("classifier.1",),
    "SqueezeNet": ("classifier.1",),
    "ConvNeXt": ("classifier.2",),
    "MobileNetV3": ("classifier.3",),
    "MaxVit": ("classifier.5",),
    "AlexNet": ("classifier.6",),
    "VGG": ("classifier.6",),
    "SwinTransformer": ("head",),
    "VisionTransformer": ("heads.head",),
    "VideoResNet": ("fc",),
    "MViT": ("head.1",),
    "SwinTransformer3d": ("head",),
    "S3D": ("classifier.1",),
}

# What the papers weigh their auxiliary losses with: arXiv 1409.4842 and 1512.00567.
_AUXILIARY_WEIGHTS = {"GoogLeNet": 0.3, "Inception3": 0.4}


def find_head(model: nn.Module, example: Any = None) -> tuple[str, ...]:
    """Return the full names of the model's heads, the main one first.

    `example` is an input that the model accepts; without one, inputs are guessed from its first layer.

    Raises:
        HeadError: what the model does leaves it open which layer is the head.
    """
    return named_by_family(model) or _recorded(model, example)


def named_by_family(model: nn.Module) -> tuple[str, ...]:
    """Return the heads by torchvision's table; empty for a model of another family."""
    modules = dict(model.named_modules())
    for family in _families(model):
        names = _TORCHVISION.get(family, ())
        if names and names[0] in modules:
            return tuple(name for name in names if name in modules)
    return ()


def auxiliary_weight(model: nn.Module) -> float:
    """Return the weight of the model's auxiliary losses beside its main one."""
    return next((_AUXILIARY_WEIGHTS[name] for name in _families(model) if name in _AUXILIARY_WEIGHTS), 0.3)


def check_name(model: nn.Module, name: str) -> None:
    """Check that `name` is a layer of the model.

    Raises:
        HeadError: it is not.
    """
    modules = dict(model.named_modules())
    if not name or name not in modules:
        raise HeadError(
            f"{type(model).__name__} has no layer {name!r}.{nearest(name, modules)} {_candidates(model)}"
        )


def accepted_example(model: nn.Module, given: Any = None) -> Any:
    """Return an input that the model accepts: `given`, or the first of the guessed ones; None if there is none.

    One that is accepted in train mode too is preferred: auxiliary heads, which run in that mode only,
    can ask for larger pictures than the rest.
    """
    fallback = None
    with undisturbed(model):
        for example in example_inputs(model) if given is None else (given,):
            if not _runs(model, example, eval_mode):
                continue
            if _runs(model, example, train_mode):
                return example
            fallback = example if fallback is None else fallback
    return fallback


def _runs(model: nn.Module, inputs: Any, mode: Callable[[nn.Module], None]) -> bool:
    mode(model)
    try:
        with torch.no_grad():
            call(model, inputs)
    except Exception:  # whatever a model raises on a shape it was not made for
        return False
    return True


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Give modes, buffers and the random state back at the end, whatever the model did to them."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with modes_restored(model), torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _families(model: nn.Module) -> list[str]:
    classes = type(model).__mro__
    return [cls.__name__ for cls in classes if cls.__module__.startswith("torchvision.models")]


def _recorded(model: nn.Module, given: Any) -> tuple[str, ...]:
    example = accepted_example(model, given)
    if example is None:
        raise HeadError(
            f"Which layer of {type(model).__name__} is its head is not clear: the model accepted none of the "
            f"inputs it was tried on. {_candidates(model)}"
        )
    with undisturbed(model):
        eval_mode(model)
        heads = _last_layers(record(model, example).last)
        if _runs(model, example, train_mode):  # auxiliary outputs often come in train mode only
            heads += _last_layers(record(model, example).last)
    names = tuple(dict.fromkeys(heads))
    _check_clear(model, names)
    return names


def _last_layers(last: Iterable[Operation]) -> list[str]:
    """Walk back from the output to the first operations that read a parameter; name their layers."""
    found: list[str] = []
    todo = list(last)
    seen = set(todo)
    while todo:
        operation = todo.pop(0)
        found += [name.rpartition(".")[0] for name in operation.parameters]
        if not operation.parameters:
            todo += [before for before in operation.inputs if before not in seen]
            seen.update(operation.inputs)
    return found


def _check_clear(model: nn.Module, names: tuple[str, ...]) -> None:
    layers = {name: model.get_submodule(name) for name in names}
    widths = {
        layer.weight.shape[0] if isinstance(layer, RESIZABLE) else None for layer in layers.values()
    }
    if len(widths) == 1 and None not in widths:
        return
    described = ", ".join(
        f"{name or 'the model itself'} ({type(layer).__name__})" for name, layer in layers.items()
    )
    raise HeadError(
        f"Which layer of {type(model).__name__} is its head is not clear: its output comes from "
        f"{described or 'no layer with parameters'}. Expected one linear or convolutional layer, or several "
        f"with equally many outputs. {_candidates(model)}"
    )


def _candidates(model: nn.Module) -> str:
    layers = [
        f"{name} ({module.weight.shape[1]} -> {module.weight.shape[0]})"
        for name, module in model.named_modules()
        if name and isinstance(module, RESIZABLE)
    ]
    last = ", ".join(layers[-5:]) or "none"
    return f"Name the layer with replace_head(n, layer=...); the last ones are: {last}."
