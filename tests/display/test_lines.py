"""Lines for the user: each is said once, wherever the user listens."""

from __future__ import annotations

import io
import logging
import pty
import sys
from pathlib import Path

import pytest

from finetune.display.lines import line_width, lines_shown, log, print_line, wrapped


@pytest.fixture
def logger() -> logging.Logger:
    """Return a logger of a hierarchy of its own, to which pytest adds no handler."""
    return logging.Manager(logging.RootLogger(logging.WARNING)).getLogger("finetune")


def said(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> str:
    with lines_shown(logger=logger):
        logger.info("a line")
        logger.debug("a detail")
    return capsys.readouterr().out


def handler(level: int = logging.NOTSET) -> logging.StreamHandler[io.StringIO]:
    made = logging.StreamHandler(io.StringIO())
    made.setLevel(level)
    return made


def test_a_line_is_printed_if_logging_is_not_configured(logger, capsys) -> None:
    assert said(logger, capsys) == "a line\n"
    assert logger.level == logging.NOTSET
    assert not logger.filters


def test_nothing_is_printed_outside_of_the_context(logger, capsys) -> None:
    said(logger, capsys)
    logger.info("later")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("above", [True, False])
def test_a_line_that_a_handler_shows_is_not_printed(above: bool, logger, capsys) -> None:
    shown = handler()
    (logger.parent if above else logger).addHandler(shown)
    logger.setLevel(logging.INFO)

    assert said(logger, capsys) == ""
    assert shown.stream.getvalue() == "a line\n"


@pytest.mark.parametrize(("level", "of_handler"), [(logging.WARNING, 0), (logging.INFO, logging.WARNING)])
def test_a_line_below_the_level_is_printed_and_kept_from_the_handler(level: int, of_handler: int, logger, capsys):
    shown = handler(of_handler)
    logger.addHandler(shown)
    logger.setLevel(level)

    assert said(logger, capsys) == "a line\n"
    assert shown.stream.getvalue() == ""


def test_a_line_that_goes_to_a_file_is_also_printed(logger, tmp_path: Path, capsys) -> None:
    file = logging.FileHandler(tmp_path / "log")
    logger.addHandler(file)
    logger.setLevel(logging.INFO)

    assert said(logger, capsys) == "a line\n"
    file.close()
    assert (tmp_path / "log").read_text() == "a line\n"


def test_a_raised_level_is_silent(logger, capsys, monkeypatch) -> None:
    monkeypatch.setattr(log, "level", logging.WARNING)
    assert said(logger, capsys) == ""


def test_a_disabled_level_is_silent(logger, capsys) -> None:
    logger.manager.disable = logging.INFO
    assert said(logger, capsys) == ""


def test_warnings_take_their_usual_way(logger, capsys) -> None:
    shown = handler()
    logger.addHandler(shown)
    logger.setLevel(logging.WARNING)
    with lines_shown(logger=logger):
        logger.warning("careful")
    assert (capsys.readouterr().out, shown.stream.getvalue()) == ("", "careful\n")


@pytest.mark.parametrize(("columns", "width"), [("60", 59), ("300", 110), ("20", 40)])
def test_lines_fit_a_terminal(columns: str, width: int, monkeypatch) -> None:
    assert line_width() == 110  # not a terminal
    reader, writer = pty.openpty()
    with open(reader), open(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("COLUMNS", columns)
        assert line_width() == width


EPOCH = "epoch 10/12  loss 0.3982  accuracy 0.8090  val_loss 0.4939  val_accuracy 0.7500  2.8 s, 181 samples/s"


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ("80", [EPOCH[: EPOCH.index("  2.8 s")], "    2.8 s, 181 samples/s"]),
        (
            "50",
            [
                EPOCH[: EPOCH.index("  val_loss")],
                "    val_loss 0.4939  val_accuracy 0.7500",
                "    2.8 s, 181 samples/s",
            ],
        ),
        ("300", [EPOCH]),
    ],
)
def test_a_long_line_breaks_between_its_values_on_a_terminal(columns: str, rows: list[str], monkeypatch) -> None:
    reader, writer = pty.openpty()
    with open(reader) as shown, open(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("COLUMNS", columns)
        print_line(EPOCH)
        assert [shown.readline().rstrip() for _ in rows] == rows


def test_a_long_line_is_whole_in_a_file(capsys) -> None:
    print_line(EPOCH * 3)
    assert capsys.readouterr().out == f"{EPOCH * 3}\n"


def test_a_sentence_breaks_between_words_and_never_within_one() -> None:
    rows = wrapped("cache: off, because of a/very-long/path.jpg", 20).splitlines()
    assert rows == ["cache: off, because", "    of", "    a/very-long/path.jpg"]
