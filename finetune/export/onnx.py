"""ONNX models: convert a program, and run it with onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetune.display.silence import quiet
from finetune.errors import ArgumentError, ExportError
from finetune.export.deployed import Input
from finetune.export.program import cause

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_LARGEST = 2**31 - 1  # bytes of a protocol buffer


def check_installed() -> None:
    """Check that the packages of the extra `onnx` are installed.

    Raises:
        ArgumentError: If one is missing.
    """
    onnxruntime()
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise _not_installed(error) from error


def onnxruntime() -> ModuleType:
    """Return onnxruntime.

    Raises:
        ArgumentError: If it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise _not_installed(error) from error
    module: ModuleType = onnxruntime
    return module


def simplify(model: nn.Module) -> None:
    """Let models of transformers compute attention in plain operations. ONNX lacks some layouts of the fused one."""
    for module in model.modules():
        if callable(choose := getattr(module, "set_attn_implementation", None)):
            with suppress(Exception):  # of models that have one implementation
                choose("eager")


def to_model(
    program: ExportedProgram, name: str, inputs: Sequence[Input], output: str, facts: Mapping[str, Any]
) -> Any:
    """Convert a program to an ONNX model.

    Args:
        program: The program.
        name: Name of the model, for messages.
        inputs: Its inputs.
        output: Name of its output.
        facts: Facts for the metadata of the model; values other than texts are written as JSON.

    Raises:
        ExportError: If an operation has no ONNX counterpart.
    """
    try:
        with quiet():
            exported = torch.onnx.export(
                program, (), dynamo=True, input_names=[each.name for each in inputs], output_names=[output],
                verbose=False,
            )  # fmt: skip
            assert exported is not None
            model = exported.model_proto
    except Exception as error:  # of the converter, and of operations that it does not know
        raise ExportError(
            f"{name} cannot be converted to ONNX: {cause(error)}. Export it with format='torch'."
        ) from error
    _name_sizes(model, inputs)
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    return model


def content_of(model: Any) -> bytes:
    """Return an ONNX model as the content of a file.

    Raises:
        ExportError: If it is larger than a file in this format can be.
    """
    if model.ByteSize() > _LARGEST:
        raise ExportError(
            f"The model takes {model.ByteSize():,} bytes, but an ONNX file holds at most 2 GB. Export it with "
            f"format='torch'."
        )
    content: bytes = model.SerializeToString()
    return content


def runner_of(content: bytes) -> Callable[[Sequence[Tensor]], Tensor]:
    """Return a function that runs the content of an ONNX file on the CPU.

    Raises:
        ExportError: If onnxruntime cannot load it.
    """
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an error of its own for each status
        raise ExportError(f"onnxruntime cannot load the file: {cause(error)}. Use format='torch'.") from error
    names = [each.name for each in session.get_inputs()]

    def run(tensors: Sequence[Tensor]) -> Tensor:
        fed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


def _name_sizes(model: Any, inputs: Sequence[Input]) -> None:
    """Give the sizes that may vary the names of the inputs, in the place of the exporter's."""
    names: dict[str, str] = {}
    for value, each in zip(model.graph.input, inputs, strict=True):
        for size, dim in zip(each.shape, value.type.tensor_type.shape.dim, strict=True):
            if isinstance(size, str):
                names[dim.dim_param] = size
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _not_installed(error: ImportError) -> ArgumentError:
    return ArgumentError(f"{error.name} is not installed. Run `pip install 'torch-finetune[onnx]'`.")
