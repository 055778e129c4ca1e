"""HTML pages, read as a strict reader would."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"img", "input", "link", "meta", "source"}


class Page(HTMLParser):
    """The tags and the text of a page.

    Attributes:
        tags: Name and attributes of each tag, in their order.
        texts: Text by the innermost tag.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text.replace("<wbr>", ""))  # a place where a word may break
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"a <{tag}> has an attribute twice"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of all tags of a name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def said(self, *tags: str) -> list[str]:
        """Return the texts in tags of these names; in all tags but styles and scripts without names."""
        return [text for tag, text in self.texts if (tag in tags if tags else tag not in ("style", "script"))]

    def faults(self) -> Iterator[str]:
        """Yield whatever would trouble a reader with a keyboard or a screen reader, or needs a network."""
        names = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        yield from (f"the id {name!r} twice" for name in {*names} if names.count(name) > 1)
        for tag, attributes in self.tags:
            for reference in ("href", "aria-labelledby"):
                target = attributes.get(reference, "").removeprefix("#")
                if target and target != "data:," and target not in names:
                    yield f"{reference} to {target!r}, which does not exist"
            for source in ("src", "srcset"):
                if not attributes.get(source, "data:image/").startswith("data:image/"):
                    yield f"<{tag} {source}={attributes[source][:40]}>"
            if "style" in attributes or any(name.startswith("on") for name in attributes):
                yield f"<{tag}> with a style or a script of its own"
            if tag == "img" and not attributes.get("alt"):
                yield "an image without a description"
            if tag == "th" and attributes.get("scope") not in ("row", "col"):
                yield "a header cell without a scope"
        levels = [int(tag[1]) for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]
        if levels[:1] != [1] or levels.count(1) != 1 or any(b - a > 1 for a, b in pairwise(levels)):
            yield f"headings in the order {levels}"
        if len(self.all("table")) != len(self.all("caption")):
            yield "a table without a caption"
        if not self.all("html")[0].get("lang") or not self.said("title"):
            yield "no language or no title"
