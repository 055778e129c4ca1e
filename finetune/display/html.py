"""HTML for notebooks, without colors of its own, so that it suits a light and a dark theme."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, text: int = 1, caption: str = "") -> str:
    """Return an HTML table.

    Args:
        header: Names of the columns.
        rows: Cells of each row.
        text: Number of columns of text, which come first. The other columns hold numbers and are aligned right.
        caption: Heading above the table.

    Example:
        >>> table(["epoch", "loss"], [["1", "0.5"]]).count("<td")
        2
    """
    head = "".join(_cell("th", name, column >= text) for column, name in enumerate(header))
    body = "".join(
        f"<tr>{''.join(_cell('td', cell, column >= text) for column, cell in enumerate(row))}</tr>" for row in rows
    )
    above = paragraph(caption, strong=True) if caption else ""
    return f"{above}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def paragraph(*lines: str, strong: bool = False) -> str:
    """Return lines of text as one paragraph."""
    joined = "<br/>".join(escape(line) for line in lines)
    return f"<p>{f'<strong>{joined}</strong>' if strong else joined}</p>"


def image(png: bytes, description: str) -> Markup:
    """Return an image for a cell, with its content in the page.

    Args:
        png: Content of a PNG file.
        description: Text for those who do not see it.

    Example:
        >>> image(b"", "a dog")
        '<img src="data:image/png;base64," alt="a dog"/>'
    """
    return Markup(f'<img src="{data_uri(png)}" alt="{escape(description)}"/>')


def data_uri(content: bytes, kind: str = "png") -> str:
    """Return the content of an image file as an address that holds it.

    Args:
        content: Content of the file.
        kind: Subtype of its media type, such as `"svg+xml"`.

    Example:
        >>> data_uri(b"abc")
        'data:image/png;base64,YWJj'
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


class Markup(str):
    """HTML, which is not escaped again."""

    __slots__ = ()


def _cell(tag: str, content: object, right: bool) -> str:
    shown = content if isinstance(content, Markup) else escape(str(content))
    return f'<{tag} style="padding: 0 0.5em; text-align: {"right" if right else "left"}">{shown}</{tag}>'
