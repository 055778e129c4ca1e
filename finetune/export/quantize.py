"""Smaller ONNX models, by onnxruntime's own quantization."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.display.silence import quiet
from finetune.errors import ArgumentError, ExportError
from finetune.export.program import cause

KINDS = ("fp16", "int8")

_CALIBRATED = 200  # samples


def quantized(model: Any, kind: str, samples: Iterator[Sequence[Tensor]], *, given: bool) -> Any:
    """Return a smaller copy of an ONNX model.

    `"fp16"` halves weights and computes in 16 bits, with inputs and outputs as before. `"int8"` quantizes matrix
    products dynamically, and convolutions with ranges that are measured on the samples.

    Args:
        model: The model.
        kind: `"fp16"` or `"int8"`.
        samples: Inputs to measure ranges on, batch by batch.
        given: Whether they are the user's own.

    Raises:
        ArgumentError: If ranges need to be measured, and the samples are not the user's own.
        ExportError: If onnxruntime cannot quantize the model.
    """
    convolves = any(node.op_type == "Conv" for node in model.graph.node)
    if kind == "int8" and convolves and not given:
        raise ArgumentError(
            "int8 needs the ranges of a convolutional network's activations, measured on data like yours. Pass it: "
            "export(path, quantize='int8', verify=data)."
        )
    try:
        with quiet():
            if kind == "fp16":
                return _halved(model)
            return _static(model, samples) if convolves else _dynamic(model)
    except Exception as error:  # of a tool that handles the operations it knows
        raise ExportError(
            f"onnxruntime cannot quantize the model to {kind}: {cause(error)}. Omit quantize, or choose the other "
            f"one of {' and '.join(KINDS)}."
        ) from error


def _halved(model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copied = type(model)()
    copied.CopyFrom(model)
    return convert_float_to_float16(copied, keep_io_types=True)


def _dynamic(model: Any) -> Any:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _by_files(model, lambda source, target: quantize_dynamic(source, target, weight_type=QuantType.QInt8))


def _static(model: Any, samples: Iterator[Sequence[Tensor]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    names = [value.name for value in model.graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The samples, one at a time."""

        def __init__(self) -> None:
            rows = (
                {name: tensor[index : index + 1].numpy() for name, tensor in zip(names, tensors, strict=True)}
                for tensors in samples
                for index in range(len(tensors[0]))
            )
            self.rows = islice(rows, _CALIBRATED)

        def get_next(self) -> Any:
            return next(self.rows, None)

    def run(source: Path, target: Path) -> None:
        quantize_static(
            source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip

    return _by_files(model, run)


def _by_files(model: Any, run: Any) -> Any:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "quantized.onnx")
        onnx.save(model, source)
        run(source, target)
        made = onnx.load(target)
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    return made
