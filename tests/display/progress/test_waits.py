"""Long work: where it is shown, and when."""

from __future__ import annotations

import pty
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from finetune import FineTuner
from finetune.callbacks import Callback
from finetune.display.progress import waits
from finetune.display.progress.bar import Bar
from finetune.display.progress.display import Display
from finetune.display.progress.waits import announced, busy, displayed, waits_shown


class Seen(Display):
    """Display that a thread draws, and that keeps the labels and counts it has drawn."""

    interval = 0.005

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[str, ...]] = []

    def draw(self, bars, now) -> None:
        self.drawn.append(tuple(f"{bar.label} {bar.count()}".strip() for bar in bars))


def slowly(count: int, seconds: float = 0.02) -> Iterator[int]:
    for item in range(count):
        time.sleep(seconds)
        yield item


def test_a_pass_is_counted_while_it_runs() -> None:
    display = Seen()
    with waits_shown(display=display):
        assert list(announced(slowly(4), "Reading", 4)) == [0, 1, 2, 3]
        with busy("Saving"):
            time.sleep(0.05)
    assert {("Reading 1/4",), ("Reading 2/4",), ("Saving",)} <= {*display.drawn}
    assert display._bars == []


def test_a_pass_within_another_is_the_innermost() -> None:
    display = Seen()
    with waits_shown(display=display), displayed(Bar("fit")), waits_shown(), busy("Saving"):
        time.sleep(0.05)
    assert ("fit", "Saving") in display.drawn


def test_a_pass_that_ends_early_is_forgotten() -> None:
    display = Seen()
    with waits_shown(display=display):
        for item in announced(range(4), "Reading", 4):
            if item == 2:
                break
        assert display._bars == []


def test_without_a_verb_nothing_is_counted() -> None:
    with busy("Saving"), displayed(Bar("fit")) as interval:
        assert list(announced("ab", "Reading")) == ["a", "b"]
    assert interval == float("inf")


def test_the_thread_ends_with_the_verb() -> None:
    before = {*threading.enumerate()}
    with waits_shown(display=Seen()), busy("Saving"):
        (own,) = {*threading.enumerate()} - before
    own.join(10)
    assert not own.is_alive()


def test_a_short_pass_says_nothing(capsys) -> None:
    with waits_shown():
        assert list(announced(range(3), "Reading", 3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_verb_within_a_silent_one_is_silent(capsys) -> None:
    with waits_shown(False), waits_shown():
        list(announced(slowly(2, 0.6), "Reading", 2))
    assert capsys.readouterr() == ("", "")


class Slow(torch.utils.data.Dataset):
    """Samples that take long to load when they are checked; the first two are loaded before, as an example."""

    def __init__(self) -> None:
        self.slow = {2, 3}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index in self.slow:
            self.slow.remove(index)
            time.sleep(1.2)
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


class Heard(Display):
    """Display that keeps the label of everything that is ever under way."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[str] = []

    def under_way(self, bar):
        self.labels.append(bar.label)
        return super().under_way(bar)


def test_whatever_may_take_long_is_announced(net, blobs, tmp_path) -> None:
    display, tuner, data = Heard(), FineTuner(net(), device="cpu").freeze(), blobs()
    with waits_shown(display=display):
        tuner.fit(data, blobs(9), epochs=2, checkpoint_dir=tmp_path, cache="memory")
        heard, display.labels = display.labels, []
        FineTuner.load_checkpoint(tmp_path / "last.safetensors", net())
        tuner.save_checkpoint(tmp_path / "model.safetensors")
        tuner.advise(data)

    assert [label for label in dict.fromkeys(heard) if not label.startswith("Checking")] == [
        "Opening the data",
        "Trying the model on the data",
        "epoch 1/2",
        "Planning the cache",
        "Evaluating batches",
        "Saving best.safetensors",
        "Identifying the data",
        "Saving last.safetensors",
    ]
    assert {"Verifying last.safetensors", "Saving model.safetensors", "Scoring the features"} <= {*display.labels}


def kind_shown() -> str:
    """Return the kind of display that a verb gets."""
    with waits_shown():
        return type(waits._display.get()).__name__


def test_a_terminal_has_one_display_at_a_time(monkeypatch) -> None:
    reader, writer = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with open(reader), open(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with waits_shown(), ThreadPoolExecutor() as threads:
            assert threads.submit(kind_shown).result() == "LineDisplay"
            assert kind_shown() == "TerminalDisplay"  # a verb within shares it
        assert kind_shown() == "TerminalDisplay"
        with waits_shown(False):
            assert kind_shown() == "Display"
    monkeypatch.undo()
    assert kind_shown() == "LineDisplay"
