"""Names of classes and samples in plots."""

from __future__ import annotations

from finetune.errors import printable


def shown(name: str, width: int = 24) -> str:
    """Return a name on one line of at most `width` characters, with both of its ends and without formulas.

    Example:
        >>> print(shown("soft-coated wheaten terrier, $5", 16))
        soft-coa…ier, \\$5
    """
    line = " ".join(printable(name).split())
    if len(line) > width:
        line = f"{line[: width // 2]}…{line[len(line) - (width - 1) // 2 :]}"
    return line.replace("$", r"\$")
