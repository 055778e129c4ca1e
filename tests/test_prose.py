"""Prose is plain: the docstrings and comments of the package use nouns of the field, and no clause in their place."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "finetune"
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]

# Occurrences of "what" per 1,000 words. Eleven projects of the field have 0.0 to 0.7.
LIMIT = 1.5


@cache
def docstrings(source: str) -> tuple[str, ...]:
    """Return the docstrings of a module, also those under attributes."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                found.append(text)
    return tuple(found)


def comments(source: str) -> Iterator[str]:
    """Yield the comments of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# ")


def messages(source: str) -> Iterator[str]:
    """Yield the string literals with a space in them: errors, logs, tables and help."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)) if " " in text.strip():
                yield text


def frequency(texts: list[str]) -> float:
    """Return the number of times that "what" stands in 1,000 words."""
    words = re.findall(r"[a-z']+", " ".join(texts).lower())
    return 1000 * words.count("what") / max(1, len(words))


def sources() -> Iterator[tuple[str, str]]:
    """Yield the name and the source of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def faults(docstring: str) -> list[str]:
    """Return the sentences of a docstring that break a rule."""
    found = re.findall(r"\btells? whether\b.*", docstring, re.IGNORECASE)
    return found + re.findall(r"^ +\w+: of\b.*", docstring, re.MULTILINE | re.IGNORECASE)


def test_docstrings_and_comments_name_things() -> None:
    texts = [text for _, source in sources() for text in (*docstrings(source), *comments(source))]
    assert sum(len(text.split()) for text in texts) > 10_000
    assert frequency(texts) < LIMIT


def test_messages_name_things() -> None:
    assert frequency([text for _, source in sources() for text in messages(source)]) < LIMIT


def test_pages_name_things() -> None:
    assert frequency([page.read_text(encoding="utf-8") for page in PAGES]) < LIMIT


def test_extras_are_quoted_for_every_shell() -> None:
    bare = re.compile(r"install torch-finetune\[")  # which zsh takes for a pattern
    assert [path for path in [*PACKAGE.rglob("*.py"), *PAGES] if bare.search(path.read_text("utf-8"))] == []


def test_docstrings_follow_the_rules() -> None:
    found = [f"{name}: {fault}" for name, source in sources() for text in docstrings(source) for fault in faults(text)]
    assert not found, "\n".join(found)


def test_raises_entries_are_sentences() -> None:
    """`Raises:` entries are sentences that begin with a condition, such as "DataError: If the folder is empty."."""
    found = [
        f"{name}: {entry}"
        for name, source in sources()
        for text in docstrings(source)
        for section in re.findall(r"^ *Raises:\n((?: +.*\n?)+)", text, re.MULTILINE)
        for entry in re.findall(r"^ +[A-Z]\w+Error: [a-z].*", section, re.MULTILINE)
    ]
    assert not found, "\n".join(found)


def test_the_rules_see_what_they_forbid() -> None:
    assert frequency(["What trains is what is not frozen."]) > 250
    assert frequency(["whatever somewhat"]) == 0
    assert faults("Tell whether the model is compiled.")
    assert faults("Args:\n    seed: of everything random.")
    assert not faults("Args:\n    seed: Seed for every random choice.\n\nTuple of tensors.")
    assert list(comments("x = 1  # why")) == ["why"]
    assert list(docstrings('"""A."""\nx = 1\n"""B."""\n')) == ["A.", "B."]
    assert list(messages("raise ValueError('no such name')\ny = 'name'")) == ["no such name"]
