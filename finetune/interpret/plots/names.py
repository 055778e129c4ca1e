"""Names of classes and samples in plots."""

from __future__ import annotations

from finetune.display.figures import plain, shortened
from finetune.errors import printable


def shown(name: str, width: int = 24) -> str:
    """Return a name on one line of at most `width` characters, with both of its ends and without formulas.

    Example:
        >>> print(shown("soft-coated wheaten terrier, $5", 16))
        soft-coa…ier, \\$5
    """
    return plain(shortened(" ".join(printable(name).split()), width))
