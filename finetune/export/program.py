"""Programs of `torch.export`: trace a model, save the program, and run it from its file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from finetune.display.silence import quiet
from finetune.errors import ExportError
from finetune.export.deployed import Deployed, Input

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FACTS = "finetune.json"  # the extra file in a .pt2


def trace(
    deployed: Deployed, tensors: Sequence[Tensor], inputs: Sequence[Input]
) -> tuple[ExportedProgram, list[Input]]:
    """Trace a model into a program.

    Args:
        deployed: The model.
        tensors: Arguments of its forward, for two samples.
        inputs: Inputs with the dimensions that are to vary.

    Returns:
        The program, and the inputs with those dimensions that do vary.

    Raises:
        ExportError: If it cannot be traced, or works only for one number of samples.
    """
    from torch.export import Dim, export

    free = tuple(dict.fromkeys(each.free, Dim.AUTO) for each in inputs)
    name = type(deployed.model).__name__
    try:
        with quiet(), torch.no_grad():
            program = export(deployed, tuple(tensors), dynamic_shapes=(free,), strict=False)
    except Exception as error:  # whatever the code of a model does that no program can do
        raise ExportError(
            f"{name} cannot be traced by torch.export: {cause(error)}. Export its weights with format='state_dict', "
            f"or change that part of its forward."
        ) from error
    found = _as_traced(program, inputs)
    if any(isinstance(each.shape[0], int) for each in found):
        raise ExportError(
            f"{name} computes in a way that depends on the number of samples, so a file would take only as many as it "
            f"was traced with. Export its weights with format='state_dict'."
        )
    return program, found


def content_of(program: ExportedProgram, name: str, facts: Mapping[str, Any]) -> bytes:
    """Return a program as the content of a .pt2 file.

    Args:
        program: The program.
        name: Name of the model, for messages.
        facts: Facts that are written with it.

    Raises:
        ExportError: If it cannot be written.
    """
    file = io.BytesIO()
    try:
        with quiet():
            _drop_checks(program)
            torch.export.save(program, file, extra_files={FACTS: json.dumps(facts, ensure_ascii=False)})
    except Exception as error:  # of operations that its format does not know
        raise _not_a_file(name, error) from error
    return file.getvalue()


def runner_of(content: bytes, name: str) -> Callable[[Sequence[Tensor]], Tensor]:
    """Return a function that runs the content of a .pt2 file.

    Raises:
        ExportError: If torch cannot load it.
    """
    try:
        with quiet():
            module = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:  # of what torch writes, but does not read
        raise _not_a_file(name, error) from error

    def run(tensors: Sequence[Tensor]) -> Tensor:
        with torch.no_grad(), quiet():
            answers: Tensor = module(*tensors)
        return answers

    return run


def _drop_checks(program: ExportedProgram) -> None:
    """Remove what a model checks of the values of its inputs, because torch cannot load sizes that only checks use."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _not_a_file(name: str, error: Exception) -> ExportError:
    return ExportError(
        f"The program of {name} cannot be written to a file and loaded again: {cause(error)}. Export it with "
        f"format='onnx', or its weights with format='state_dict'."
    )


def cause(error: BaseException) -> str:
    """Return the first cause of an error in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300].rstrip(".")


def _as_traced(program: ExportedProgram, inputs: Sequence[Input]) -> list[Input]:
    """Return the inputs with the sizes that the program has fixed."""
    names = {*program.graph_signature.user_inputs}
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return [
        replace(
            each,
            shape=tuple(
                size if isinstance(traced, torch.SymInt) and traced.node.maybe_as_int() is None else int(traced)
                for size, traced in zip(each.shape, value.shape, strict=True)
            ),
        )
        for each, value in zip(inputs, values, strict=True)
    ]
