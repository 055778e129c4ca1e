"""`export`: write a model to a file that runs without this package, and verify its answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.sound import SoundPreprocessing
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.data.targets import BINARY, MULTILABEL
from finetune.errors import ExportError
from finetune.export import onnx, program, weights
from finetune.export.agreement import Agreement
from finetune.export.deployed import Deployed, Input
from finetune.export.destination import ONNX, PRETRAINED, STATE_DICT, TORCH, Destination
from finetune.export.quantize import quantized
from finetune.export.runner import Runner
from finetune.export.samples import Samples, varying
from finetune.export.subject import Subject
from finetune.training.numerics.finite import check_weights_to_save

Run = Callable[[Sequence[Tensor]], Tensor]

_KINDS = {
    ONNX: "an ONNX model for onnxruntime",
    TORCH: "a program for torch.export.load",
    STATE_DICT: "a state dict of the weights alone",
    PRETRAINED: "a folder for from_pretrained",
}


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written, and how well it agrees with the model. It prints as a summary.

    Attributes:
        path: The file or folder.
        format: Its format.
        agreement: Agreement of the file's answers with the model's.
        files: All files that were written.
        inputs: Inputs of the file, such as `"images uint8 [N, 224, 224, 3]"`.
        output: Name of its output.
        before: Agreement before the quantization, or None.
        given: Whether it was verified on data of the user's.
        notes: Remarks on what the file leaves to others.

    Example:
        >>> from finetune import FineTuner
        >>> FineTuner(torch.nn.Linear(4, 3), device="cpu").export("model.pth", "state_dict").agreement.difference
        0.0
    """

    path: Path
    format: str
    agreement: Agreement
    files: tuple[Path, ...]
    inputs: tuple[Input, ...] = ()
    output: str = "outputs"
    before: Agreement | None = None
    given: bool = False
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `finetune export --json` prints them.

        Example:
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 3), device="cpu")
            >>> tuner.export("model.pth", "state_dict").to_dict()["files"]
            ['model.pth', 'model.json']
        """
        return {
            "path": str(self.path),
            "format": self.format,
            **asdict(self.agreement),
            "before": None if self.before is None else asdict(self.before),
            "files": list(map(str, self.files)),
            "inputs": list(map(str, self.inputs)),
            "output": self.output,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        size = sum(path.stat().st_size for path in self.files if path.exists()) / 1e6
        data = "" if self.given else ", on synthetic inputs; verify=data tries it on yours"
        shown = [f"{self.path}: {_KINDS[self.format]}, {size:,.1f} MB"]
        if self.format in (ONNX, TORCH):
            shown += [f"input     {each}" for each in self.inputs] + [f"output    {self.output}"]
        if self.before is not None:
            shown.append(f"float32   {self.before}{data}")
        shown.append(f"{'verified ' if self.before is None else 'quantized'} {self.agreement}{data}")
        if self.agreement.accuracy is not None:
            shown.append(f"accuracy  {self.agreement.accuracy}")
        shown += [f"beside    {path}" for path in self.files if path != self.path and path.parent == self.path.parent]
        return "\n".join([*shown, *(f"note      {note}" for note in self.notes)])


@dataclass
class _Made:
    """The content of the files, and functions that run them.

    Attributes:
        files: Content by path.
        run: Function that runs the file on the tensors of a batch.
        before: The same for the file before its quantization, or None.
        notes: Remarks for the user.
    """

    files: dict[Path, bytes]
    run: Run
    inputs: Sequence[Input]
    before: Run | None = None
    notes: list[str] = field(default_factory=list)


def export(subject: Subject, to: Destination, samples: Samples, *, custom: bool = False) -> Export:
    """Write a model, verified on samples. See `FineTuner.export`.

    Args:
        subject: The model.
        to: The file or folder to write.
        samples: Samples to verify it on.
        custom: Whether a custom step makes the model's answers.

    Raises:
        NonFiniteError: If a weight is NaN.
        ExportError: If the model cannot be exported, or the file gives other answers. Nothing is written.
    """
    check_weights_to_save(subject.module)
    example = samples.example()
    images = subject.preprocessing if isinstance(subject.preprocessing, Preprocessing) else None
    as_bytes = samples.as_bytes and isinstance(example, Tensor) and example.dtype == torch.uint8
    deployed = Deployed(subject.copied, example, subject.answers, images if as_bytes else None)
    inputs = deployed.inputs(example, varying(subject.preprocessing, example))
    made = _made(subject, to, samples, deployed, deployed.tensors(example), inputs)
    before, agreement = _agreements(subject, to, samples, deployed, made, custom=custom)
    if samples.unlabeled and agreement.same is not None:
        made.notes.append(f"no accuracy, as the data has no labels that fit: {samples.unlabeled}")
    to.write(made.files)
    return Export(
        path=to.path,
        format=to.format,
        agreement=agreement,
        files=tuple(made.files),
        inputs=tuple(made.inputs),
        output=subject.answer,
        before=before,
        given=samples.given,
        notes=tuple(made.notes),
    )


def _made(
    subject: Subject,
    to: Destination,
    samples: Samples,
    deployed: Deployed,
    tensors: Sequence[Tensor],
    inputs: Sequence[Input],
) -> _Made:
    answers = _tried(subject, deployed, tensors)
    facts = _facts(subject, answers)
    if to.format not in (ONNX, TORCH):
        return _weights(subject, to, deployed, inputs, facts)
    if to.format == ONNX:
        onnx.simplify(deployed.model)
    traced, inputs = program.trace(deployed, tensors, inputs)
    facts["inputs"], facts["output"] = list(map(str, inputs)), subject.answer
    before = None
    if to.format == TORCH:
        content = program.content_of(traced, subject.name, facts)
        run = program.runner_of(content, subject.name)
    else:
        model = onnx.to_model(traced, subject.name, inputs, subject.answer, facts)
        content = onnx.content_of(model)
        run = onnx.runner_of(content)
        if to.quantize is not None:
            batches = (deployed.tensors(batch) for batch, _, _ in samples)
            content = onnx.content_of(quantized(model, to.quantize, batches, given=samples.given))
            before, run = run, onnx.runner_of(content)
    files, notes = _companions(subject, to, deployed, inputs, single=answers.dim() <= 2)
    return _Made({to.path: content, **files}, run, inputs, before, notes)


def _tried(subject: Subject, deployed: Deployed, tensors: Sequence[Tensor]) -> Tensor:
    """Return the answers of the model alone to its inputs.

    Raises:
        ExportError: If it does not take them, as a custom step that calls it in another way shows.
    """
    try:
        with torch.no_grad():
            answers: Tensor = deployed(*tensors)
    except Exception as error:  # of the code of a model
        raise ExportError(
            f"{subject.name} does not take the inputs of the data by itself: {program.cause(error)}. A file calls the "
            f"model without custom steps. Change its forward to take these inputs."
        ) from error
    return answers


def _weights(
    subject: Subject, to: Destination, deployed: Deployed, inputs: Sequence[Input], facts: Mapping[str, Any]
) -> _Made:
    """Return the files of the weights alone, with the facts beside them."""
    notes: list[str] = []
    if to.format == STATE_DICT:
        found, module = weights.state_dict(subject, to.path.name, facts)
        files = {to.path.with_name(name): content for name, content in found.items()}
    else:
        found, module, notes = weights.pretrained(subject)
        files = {to.path / name: content for name, content in found.items()}
    files[to.beside(".json" if to.format == STATE_DICT else "_finetune.json")] = _json(facts)
    reread = deployed.around(module)

    def run(tensors: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            answers: Tensor = reread(*tensors)
        return answers

    return _Made(files, run, inputs, notes=notes)


def _companions(
    subject: Subject, to: Destination, deployed: Deployed, inputs: Sequence[Input], *, single: bool
) -> tuple[dict[Path, bytes], list[str]]:
    """Return the script beside a file, with what it needs, or a note that there is none."""
    preprocessing, files, tokenizer, truncation = subject.preprocessing, {}, "", "right"
    if isinstance(preprocessing, TextPreprocessing) and "tokenizer.json" in preprocessing.files:
        path = to.beside("_tokenizer.json")
        files[path], tokenizer = preprocessing.files["tokenizer.json"], path.name
        truncation = str(preprocessing.tokenizer.truncation_side)
    taken = None if isinstance(preprocessing, Preprocessing) and not deployed.normalizes else preprocessing
    runner = Runner(to.path.name, to.format, subject.task.kind, inputs, taken, tokenizer, truncation, single)
    if not single:
        return files, ["its answers are maps or sequences, so no script prints them"]
    if not runner.possible:
        if isinstance(preprocessing, SoundPreprocessing):
            return files, ["the feature extractor of transformers stays outside: it makes the inputs of a sound"]
        return files, ["its preprocessing stays outside, and no script can be written for it"]
    path = to.beside(f"_{to.format}.py")
    return {path: runner.source(path.name).encode(), **files}, []


def _agreements(
    subject: Subject, to: Destination, samples: Samples, deployed: Deployed, made: _Made, *, custom: bool
) -> tuple[Agreement | None, Agreement]:
    """Return the agreement of the file before its quantization, if any, and of the file that is written.

    Raises:
        ExportError: If it is below the tolerance.
    """
    runs = [run for run in (made.before, made.run) if run is not None]
    found, largest = [Agreement()] * len(runs), [0.0] * len(runs)
    for number, (inputs, outputs, targets) in enumerate(samples):
        tensors, expected = deployed.tensors(inputs), subject.answers(outputs)
        others = _at_other_sizes(deployed, tensors, made.inputs, len(expected)) if number == 0 else []
        for place, run in enumerate(runs):
            found[place] = found[place].with_batch(subject, expected, _answers(subject, run, tensors), targets)
            for other, answers in others:
                apart = Agreement().with_batch(subject, answers, _answers(subject, run, other)).difference
                largest[place] = max(largest[place], apart)
    halves = samples.precision.name != "fp32" or samples.precision.device.type != "cpu"
    for place, agreement in enumerate(found):
        limit = to.largest_difference(halves=halves, quantized=to.quantize is not None and place == len(runs) - 1)
        if limit is None or (agreement.difference <= limit and largest[place] <= limit):
            continue
        sizes = f" ({largest[place]:.2g} for other sizes)" if largest[place] > limit else ""
        hint = "A custom predict_step is not part of the file. " if custom else ""
        raise ExportError(
            f"The file made of {subject.name} gives other answers than the model: {agreement}{sizes}. Expected at most "
            f"{limit:g}. {hint}Nothing is written. Pass tolerance=... to accept this."
        )
    return (found[0] if made.before is not None else None), found[-1]


def _at_other_sizes(
    deployed: Deployed, tensors: Sequence[Tensor], inputs: Sequence[Input], count: int
) -> list[tuple[list[Tensor], Tensor]]:
    """Return a sample alone, and shorter samples, with the answers of the model, which may not take the latter."""
    if any(len(tensor) != count for tensor in tensors):
        return []
    cases = [[tensor[:1] for tensor in tensors]]
    if any(len(each.free) > 1 for each in inputs):
        cases.append([_shorter(tensor, each.free[1:]) for tensor, each in zip(tensors, inputs, strict=True)])
    found = []
    for case in cases:
        with suppress(Exception), torch.no_grad():
            found.append((case, deployed(*case)))
    return found


def _shorter(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Return a tensor without the first quarter along some dimensions. The end decides for models of texts."""
    for dim in dims:
        size = tensor.shape[dim]
        tensor = tensor.narrow(dim, size // 4, size - size // 4).contiguous()
    return tensor


def _answers(subject: Subject, run: Run, tensors: Sequence[Tensor]) -> Tensor:
    """Return the answers of a file.

    Raises:
        ExportError: If it does not take the inputs.
    """
    try:
        return run(tensors)
    except Exception as error:  # of a runtime, on inputs of other sizes than traced
        shown = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise ExportError(
            f"The file made of {subject.name} does not take inputs of the shape {shown}: {program.cause(error)}. "
            f"Choose another format, such as 'state_dict'."
        ) from error


def _facts(subject: Subject, answers: Tensor) -> dict[str, Any]:
    """Return the meaning of the file in plain values."""
    thresholds: list[float] = []
    if subject.task.kind in (BINARY, MULTILABEL):
        thresholds = subject.calibration.thresholds_for(1 if answers.dim() == 1 else answers.shape[1])
    preprocessing = subject.preprocessing
    plain: dict[str, Any] | None = None
    if isinstance(preprocessing, TextPreprocessing):
        plain = {"kind": preprocessing.kind, "max_length": preprocessing.max_length}
    elif isinstance(preprocessing, SoundPreprocessing):
        plain = {"kind": preprocessing.kind, "rate": preprocessing.rate}
    elif isinstance(preprocessing, Preprocessing):
        plain = preprocessing.to_dict()
    return {
        "model": subject.name,
        "task": subject.task.kind or "",
        "classes": list(subject.labels(answers) or ()),
        "thresholds": thresholds,
        "temperature": subject.calibration.temperature,
        "preprocessing": plain,
        "written_by": f"torch-finetune {version('torch-finetune')}, torch {torch.__version__}",
    }


def _json(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()
