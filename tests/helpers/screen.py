"""A terminal's screen, for the few control codes that a live display uses."""

from __future__ import annotations

import re

_PARTS = re.compile(r"\x1b\[(\??)(\d*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    """What a terminal shows after some output.

    Args:
        output: Text with control codes.
    """

    def __init__(self, output: str) -> None:
        self.cursor_shown = True
        self._lines, self._row, self._column = [""], 0, 0
        for private, number, command, move, text in _PARTS.findall(output):
            if text:
                self._write(text)
            elif move:
                self._row, self._column = self._row + (move == "\n"), 0
                self._lines += [""] * (self._row + 1 - len(self._lines))
            elif private:
                self.cursor_shown = command == "h"
            elif command == "A":
                self._row -= int(number or 1)
            elif command == "K":
                assert number == "2"
                self._lines[self._row] = ""
            else:
                assert command == "m", f"unknown control code {command}"

    def _write(self, text: str) -> None:
        line = self._lines[self._row].ljust(self._column)
        self._lines[self._row] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)

    @property
    def lines(self) -> list[str]:
        """Lines without those at the end that are empty."""
        shown = [line.rstrip() for line in self._lines]
        while shown and not shown[-1]:
            shown.pop()
        return shown
