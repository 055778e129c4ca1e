"""Command line: `finetune train` and the other commands, which `finetune --help` lists.

A usage error prints one line to the standard error stream and exits with code 2. SIGINT exits with code 130,
and SIGTERM with 143.
Commands import the library when they run, so that `--help` and usage errors answer without loading PyTorch.
"""

from finetune.cli.main import main

__all__ = ["main"]
