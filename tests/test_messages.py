"""Advice is true: each message that says what to do is provoked, its advice is followed, and it works.

The messages are read off the source, so a new one without a case turns a test red. The cases are in `tests/messages`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from tests.messages.material import CASES, Case

for file in sorted(Path(__file__).with_name("messages").glob("*.py")):
    import_module(f"tests.messages.{file.stem}")  # registers its cases

PACKAGE = Path(__file__).resolve().parent.parent / "finetune"

VERBS = (
    "Adapt|Add|Call|Change|Choose|Compute|Correct|Give|Increase|Leave|Load|Name|Omit|Pass|Remove|Rename|Replace|Resume|"
    "Set|Start|Train|Use"
)
ADVICE = re.compile(rf"(?:(?:^|[.;:] )(?:{VERBS})\b)|(?:, or |; |, |: )(?:{VERBS.lower()}) ")
NO_MESSAGES = ("cli/", "demo.py", "display/options.py")  # help, and rewritten messages

# Advice that needs several processes, a package or a download, and the file that tries it.
ELSEWHERE = {
    "is a part of a sharded checkpoint. Pass the file that names its folder": "checkpoint/test_sharded.py",
    "does not exist, or may not be read. Correct the URL": "files/test_remote.py",
    "cannot be read ({}: {}). Correct the URL": "files/test_remote.py",
    "URLs are for data that is read. Use a local path here": "files/test_remote.py",
    "The model is divided among processes already, as by FSDP. Pass the whole model": "model/test_network.py",
    "of this machine has no GPU, because there are {}. Start as many processes": "distributed/test_world.py",
    "does not take inputs of the shape {}: {}. Choose another format": "export/test_export.py",
    "onnxruntime cannot load the file: {}. Use format='torch'": "export/test_onnx.py",
    "int8 needs the ranges of a convolutional network's activations": "export/test_quantize.py",
    "onnxruntime cannot quantize the model to {}: {}. Omit quantize": "export/test_quantize.py",
    "Pass token=..., set the environment variable HF_TOKEN, or run": "card/test_hub.py",
    "Pass another one as token=..., or run `hf auth login`": "card/test_hub.py",
    "Pass one with write access to": "card/test_hub.py",
    "because HF_HUB_OFFLINE forbids it. Remove that variable": "card/test_hub.py",
    "Rename one of them, or pass card=False": "card/test_write_card.py",
    "Pass the tokenizer or feature extractor to FineTuner as preprocessing=": "data/preprocessing/test_text.py",
    "Pass FineTuner a custom Preprocessing, or pass data": "data/preprocessing/test_presets.py",
    "Set tokenizer.pad_token to one of its tokens": "data/preprocessing/test_text.py",
    "The processes have different data, of {} samples": "data/loading/test_batches.py",
    "has no sample of the training data, which is divided by rank": "data/sources/streams/test_division.py",
    "which leaves no order of the whole. Pass it undivided": "data/sources/streams/test_division.py",
    "Pass a seed to whatever draws or shuffles in it": "data/sources/streams/test_division.py",
    "Pass the stream without split_dataset_by_node": "data/sources/streams/test_division.py",
    "divides its samples by rank, and may repeat some": "data/sources/streams/test_division.py",
    "or remove its attribute split_by_rank": "data/sources/streams/test_division.py",
    "Name the column of labels 'label'": "data/sources/test_datasets.py",
    "Load the model with a class such as AutoModel": "model/families/test_huggingface.py",
    "or pass a folder written by save_pretrained": "model/families/test_huggingface.py",
    "Download them on a machine with network access": "model/families/test_timm.py",
    "Append a head, as in nn.Sequential(model, pooling": "model/families/test_timm.py",
    "Put the file there, pass another one": "model/families/test_torchvision.py",
    "Pass the module that it was exported from": "model/inspection/test_exported.py",
    "Delete the file to download it again": "model/families/test_torchvision.py",
    "Pass the model's tokenizer: FineTuner(model": "data/preprocessing/test_text.py",
    "Replace the head and freeze first, then wrap the model": "model/test_network.py",
    "Change it first: get_peft_model(": "model/surgery/test_adapters.py",
    "Pass FineTuner the model without adapters": "model/surgery/test_reinitialize.py",
    "is a sparse {}. Expected an array. Pass {}.toarray()": "data/sources/test_arrays.py",
    "enlarge /dev/shm (docker run --shm-size=8g), or pass a smaller batch_size": "data/loading/test_samples.py",
    "or call csv.field_size_limit() with a higher number": "data/tables/test_reading.py",
    "Or pass a file with weights='FILE', or start from random weights": "model/families/test_hub.py",
}


@cache
def messages() -> list[tuple[str, str]]:
    """Return the place and the text of every string of the package that gives advice, with {} for its fields."""
    return [found for path in sorted(PACKAGE.rglob("*.py")) for found in messages_in(path)]


def messages_in(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the messages of one file."""
    name = path.relative_to(PACKAGE).as_posix()
    if name.startswith(NO_MESSAGES):
        return
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in ast.walk(node) if part is not node}
    skipped = parts | {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if id(node) not in skipped and ADVICE.search(text := _text(node)):
            yield f"{name}:{node.lineno}", text  # type: ignore[attr-defined]


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_every_message_that_advises_is_tried() -> None:
    known = [*CASES, *ELSEWHERE]
    untried = [f"{place}: {text}" for place, text in messages() if not any(part in text for part in known)]
    assert not untried, "add a case that follows the advice of:\n" + "\n".join(untried)


def test_every_case_has_its_message() -> None:
    texts = [text for _, text in messages()]
    stale = [part for part in (*CASES, *ELSEWHERE) if not any(part in text for text in texts)]
    assert not stale, "no message holds:\n" + "\n".join(stale)
    missing = [name for name in ELSEWHERE.values() if not (PACKAGE.parent / "tests" / name).is_file()]
    assert not missing


@pytest.mark.parametrize("text", ["Call f.", "It is wrong. Pass x.", "Either wait, or call f().", "It ends; use g."])
def test_advice_is_recognized(text: str) -> None:
    assert ADVICE.search(text)


@pytest.mark.parametrize("text", ["Expected a call of f.", "The data has no use.", "epoch 1", "a set, a name"])
def test_other_text_is_no_advice(text: str) -> None:
    assert not ADVICE.search(text)


@pytest.mark.parametrize("function", dict.fromkeys(CASES.values()), ids=lambda function: function.__name__)
def test_the_advice_works(function: Case, tmp_path: Path) -> None:
    said = function(tmp_path)
    for fragment in (part for part, own in CASES.items() if own is function):
        words = [re.escape(part) for part in re.split(r"\{\}|%[sd]", fragment)]
        assert re.search(".*".join(words), " ".join(said.split()), re.DOTALL), said
