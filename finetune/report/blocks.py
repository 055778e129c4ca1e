"""The blocks that the sections of a report consist of. The template has one piece of HTML for each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from finetune.interpret.rows import Rows


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar = "note"

    text: str


@dataclass(frozen=True)
class Facts:
    """Names with a value each."""

    kind: ClassVar = "facts"

    values: Mapping[str, str]


@dataclass(frozen=True)
class Code:
    """Lines to copy.

    Attributes:
        caption: Heading.
        text: The lines.
    """

    kind: ClassVar = "code"

    caption: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table, which a reader can sort by each column and filter if it is long.

    Attributes:
        caption: Heading.
        columns: Names of the columns.
        rows: Cells of each row.
        text: Number of columns of text, which come first. The other columns hold numbers and are aligned right.
        folded: Whether the table is closed at first, as one that repeats the values of a plot.
        plain: Whether the rows keep their order, as those with a total at their end.
    """

    kind: ClassVar = "table"

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1
    folded: bool = False
    plain: bool = False

    @classmethod
    def of(cls, caption: str, rows: Rows[Any], *, folded: bool = False) -> Table:
        """Return the table of all rows.

        Example:
            >>> from finetune.interpret.rows import ConfusedPair
            >>> Table.of("Pairs", Rows([ConfusedPair("cat", "dog", 2, 0.5)])).rows
            [['cat', 'dog', '2', '0.5000']]
        """
        columns, lines, text = rows.cells(None)
        return cls(caption, columns, lines, text, folded)


@dataclass(frozen=True)
class Image:
    """An image within the page.

    Attributes:
        uri: Content as a `data:` address.
        width: Width in CSS pixels.
        height: Height in CSS pixels.
    """

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Plot:
    """A plot in two themes.

    Attributes:
        light: Plot for a light page.
        dark: Plot for a dark page.
        alt: Content of the plot in words.
        caption: Explanation for all readers.
    """

    kind: ClassVar = "plot"

    light: Image
    dark: Image
    alt: str
    caption: str


@dataclass(frozen=True)
class Card:
    """One or more samples with facts about them, such as truth and answer.

    Attributes:
        title: Name of the sample or samples.
        values: Values by name, each as lines.
        images: Images side by side, each with its content in words.
        texts: Samples as texts.
    """

    title: str
    values: Mapping[str, Sequence[str]]
    images: Sequence[tuple[Image, str]] = ()
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Cards:
    """Samples side by side.

    Attributes:
        cards: The samples.
        caption: Heading, or an empty text for none.
    """

    kind: ClassVar = "cards"

    cards: Sequence[Card]
    caption: str = ""

    @property
    def wide(self) -> bool:
        """Whether cards need room, as for two images or a text."""
        return any(len(card.images) != 1 for card in self.cards)


Block = Note | Facts | Code | Table | Plot | Cards


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading.

    Attributes:
        id: Target of links.
        title: Heading.
        blocks: Content.
    """

    id: str
    title: str
    blocks: Sequence[Block]
