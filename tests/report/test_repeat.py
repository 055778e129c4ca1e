"""The code to repeat a report says what it cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finetune import FineTuner
from finetune.report.blocks import Code, Note
from finetune.report.repeat import repeat_section


class Custom(FineTuner):
    """A tuner of the user's own."""


def section(kind: type = FineTuner, data: Any = "val", named: bool = True, **options: Any) -> list[Any]:
    given: dict[str, Any] = {"file": Path("m.safetensors"), "train": None, "batch_size": 32, **options}
    return list(repeat_section(kind, path=Path("r.html"), data=data, named=named, **given).blocks)


def test_a_model_by_name_and_data_in_files_need_nothing_else() -> None:
    code, command = section(train="more data", batch_size=8)
    assert code.text.splitlines()[2:] == [
        'tuner = FineTuner.load_checkpoint("m.safetensors")',
        'tuner.report("r.html", "val", train="more data", batch_size=8)',
    ]
    assert command.text == ("finetune report m.safetensors val --out r.html --train 'more data' --batch-size 8")


def test_a_module_and_data_in_memory_are_named() -> None:
    (code,) = section(data=(torch.zeros(1), torch.zeros(1)), named=False)
    assert "# model: the module, built as for training" in code.text
    assert "# data: the pair (X, y) that was given" in code.text
    assert code.text.endswith('load_checkpoint("m.safetensors", model)\ntuner.report("r.html", data)')


def test_a_class_of_the_users_own_has_no_command() -> None:
    (code,) = section(Custom)
    assert code.text.startswith(f"from {__name__} import Custom\n")


def test_names_are_quoted() -> None:
    for name in ('a"b', "a\\b", "a\nb", "a'b"):
        code = section(data=name)[0]
        assert isinstance(code, Code)
        (call,) = [line for line in code.text.splitlines() if line.startswith("tuner.report")]
        assert eval(call.removeprefix("tuner.report"), {}) == ("r.html", name)


def test_a_model_in_no_checkpoint_is_saved_first() -> None:
    note, *_ = section(file=None)
    assert isinstance(note, Note)
    assert "save_checkpoint" in note.text
