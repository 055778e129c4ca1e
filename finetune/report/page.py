"""The page: sections as HTML with everything inside, which loads nothing and lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from finetune.display.figures import THEMES, Look
from finetune.errors import printable
from finetune.report.blocks import Section

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup


def render(title: str, headline: Mapping[str, str], lead: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the page. All text is escaped.

    Args:
        title: Heading of the page.
        headline: The most important values by name.
        lead: Sentences below the heading.
        sections: Everything else.

    Example:
        >>> page = render("<b>", {"accuracy": "90 %"}, [], [])
        >>> "<b>" in page, "&lt;b&gt;" in page
        (False, True)
    """
    style = _themes() + _text("style.css")
    script = _text("tables.js")
    return _template().render(
        title=title,
        headline=headline,
        lead=lead,
        sections=sections,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined  # takes a while, so only on use

    environment = Environment(
        autoescape=True, finalize=_shown, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    return environment.from_string(_text("page.html"))


def _shown(value: object) -> object:
    """Return text with escapes in the place of control characters. Markup stays as it is."""
    return printable(value) if type(value) is str else value


def _breakable(name: str) -> Markup:
    """Return a name as HTML that may break after a slash or an underline, before a suffix, and between its words."""
    from markupsafe import Markup

    parts = re.split(r"(?<=[/\\_])(?=\w)|(?<=\w)(?=\.[A-Za-z])|(?<=[a-z])(?=[A-Z])", printable(name))
    return Markup("<wbr>").join(parts)


def _text(name: str) -> str:
    return files("finetune.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the hash by which the content security policy of the page allows a style or a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _themes() -> str:
    """Return the colors of the plots as CSS variables. Paper is light."""
    light, dark = (_variables(THEMES[name]) for name in ("light", "dark"))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


def _variables(look: Look) -> str:
    names = ("background", "text", "faint", "grid", "band")
    values = {name: getattr(look, name) for name in names} | {"accent": look.colors[0]}
    return ";".join(f"--{name}:{value}" for name, value in values.items())
