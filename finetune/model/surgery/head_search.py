"""Find the head of a model.

The model's family is asked first. Every other model is known by what its forward pass does: the head
is the last parametrised layers whose output reaches the model's output.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from finetune.errors import HeadError, nearest
from finetune.model.families import family_of
from finetune.model.freezing import eval_mode, train_mode
from finetune.model.inspection.forward_graph import Operation, record
from finetune.model.inspection.probing import accepted_example, attempt, undisturbed
from finetune.model.outputs import logits_of, results_of
from finetune.model.surgery.peft import active_name, base_of, has_adapters

RESIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_head(model: nn.Module, example: Any = None) -> tuple[str, ...]:
    """Return the full names of the model's heads, the main one first.

    `example` is an input that the model accepts; without one, inputs are guessed from its first layer.

    Raises:
        HeadError: it has none, or what the model does leaves it open which layer that is.
    """
    if has_adapters(model):
        prefix, base = base_of(model)
        return tuple(dict.fromkeys(active_name(model, f"{prefix}.{name}") for name in find_head(base, example)))
    return family_of(model).heads(model) or _recorded(model, example)


def check_name(model: nn.Module, name: str) -> None:
    """Check that `name` is a layer of the model.

    Raises:
        HeadError: it is not.
    """
    modules = dict(model.named_modules())
    if not name or name not in modules:
        raise HeadError(f"{type(model).__name__} has no layer {name!r}.{nearest(name, modules)} {_candidates(model)}")


def check_results(model: nn.Module, output: Any, outputs: int | None) -> None:
    """Check that a model's main result are its logits; `outputs` is what its head gives, 0 if that is not known.

    Raises:
        HeadError: the model gives several results, and the first is not what the head gave.
    """
    main, results = logits_of(output), results_of(output)
    shapes = [list(tensor.shape) for tensor in results]
    width = main.shape[1:] if isinstance(main, Tensor) else ()
    fits = outputs is None or (bool(outputs) and outputs in (1, *width))
    if len(results) > 1 and shapes != shapes[:1] * len(shapes) and not fits:
        raise HeadError(
            f"{type(model).__name__} gives several results, of shapes {', '.join(map(str, shapes))}, and it is not "
            f"clear that the first are the logits. Return the logits first or in a dictionary under 'logits', name "
            f"their layer with replace_head(n, layer=...), or override training_step."
        )


def _recorded(model: nn.Module, given: Any) -> tuple[str, ...]:
    example = accepted_example(model, given)
    if example is None:
        raise HeadError(
            f"Which layer of {type(model).__name__} is its head is not clear: the model accepted none of the "
            f"inputs it was tried on. {_candidates(model)}"
        )
    with undisturbed(model):
        eval_mode(model)
        recordings = [record(model, example), attempt(record, model, example, train_mode)]
    done = [recording for recording in recordings if recording]  # auxiliary outputs often come in train mode only
    heads = [head for recording in done for head in _last_operations(recording.last)]
    main = [head for recording in done for head in _last_operations(recording.main)]
    before_main = _all_before(main)
    if before_main.issuperset(set(_names(heads)) - set(_names(main))):
        heads = main  # what is given beside the logits are features that they are made from
    _check_clear(model, _names(heads), _all_before(heads))
    return _names(heads)


def _last_operations(last: Iterable[Operation]) -> list[Operation]:
    """Walk back from the output to the first operations that read a parameter."""
    found: list[Operation] = []
    todo = list(last)
    seen = set(todo)
    while todo:
        operation = todo.pop(0)
        if operation.parameters:
            found.append(operation)
        else:
            todo += [before for before in operation.inputs if before not in seen]
            seen.update(operation.inputs)
    return found


def _names(heads: Iterable[Operation]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for head in heads for layer in _layers_of(head)))


def _all_before(heads: Iterable[Operation]) -> set[str]:
    return {layer for head in heads for layer in _layers_before(head)}


def _layers_of(operation: Operation) -> list[str]:
    return [name.rpartition(".")[0] for name in operation.parameters]


def _layers_before(operation: Operation) -> set[str]:
    """Return the layers that an operation's result depends on, its own left out."""
    todo = list(operation.inputs)
    seen = set(todo)
    while todo:
        new = [before for before in todo.pop().inputs if before not in seen]
        seen.update(new)
        todo += new
    return {layer for before in seen for layer in _layers_of(before)}


def _check_clear(model: nn.Module, names: tuple[str, ...], before: set[str]) -> None:
    layers = {name: model.get_submodule(name) for name in names}
    widths = {layer.weight.shape[0] if isinstance(layer, RESIZABLE) else None for layer in layers.values()}
    in_a_row = len(names) > 1 and not before.isdisjoint(names)  # as where the last layer has a skip around it
    if len(widths) == 1 and None not in widths and not in_a_row:
        return
    described = ", ".join(f"{name or 'the model itself'} ({type(layer).__name__})" for name, layer in layers.items())
    raise HeadError(
        f"Which layer of {type(model).__name__} is its head is not clear: its output comes from "
        f"{described or 'no layer with parameters'}. Expected one linear or convolutional layer, or several "
        f"with equally many outputs, none of which feeds another. {_candidates(model)}"
    )


def _candidates(model: nn.Module) -> str:
    layers = [
        f"{name} ({module.weight.shape[1]} -> {module.weight.shape[0]})"
        for name, module in model.named_modules()
        if name and isinstance(module, RESIZABLE)
    ]
    last = ", ".join(layers[-5:]) or "none"
    return f"Name the layer with replace_head(n, layer=...); the last ones are: {last}."
