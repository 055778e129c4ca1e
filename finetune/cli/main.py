"""`main`: runs the command line, and turns errors into one line and an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from typing import Annotated, TextIO

import typer

from finetune.cli.apply import evaluate, export, gather, interpret, predict, push, report, serve, verify
from finetune.cli.explore import advise, check_data, compare, demo, find_lr, summary
from finetune.cli.train import train
from finetune.display.options import in_options
from finetune.distributed.launch import speaks
from finetune.errors import FineTuneError
from finetune.signals.stops import exit_on_sigterm

app = typer.Typer(
    help="Transfer learning for PyTorch: fine-tune a pretrained model on your data.",
    rich_markup_mode=None,  # plain help fits 80 columns, where boxes leave 18 for the text
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    train, evaluate, predict, interpret, report, export, gather, push, serve, verify, summary, check_data, advise,
    find_lr, compare, demo,
):  # fmt: skip
    app.command()(command)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"finetune {installed_version('torch-finetune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


# typer's usage error. The package that defines it differs between versions of typer.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. This is the entry point of the script `finetune`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with exit_on_sigterm(), _lines_on_standard_error():
            code = app(arguments or ["--help"], standalone_mode=False, obj=arguments)
    except (FineTuneError, _UsageError) as error:
        message = getattr(error, "format_message", error.__str__)  # typer's names the option, its str does not
        if speaks():
            print(f"finetune: {in_options(' '.join(message().split()))}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    if code:  # newer versions of typer return 130 for an interrupt instead of raising
        sys.exit(code)


@contextmanager
def _lines_on_standard_error() -> Iterator[None]:
    """Log lines to standard error, unless logging has been configured. Afterwards it is as before."""
    root, own = logging.getLogger(), logging.getLogger("finetune")
    level, handlers = own.level, [] if root.handlers else [_StandardError()]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(handler)
    own.setLevel(logging.INFO)
    try:
        yield
    finally:
        own.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)


class _StandardError(logging.StreamHandler[TextIO]):
    """Handler for standard error as it is now, which rich replaces while it draws a bar there.

    Lines name options instead of arguments.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        return in_options(super().format(record))
