"""The output of a notebook's cell that is updated in place."""

from __future__ import annotations

import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from finetune import FineTuner
from finetune.callbacks import Callback
from finetune.display.progress.bar import Bar
from finetune.display.progress.notebook_display import NotebookDisplay, notebook
from finetune.display.progress.waits import waits_shown


class Notebook:
    """Front end that keeps the outputs of a cell as a notebook's file does, and counts the messages."""

    def __init__(self) -> None:
        self.outputs: dict[str, dict[str, str]] = {}
        self.messages = 0

    def display(self, data: dict[str, str], *, raw: bool, display_id: str, update: bool) -> None:
        assert raw
        assert update == (display_id in self.outputs)
        self.outputs[display_id] = data
        self.messages += 1

    @property
    def page(self) -> ElementTree.Element:
        (output,) = self.outputs.values()
        return ElementTree.fromstring(output["text/html"])

    @property
    def text(self) -> str:
        (output,) = self.outputs.values()
        return output["text/plain"]


@pytest.fixture
def cell() -> Notebook:
    return Notebook()


def test_a_fit_is_one_output(net, blobs, cell) -> None:
    class Progress(Callback):
        bars = 0

        def on_evaluate_begin(self, run: Any) -> None:
            display.draw([*display._bars], time.monotonic())
            self.bars += len(list(cell.page.iter("progress")))

    display, progress = NotebookDisplay(cell.display), Progress()
    with waits_shown(display=display):
        FineTuner(net(), device="cpu").fit(blobs(), blobs(9), epochs=3, callbacks=progress)

    assert progress.bars == 3
    assert not list(cell.page.iter("progress"))
    (table,) = cell.page.iter("table")
    assert [name.text for name in table.iter("th")][:3] == ["epoch", "loss", "accuracy"]
    assert [row[0].text for row in table.find("tbody")] == ["1/3", "2/3", "3/3"]
    assert cell.page.find("pre").text.startswith("Model     Sequential")
    assert cell.text.count("epoch ") == 3
    assert cell.messages < 10


def test_lines_and_tables_keep_their_order(cell) -> None:
    display = NotebookDisplay(cell.display)
    for number in (1, 2):
        display.show(f"Phase {number} of 2")
        display.show("cache: <off>")
        display.show("epoch 1/1  loss 0.5", {"epoch": "1/1", "loss": "0.5"})
    display.close()

    assert [block.tag for block in cell.page] == ["pre", "table", "pre", "table"]
    assert cell.page[2].text == "Phase 2 of 2\ncache: <off>"


def test_however_many_lines_the_output_is_drawn_at_the_pace_of_the_bars(cell) -> None:
    display = NotebookDisplay(cell.display)
    for number in range(1000):
        display.show(f"epoch {number}", {"epoch": str(number)})
    assert cell.messages == 1
    display.close()
    assert cell.messages == 2
    (table,) = cell.page.iter("table")
    assert [row[0].text for row in table.find("tbody")] == [str(number) for number in range(980, 1000)]
    assert "... 980 earlier rows" in "".join(cell.page.itertext())
    assert len(cell.text.splitlines()) == 1000


def test_an_unchanged_picture_is_sent_once(cell) -> None:
    display = NotebookDisplay(cell.display)
    bar = Bar("Reading", 10, 5, end=10.0, begun=0.0)
    display.draw([bar], 5.0)
    display.draw([bar], 5.1)
    assert cell.messages == 1
    assert cell.page.find("div/progress").get("value") == "0.5000"
    assert cell.page.find("div/progress").get("aria-label") == "Reading"


def test_a_short_verb_has_no_output(cell) -> None:
    display = NotebookDisplay(cell.display)
    display.draw([Bar("Reading", 10, 5, begun=0.0)], 0.5)
    display.close()
    assert cell.outputs == {}


def test_an_error_leaves_no_bar_hanging(net, blobs, cell) -> None:
    class Broken(Callback):
        def on_step_end(self, run: Any) -> None:
            display.draw([*display._bars], time.monotonic())
            raise KeyboardInterrupt

    display, tuner = NotebookDisplay(cell.display), FineTuner(net(), device="cpu")
    with pytest.raises(KeyboardInterrupt), waits_shown(display=display):
        tuner.fit(blobs(), callbacks=[Broken()])

    assert not list(cell.page.iter("progress"))
    assert len(tuner.fit(blobs(), progress=False)) == 1


def test_colors_are_left_to_the_theme(net, blobs, cell) -> None:
    with waits_shown(display=NotebookDisplay(cell.display)):
        FineTuner(net(), device="cpu").fit(blobs())
    assert not any("color" in (part.get("style") or "") for part in cell.page.iter())


def test_this_process_is_no_notebook() -> None:
    assert notebook() is None


@pytest.mark.parametrize(
    ("shell", "publisher", "found"),
    [
        (None, "", False),  # IPython is imported by a library
        ({}, "DisplayPublisher", False),  # its console
        ({"kernel": object()}, "ZMQDisplayPublisher", True),
        ({"kernel": object()}, "CapturingDisplayPublisher", False),  # %%capture
    ],
)
def test_a_notebook_is_known_by_its_shell(shell, publisher, found, monkeypatch) -> None:
    if shell is not None:
        shell = SimpleNamespace(**shell, display_pub=type(publisher, (), {})())
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", ModuleType("IPython.display"))
    sys.modules["IPython"].get_ipython = lambda: shell
    sys.modules["IPython.display"].display = print
    assert notebook() is (print if found else None)
