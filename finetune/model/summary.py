"""The table a person reads: what is frozen, what trains, how large it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

from rich.console import Console
from rich.table import Table
from torch import nn

from finetune.errors import ArgumentError
from finetune.model.examples import sample_of_size
from finetune.model.freezing import eval_mode
from finetune.model.head_search import undisturbed
from finetune.model.recorder import output_shapes
from finetune.model.stages import stages


@dataclass(frozen=True)
class Row:
    """One stage; `lr` is None where nothing trains it, `shape` that of its output for one sample if asked for."""

    stage: str
    parameters: int
    trainable: int
    lr: float | None
    shape: tuple[int, ...] | None

    @property
    def state(self) -> str:
        """`"frozen"`, `"training"`, or `"partly frozen"`."""
        return {0: "frozen", self.parameters: "training"}.get(self.trainable, "partly frozen")


@dataclass(frozen=True)
class Summary:
    """The stages of a model from the stem to the head. `str()` gives the table."""

    title: str
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """How many numbers the model learns in all."""
        return sum(row.parameters for row in self.rows)

    @property
    def trainable(self) -> int:
        """How many of them train at the present freeze state."""
        return sum(row.trainable for row in self.rows)

    def __str__(self) -> str:
        table = Table(title=self.title, title_justify="left")
        for header in ("stage", "output", "state", "parameters", "trainable", "lr"):
            table.add_column(header, justify="left" if header in ("stage", "output", "state") else "right")
        for row in self.rows:
            shape = "" if row.shape is None else str(list(row.shape))
            rate = "" if row.lr is None else f"{row.lr:.2g}"
            table.add_row(row.stage, shape, row.state, f"{row.parameters:,}", f"{row.trainable:,}", rate)
        table.add_section()
        table.add_row("all", "", "", f"{self.parameters:,}", f"{self.trainable:,}", "")
        page = StringIO()
        # plain text wherever it runs, and names in brackets are no markup
        console = Console(
            file=page, width=110, color_system=None, force_terminal=False, force_jupyter=False, markup=False
        )
        console.print(table)
        return page.getvalue() + "Norm weights and biases take no weight decay; frozen batch norms stay in eval mode."

    __repr__ = __str__


def summarize(
    model: nn.Module,
    head: Iterable[str] = (),
    rates: Mapping[str, float] | None = None,
    input_size: Sequence[int] | None = None,
) -> Summary:
    """Summarise `model` by stages.

    Args:
        rates: the learning rates by stage, where there are any.
        input_size: of one sample; with it, stages have the shape of their output for it.

    Raises:
        ArgumentError: the model does not accept that size.
    """
    shapes = {} if input_size is None else _shapes(model, tuple(input_size))
    parameters = dict(model.named_parameters())
    rows = []
    for stage in stages(model, head):
        own = [parameters[name] for name in stage.parameters]
        count = sum(parameter.numel() for parameter in own)
        trainable = sum(parameter.numel() for parameter in own if parameter.requires_grad)
        rate = (rates or {}).get(stage.name) if trainable else None
        rows.append(Row(stage.name, count, trainable, rate, shapes.get(stage.name)))
    return Summary(type(model).__name__, tuple(rows))


def _shapes(model: nn.Module, input_size: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    with undisturbed(model):
        eval_mode(model)
        try:
            return output_shapes(model, sample_of_size(model, input_size))
        except Exception as error:
            raise ArgumentError(
                f"{type(model).__name__} does not accept an input of size {list(input_size)}: {error}"
            ) from error
