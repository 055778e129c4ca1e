"""The bars at the bottom of a terminal, as they look."""

from __future__ import annotations

import io
import logging
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from finetune.display.progress.bar import Bar
from finetune.display.progress.terminal_display import TerminalDisplay, can_redraw
from tests.helpers.screen import Screen

ROOT = Path(__file__).resolve().parents[3]


def fit(done: int = 10) -> Bar:
    return Bar("epoch 1/2", 40, done, doing="Training", values=["loss 0.5"], end=60.0, patience=0.0, begun=0.0)


def terminal(width: int = 60, encoding: str = "utf-8", **options: object) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True, newline="")
    return Console(file=file, force_terminal=True, width=width, **{"color_system": "standard", **options})


def screen_of(console: Console) -> Screen:
    return Screen(written(console))


def written(console: Console) -> str:
    return console.file.buffer.getvalue().decode()


def test_the_bars_stay_below_the_lines() -> None:
    console = terminal()
    display = TerminalDisplay(console)
    display.draw([fit(10)], 0.0)
    display.show("one")
    display.draw([fit(20)], 15.0)
    display.show("two")

    screen = screen_of(console)
    assert screen.lines == [
        "one",
        "two",
        "epoch 1/2  ━━━━━━━━━━━━━─────────────  20/40  0:45 left",
        "Training   loss 0.5",
    ]
    assert not screen.cursor_shown
    display.close()
    assert screen_of(console).lines == ["one", "two"]
    assert screen_of(console).cursor_shown


def test_nothing_is_written_before_there_is_a_bar() -> None:
    console = terminal()
    display = TerminalDisplay(console)
    display.draw([], 0.0)
    display.draw([Bar("Checking", begun=0.0)], 0.9)
    display.close()
    assert written(console) == ""


def test_the_same_picture_is_not_drawn_twice() -> None:
    console = terminal()
    display = TerminalDisplay(console)
    display.draw([fit()], 0.0)
    once = written(console)
    display.draw([fit()], 0.2)
    assert written(console) == once
    display.draw([fit()], 1.2)
    assert written(console) != once
    display.close()


def test_a_narrower_terminal_is_noticed() -> None:
    console = terminal()
    display = TerminalDisplay(console)
    display.draw([fit()], 0.0)
    console.width = 32
    display.draw([fit()], 0.0)
    assert screen_of(console).lines == ["epoch 1/2  10/40  1:00 left", "Training  loss 0.5"]
    display.close()


@pytest.mark.parametrize("options", [{"encoding": "ascii"}, {"encoding": "latin-1"}])
def test_another_encoding_gets_plain_signs(options) -> None:
    console = terminal(**options)
    display = TerminalDisplay(console)
    display.draw([fit()], 0.0)
    assert screen_of(console).lines[0] == "epoch 1/2  ######--------------------  10/40  1:00 left"
    display.close()


def test_without_color_the_bar_looks_the_same() -> None:
    shown = []
    for options in ({}, {"no_color": True}, {"color_system": None}):
        console = terminal(**options)
        display = TerminalDisplay(console)
        display.draw([fit()], 0.0)
        shown.append(screen_of(console).lines)
        assert ("\x1b[35m" in written(console)) == (options == {})
        display.close()
    assert shown[0] == shown[1] == shown[2]


def test_names_are_not_read_as_markup() -> None:
    console = terminal()
    display = TerminalDisplay(console)
    display.draw([Bar("[red]mine[/red]", 4, 1, begun=0.0)], 2.0)
    display.show("[red]yours[/red] :dog:")
    assert screen_of(console).lines[0] == "[red]yours[/red] :dog:"
    assert screen_of(console).lines[1].startswith("[red]mine[/red]  ")
    display.close()


def test_records_of_logging_appear_above_the_bars(monkeypatch) -> None:
    """A handler keeps the stream that it was made with, which would write into the bars."""
    console = terminal()
    monkeypatch.setattr(sys, "stderr", console.file)
    handler = logging.StreamHandler()
    logging.getLogger("finetune").addHandler(handler)
    try:
        display = TerminalDisplay(console)
        display.draw([fit()], 0.0)
        handler.emit(logging.makeLogRecord({"msg": "careful"}))
        lines = screen_of(console).lines
        display.close()
        assert handler.stream is console.file
    finally:
        logging.getLogger("finetune").removeHandler(handler)
    assert lines[0] == "careful"
    assert lines[1].startswith("epoch 1/2")
    assert len(lines) == 3


def test_what_can_redraw(monkeypatch, tmp_path) -> None:
    reader, writer = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with open(writer, "w") as screen, open(reader), (tmp_path / "log").open("w") as file:
        assert can_redraw(screen)
        assert not can_redraw(file)
        assert not can_redraw(None)
        monkeypatch.setenv("TERM", "dumb")
        assert not can_redraw(screen)
    assert not can_redraw(file)


SCRIPT = """
import time, tests.helpers.lean
import torch
from finetune import FineTuner
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, i):
        time.sleep(0.005)
        return torch.zeros(3), i % 2
FineTuner(torch.nn.Linear(3, 2), device="cpu").fit(Slow(), epochs=500, batch_size=1)
"""


def read_until(reader: int, text: bytes | None, seconds: float = 60.0) -> bytes:
    """Return what a terminal receives until a text comes, or with None, until its other end is closed."""
    output, end = b"", time.monotonic() + seconds
    while text is None or text not in output:
        assert select.select([reader], [], [], end - time.monotonic())[0], output
        try:
            output += os.read(reader, 65536)
        except OSError:  # closed at the other end
            assert text is None, output
            break
    return output


def test_an_interrupt_leaves_the_terminal_as_it_was() -> None:
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdin": writer, "stdout": writer, "stderr": writer}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, **streams) as process:
        os.close(writer)
        try:
            output = read_until(reader, b"  lr ")
            assert not Screen(output.decode(errors="ignore")).cursor_shown
            process.send_signal(signal.SIGINT)
            output += read_until(reader, None)
        finally:
            process.kill()
    os.close(reader)

    screen = Screen(output.decode())
    assert screen.cursor_shown
    assert screen.lines[-1] == "KeyboardInterrupt"
    assert not any("━" in line or "─" in line for line in screen.lines)
