"""Find the head of a model.

A model of a known family has known heads. In any other model, the head is found in a recorded forward
pass: the last layers with parameters whose output reaches the output of the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from finetune.errors import HeadError, nearest
from finetune.model.families import family_of
from finetune.model.freezing import eval_mode, train_mode
from finetune.model.inspection.exported import program_of
from finetune.model.inspection.forward_graph import Operation, before, record
from finetune.model.inspection.probing import accepted_example, attempt, undisturbed
from finetune.model.surgery.adapters import active_name, has_adapters, named_base

_HEAD_NAMES = frozenset({"head", "heads", "fc", "classifier", "classification", "logits", "out", "output", "predict"})

RESIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_head(model: nn.Module, example: Any = None) -> tuple[str, ...]:
    """Return the full names of the model's heads, the main one first.

    Args:
        model: The model to search.
        example: An input that the model accepts. Without one, inputs are guessed from its first layer.

    Raises:
        HeadError: If the model has no head, or its head is ambiguous.

    Example:
        >>> find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        ('2',)
    """
    program = program_of(model)
    if program is not None:
        raise HeadError(
            f"{type(model).__name__} has no head that can be told apart, because {program} has turned its layers into "
            f"one program. Pass the module that it was made from; or add a head: "
            f"nn.Sequential(model, nn.Linear(outputs, n))."
        )
    if has_adapters(model):
        prefix, base = named_base(model)
        return tuple(dict.fromkeys(active_name(model, f"{prefix}.{name}") for name in find_head(base, example)))
    return family_of(model).heads(model) or recorded_head(model, example)


def recorded_head(model: nn.Module, example: Any = None) -> tuple[str, ...]:
    """Return the heads that a forward pass reveals, without asking the model's family.

    Raises:
        HeadError: If the model accepts no example, or its head is ambiguous.
    """
    example = accepted_example(model, example)
    if example is None:
        return _only_candidate(model)
    with undisturbed(model):
        eval_mode(model)
        recordings = [record(model, example), attempt(record, model, example, train_mode)]
    done = [recording for recording in recordings if recording]  # auxiliary outputs often exist in train mode only
    heads = [operation for recording in done for operation in last_parametrised(recording.last)]
    main = [operation for recording in done for operation in last_parametrised(recording.main)]
    if _layers_before(main).issuperset(set(_layers(heads)) - set(_layers(main))):
        heads = main  # the outputs beside the logits are features that the logits are computed from
    names = _layers(heads)
    _check_unambiguous(model, names, _layers_before(heads))
    return names


def _only_candidate(model: nn.Module) -> tuple[str, ...]:
    """Return the one layer whose outputs no other layer reads, if its name or the lack of others leaves no doubt.

    Raises:
        HeadError: If the structure leaves several layers or none.
    """
    layers = {name: module for name, module in model.named_modules() if name and isinstance(module, RESIZABLE)}
    read = {size for module in model.modules() for size in _sizes_read(module)}
    unread = [name for name, layer in layers.items() if layer.weight.shape[0] not in read]
    named = [name for name in unread if not _HEAD_NAMES.isdisjoint(name.split("."))]
    for candidates in (unread, named):
        if len(candidates) == 1:
            return (candidates[0],)
    raise HeadError(
        f"The head of {type(model).__name__} cannot be found: the model accepted none of the guessed inputs, and by "
        f"its structure the head may be any of {', '.join(unread) or 'its layers'}. Pass inputs of one or more "
        f"samples, as in replace_head(n, example=X[:2]). {_candidates(model)}"
    )


def _sizes_read(module: nn.Module) -> list[int]:
    names = ("in_features", "in_channels", "num_features", "input_size", "embed_dim", "num_channels", "hidden_size")
    sizes = [getattr(module, name, None) for name in names]
    return [*(size for size in sizes if isinstance(size, int)), *getattr(module, "normalized_shape", ())]


def check_name(model: nn.Module, name: str) -> None:
    """Check that `name` is a layer of the model.

    Raises:
        HeadError: If the model has no layer of that name.
    """
    modules = dict(model.named_modules())
    if not name or name not in modules:
        raise HeadError(f"{type(model).__name__} has no layer {name!r}.{nearest(name, modules)} {_candidates(model)}")


def last_parametrised(last: Iterable[Operation]) -> list[Operation]:
    """Walk back from the operations `last` to the nearest ones that read a parameter."""
    found: list[Operation] = []
    todo = list(last)
    seen = set(todo)
    while todo:
        operation = todo.pop(0)
        if operation.parameters:
            found.append(operation)
        else:
            todo += [earlier for earlier in operation.inputs if earlier not in seen]
            seen.update(operation.inputs)
    return found


def layers_read(operation: Operation) -> list[str]:
    """Return the full names of the layers whose parameters an operation reads."""
    return list(
        dict.fromkeys(name.rpartition(".")[0].partition(".parametrizations")[0] for name in operation.parameters)
    )


def _layers(operations: Iterable[Operation]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for operation in operations for layer in layers_read(operation)))


def _layers_before(operations: Iterable[Operation]) -> set[str]:
    """Return the layers that the operations' results depend on, except for their own."""
    return {layer for earlier in before(operations) for layer in layers_read(earlier)}


def _check_unambiguous(model: nn.Module, names: tuple[str, ...], before: set[str]) -> None:
    layers = {name: model.get_submodule(name) for name in names}
    widths = {layer.weight.shape[0] if isinstance(layer, RESIZABLE) else None for layer in layers.values()}
    in_a_row = len(names) > 1 and not before.isdisjoint(names)  # the last layer has a skip connection around it
    if len(widths) == 1 and None not in widths and not in_a_row:
        return
    described = ", ".join(f"{name or 'the model itself'} ({type(layer).__name__})" for name, layer in layers.items())
    raise HeadError(
        f"The head of {type(model).__name__} is ambiguous: its output comes from "
        f"{described or 'no layer with parameters'}. Expected one linear or convolutional layer, or several "
        f"with the same number of outputs, none of which feeds another. {_candidates(model)}"
    )


def _candidates(model: nn.Module) -> str:
    layers = [
        f"{name} ({module.weight.shape[1]} -> {module.weight.shape[0]})"
        for name, module in model.named_modules()
        if name and isinstance(module, RESIZABLE)
    ]
    last = ", ".join(layers[-5:]) or "none"
    return f"Name it with replace_head(n, layer=...); the last layers are: {last}."
