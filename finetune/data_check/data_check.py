"""`DataCheck`: the findings in some data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data_check import findings as kinds
from finetune.data_check import page
from finetune.data_check.findings import Finding
from finetune.data_check.samples.places import Places
from finetune.display.records import as_frame, write_csv, write_jsonl
from finetune.interpret.rows import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("finding", "severity", "kind", "part", "sample", "why", "suggestion", "advice")


class DataCheck:
    """Findings in training and validation data. `print` shows them by severity, and a notebook also the images.

    Args:
        findings: The findings, the most severe first.
        places: The samples.
        checked: Names of the checks that were made.
        left_out: Names of the checks that were left out, with the reasons.

    Attributes:
        findings: The findings, the most severe first.
        places: The samples by number, which names them.
        checked: Names of the checks that were made.
        left_out: Names of the checks that were left out, with the reasons.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> X, y = torch.randn(60, 4), torch.arange(60) % 2
        >>> X[7] = X[30]
        >>> check = FineTuner(torch.nn.Linear(4, 2), device="cpu").check_data((X, y))
        >>> check.conflicts[0].samples
        ('sample 7', 'sample 30')
        >>> check.conflicts[0].why
        "identical, but labeled '1', '0'"
    """

    def __init__(
        self, findings: Iterable[Finding], places: Places, checked: tuple[str, ...], left_out: tuple[str, ...] = ()
    ) -> None:
        self.findings = Rows(findings)
        self.places = places
        self.checked = checked
        self.left_out = left_out

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        return True  # also without findings

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} findings)"

    def __str__(self) -> str:
        return page.to_text(self)

    def _repr_html_(self) -> str:
        return page.to_html(self)

    # ------------------------------------------------------------------ findings by kind

    @property
    def errors(self) -> Rows[Finding]:
        """Findings that spoil training or its evaluation: unreadable samples, leaks, and contradicting labels."""
        return Rows(each for each in self.findings if each.severity == kinds.ERROR)

    @property
    def unreadable(self) -> Rows[Finding]:
        """Samples that cannot be read, or have values that are not finite."""
        return self._of(kinds.UNREADABLE)

    @property
    def leaks(self) -> Rows[Finding]:
        """Groups of equal or nearly equal samples in training and validation data."""
        return self._of(kinds.LEAK)

    @property
    def conflicts(self) -> Rows[Finding]:
        """Groups of equal or nearly equal samples with different labels."""
        return self._of(kinds.CONFLICT)

    @property
    def duplicates(self) -> Rows[Finding]:
        """Groups of equal samples, then of nearly equal ones, within one part of the data and with one label."""
        return self._of(kinds.DUPLICATE, kinds.NEAR_DUPLICATE)

    @property
    def wrong_labels(self) -> Rows[Finding]:
        """Samples whose labels are likely wrong, the surest first, with the class that fits as `suggestion`."""
        return self._of(kinds.WRONG_LABEL)

    @property
    def confusable(self) -> Rows[Finding]:
        """Pairs of classes that cannot be told apart, with examples of each."""
        return self._of(kinds.CONFUSABLE)

    @property
    def outliers(self) -> Rows[Finding]:
        """Samples that are far from all others, the farthest first."""
        return self._of(kinds.OUTLIER)

    @property
    def poor_pictures(self) -> Rows[Finding]:
        """Pictures that are blank, dark, overexposed, blurred, or of an odd size or shape."""
        return self._of(kinds.BLANK, kinds.DARK, kinds.BRIGHT, kinds.BLURRED, kinds.ODD_SIZE)

    def _of(self, *names: str) -> Rows[Finding]:
        return Rows(each for each in self.findings if each.kind in names)

    # ------------------------------------------------------------------ forms

    def to_text(self) -> str:
        """Return all findings as text. `print` shows the first ones of each kind.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> X, y = torch.randn(60, 4), torch.arange(60) % 2
            >>> text = FineTuner(torch.nn.Linear(4, 2), device="cpu").check_data((X, y)).to_text()
            >>> text.splitlines()[0].startswith("Checked 60 training samples")
            True
        """
        return page.to_text(self, None)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a dict per finding and sample, as the rows of `to_csv`.

        Its keys are `finding`, a number that the samples of one finding share, `severity`, `kind`, `part`, `sample`,
        `why`, `suggestion` and `advice`.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> X = torch.randn(60, 4)
            >>> check = FineTuner(torch.nn.Linear(4, 2), device="cpu").check_data((X, X[:, 0] > 9), (X[:1], [0]))
            >>> [(row["part"], row["sample"]) for row in check.to_dicts() if row["kind"] == "leak"]
            [('training', 'sample 0'), ('validation', 'sample 0')]
        """
        return [
            {
                "finding": place,
                "severity": each.severity,
                "kind": each.kind,
                "part": self._part(number),
                "sample": sample,
                "why": each.why,
                "suggestion": each.suggestion or "",
                "advice": each.advice,
            }
            for place, each in enumerate(self.findings, 1)
            for number, sample in zip(each.numbers, each.samples, strict=True)
        ]

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows of `to_dicts` to a CSV file.

        Args:
            path: File to write.

        Returns:
            The path of the file.

        Raises:
            ArgumentError: If the file cannot be written. An existing file stays intact.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> check = FineTuner(torch.nn.Linear(4, 2)).check_data((torch.zeros(60, 4), torch.arange(60) % 2))
            >>> check.to_csv("findings.csv").read_text().splitlines()[1].split(",")[:5]
            ['1', 'error', 'conflicting labels', 'training', 'sample 0']
        """
        return write_csv(path, self.to_dicts(), _COLUMNS)

    def to_jsonl(self, path: str | Path) -> Path:
        """Write a line of JSON per finding, with the names of its samples in a list.

        Args:
            path: File to write.

        Returns:
            The path of the file.

        Raises:
            ArgumentError: If the file cannot be written. An existing file stays intact.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> check = FineTuner(torch.nn.Linear(4, 2)).check_data((torch.zeros(60, 4), torch.arange(60) % 2))
            >>> check.to_jsonl("findings.jsonl").read_text()[:46]
            '{"severity": "error", "kind": "conflicting lab'
        """
        return write_jsonl(path, map(asdict, self.findings))

    def to_pandas(self) -> Any:
        """Return the rows of `to_dicts` as a DataFrame of pandas.

        Raises:
            ArgumentError: If pandas is not installed.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> check = FineTuner(torch.nn.Linear(4, 2)).check_data((torch.zeros(60, 4), torch.arange(60) % 2))
            >>> len(check.to_pandas())
            60
        """
        return as_frame(self.to_dicts())

    def plot(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot the first findings of each kind as a sheet of images or texts; others by their names.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
            >>> data = torch.rand(60, 3, 4, 4), torch.arange(60) % 2
            >>> figure = FineTuner(model, device="cpu").check_data(data).plot("findings.png")
        """
        from finetune.interpret.plots.sheet import draw_sheet

        return draw_sheet(list(page.to_sections(self)), page.summary(self)[0].rstrip("."), path, theme)

    def _part(self, number: int) -> str:
        return "training" if number < len(self.places.sources[0]) else "validation"
