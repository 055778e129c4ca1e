"""`python -m finetune` is the command line."""

from finetune.cli import main

main()
