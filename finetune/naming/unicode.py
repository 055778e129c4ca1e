"""One Unicode form for names, because the same letters can be stored in several ways."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_INVISIBLE = re.compile("[\u200b\u200e\u200f\u2060\ufeff\xad]")


def normalized(name: str) -> str:
    """Return `name` in Unicode's composed form (NFC) and without what nobody sees, so that equal names are equal.

    macOS decomposes the letters of file names, so that one Korean or accented name exists in two spellings. Cells that
    were copied may end in spaces, and hold zero-width ones.

    Example:
        >>> normalized("e\N{COMBINING ACUTE ACCENT}") == "\N{LATIN SMALL LETTER E WITH ACUTE}"
        True
        >>> normalized("cat\xa0")
        'cat'
    """
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", name)).strip()


def cleaned(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return names as in `normalized`, and those whose spaces or invisible characters this removes, each once.

    Example:
        >>> cleaned(["cat", "cat ", "dog"])
        (['cat', 'cat', 'dog'], ['cat '])
    """
    forms = {name: normalized(name) for name in dict.fromkeys(names)}
    changed = [name for name, form in forms.items() if form != unicodedata.normalize("NFC", name)]
    return [forms[name] for name in names], changed
