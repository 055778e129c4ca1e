"""Which columns of a table or data set hold the input, by their usual names and what is in them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from finetune.data.sources.base import label_key_of
from finetune.data.sources.files import is_raw_file

log = logging.getLogger("finetune")

PATH_KEYS = (
    "path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path", "imagepath",
    "img", "img_path", "image_file", "picture", "images", "paths", "files", "audio", "audio_path", "wav",
)  # fmt: skip

TEXT_KEYS = (
    "text", "sentence", "review", "content", "comment", "tweet", "message", "document", "article", "headline",
    "utterance", "question", "query", "texts", "sentences", "description", "body", "title",
)  # fmt: skip

PAIR_KEYS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"),
    ("text_a", "text_b"), ("question", "sentence"), ("question", "context"), ("question", "passage"),
    ("query", "passage"), ("query", "document"),
)  # fmt: skip


def text_columns(first: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the column of texts, or the two columns of a pair of texts; none where it cannot be told.

    They are found by their usual names, or are the only column of strings beside the label.

    Args:
        first: the first cell of each column.
    """
    strings = {name.lower(): name for name, cell in first.items() if isinstance(cell, str)}
    label = label_key_of(strings)
    named = [key for key in TEXT_KEYS if key in strings]
    pair = next((pair for pair in PAIR_KEYS if set(pair) <= strings.keys()), None)
    if pair is not None and "text" not in strings:
        return strings[pair[0]], strings[pair[1]]
    others = [key for key, name in strings.items() if key not in (label, *PATH_KEYS) and not is_raw_file(first[name])]
    found = named[:1] or (others if len(others) == 1 else [])
    unused = [strings[key] for key in others if key not in found]
    if found and unused:
        others_named = ", ".join(map(repr, unused))
        log.warning("The texts are those of the column %r; not read: %s.", strings[found[0]], others_named)
    return tuple(strings[key] for key in found)
