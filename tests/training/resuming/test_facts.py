"""Facts are the same in every process, and tell what differs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from finetune.training.resuming.facts import arguments_of, code_of, fact

SOURCE = """
def loss(outputs, targets):
    'Return the loss.'
    names = [name for name in ("a", "b") if name in {"b", "c", "d", "e"}]
    return lambda scale: (outputs - targets) * scale * 2
"""


def made(source: str, name: str = "<string>") -> Any:
    space: dict[str, Any] = {}
    exec(compile(source, name, "exec"), space)
    return space["loss"]


def test_the_code_of_a_function_counts_without_its_lines_name_of_file_and_docstring() -> None:
    one = code_of(made(SOURCE))
    assert one == code_of(made("\n\n# moved\n" + SOURCE, "other.py"))
    assert one == code_of(made(SOURCE.replace("Return the loss.", "Give it.")))
    assert one != code_of(made(SOURCE.replace("* 2", "* 3")))
    assert one != code_of(made(SOURCE.replace("outputs - targets", "outputs + targets")))
    assert one != code_of(made(SOURCE.replace('"e"', '"f"')))


def test_the_code_of_a_function_is_the_same_in_every_process() -> None:
    program = (
        f"from finetune.training.resuming.facts import code_of\nspace = {{}}\nexec({SOURCE!r}, space)\n"
        "print(code_of(space['loss']))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{code_of(made(SOURCE))}\n"}


@pytest.mark.parametrize("value", [nn.ReLU(), object(), lambda: 1, made])
def test_a_fact_has_no_address(value: Any) -> None:
    assert "0x" not in repr(fact(value))
    assert "0x" not in repr(arguments_of(value))


def test_a_value_that_refers_to_itself_has_an_end() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    assert fact(cycle)


def test_facts_tell_arrays_apart_by_values_type_and_shape() -> None:
    arrays = [torch.zeros(4), torch.ones(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.float64), b"", "", 0, None]
    assert len({repr(fact(array)) for array in arrays}) == len(arrays)


def test_properties_are_not_read() -> None:
    class Own:
        def __init__(self, head: int, kept: int = 2) -> None:
            self.kept = kept

        @property
        def head(self) -> int:
            raise AssertionError

    assert arguments_of(Own(1)) == {"kept": 2}
