"""One Unicode form for names, because the same letters can be stored in several ways."""

from __future__ import annotations

import unicodedata


def normalized(name: str) -> str:
    """Return `name` in Unicode's composed form (NFC), in which equal names are equal strings.

    macOS decomposes the letters of file names, so that one Korean or accented name exists in two spellings.

    Example:
        >>> normalized("e\N{COMBINING ACUTE ACCENT}") == "\N{LATIN SMALL LETTER E WITH ACUTE}"
        True
    """
    return unicodedata.normalize("NFC", name)
