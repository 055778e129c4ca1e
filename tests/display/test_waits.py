"""Progress of long passes: what is shown, where, and when."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console

from finetune import FineTuner
from finetune.callbacks import Callback
from finetune.display.lines import lines_shown
from finetune.display.waits import announced, patient, waits_shown


def slowly(count: int, seconds: float = 0.02) -> Iterator[int]:
    for item in range(count):
        time.sleep(seconds)
        yield item


def test_a_long_pass_says_one_line(capsys) -> None:
    console = Console(file=io.StringIO())
    with lines_shown():
        assert list(patient(slowly(6), "Checking", 6, console=console, patience=0.03)) == [*range(6)]

    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("Checking: ")
    assert said[0].endswith(" of 6, about 0 s left")


def test_a_pass_of_unknown_length_says_what_it_does(capsys) -> None:
    with lines_shown():
        list(patient(slowly(3), "Reading", None, console=Console(file=io.StringIO()), patience=0.0))

    assert capsys.readouterr().out == "Reading ...\n"


def test_a_terminal_shows_a_bar(capsys) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    list(patient(slowly(4), "Checking", 4, console=console, patience=0.0))

    assert "Checking" in console.file.getvalue()
    assert capsys.readouterr().out == ""


def test_a_pass_that_ends_early_removes_its_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    for item in patient(slowly(4), "Checking", 4, console=console, patience=0.0):
        if item == 2:
            break
    assert console._live_stack == [] if hasattr(console, "_live_stack") else console._live is None


def test_a_short_pass_says_nothing(capsys) -> None:
    with waits_shown():
        assert list(announced(range(3), "Reading", 3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_verb_within_another_is_silent(capsys) -> None:
    with waits_shown(False), waits_shown():
        list(announced(slowly(2, 0.6), "Reading", 2))
    assert capsys.readouterr() == ("", "")


class Slow(torch.utils.data.Dataset):
    """Samples that take long to load."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(0.4)
        return torch.zeros(4), index % 2


@pytest.mark.parametrize(("verb", "word"), [("evaluate", "Checking the evaluation data"), ("predict", "Checking")])
def test_slow_data_is_announced(verb: str, word: str, capsys) -> None:
    getattr(FineTuner(torch.nn.Linear(4, 2), device="cpu"), verb)(Slow())
    assert word in capsys.readouterr().out


def test_evaluation_in_a_callback_leaves_the_display_to_fit(blobs, net, capsys) -> None:
    class Test(Callback):
        def on_epoch_end(self, run) -> None:
            run.tuner.evaluate(Slow())

    FineTuner(net(), device="cpu").fit(blobs(), callbacks=[Test()])
    assert "Checking" not in capsys.readouterr().out
