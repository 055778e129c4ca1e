"""`Finding`: a fault in the data, with its severity, its samples, and the way to mend it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        severity: `"error"`, `"warning"` or `"note"`.
        title: Heading of such findings.
        advice: What to do about one.
    """

    severity: str
    title: str
    advice: str


UNREADABLE, LEAK, CONFLICT, WRONG_LABEL = "unreadable", "leak", "conflicting labels", "wrong label"
DUPLICATE, NEAR_DUPLICATE, CONFUSABLE, OUTLIER = "duplicate", "near duplicate", "confusable classes", "outlier"
BLANK, DARK, BRIGHT, BLURRED, ODD_SIZE = "blank", "dark", "bright", "blurred", "odd size"

# In the order of the report.
KINDS = {
    UNREADABLE: Kind(ERROR, "Unreadable samples", "Replace the file or correct the values, or remove the sample."),
    LEAK: Kind(ERROR, "Leaks: the same sample in training and validation data", "Remove it from one of the two."),
    CONFLICT: Kind(ERROR, "The same sample with different labels", "Keep it once, with the right label."),
    WRONG_LABEL: Kind(WARNING, "Likely wrong labels", "Look at it, and correct the label if it is wrong."),
    BLANK: Kind(WARNING, "Blank pictures", "Remove it, unless a picture without content belongs to its class."),
    DUPLICATE: Kind(WARNING, "Duplicates", "Keep it once: copies count more than other samples."),
    CONFUSABLE: Kind(
        WARNING,
        "Classes that cannot be told apart",
        "Join the two classes, correct their labels, or use a model that sees the difference.",
    ),
    NEAR_DUPLICATE: Kind(NOTE, "Near duplicates", "Keep one of them, or all on the same side of a split."),
    OUTLIER: Kind(NOTE, "Outliers", "Look whether it belongs to the data."),
    DARK: Kind(NOTE, "Dark pictures", "Look whether its content can be seen."),
    BRIGHT: Kind(NOTE, "Overexposed pictures", "Look whether its content can be seen."),
    BLURRED: Kind(NOTE, "Blurred pictures", "Look whether its content can be seen."),
    ODD_SIZE: Kind(NOTE, "Odd sizes", "Look whether it shows the same as others after it is resized and cropped."),
}


@dataclass(frozen=True)
class Finding:
    """A fault in the data.

    Attributes:
        severity: `"error"`, `"warning"` or `"note"`.
        kind: Kind of fault, such as `"leak"` or `"wrong label"`.
        samples: Names of the samples, such as the paths of their files; of confusable classes, examples.
        why: What was found.
        advice: What to do.
        numbers: Numbers of the samples in the checked data, validation data after training data.
        suggestion: Class that a wrong label should rather be, or None.

    Example:
        >>> found = finding("blank", (3,), ("3.png",), "every pixel has the same value")
        >>> found.severity, found.samples
        ('warning', ('3.png',))
    """

    severity: str
    kind: str
    samples: tuple[str, ...]
    why: str
    advice: str = field(repr=False)
    numbers: tuple[int, ...] = field(repr=False)
    suggestion: str | None = field(default=None, repr=False)


def finding(
    kind: str, numbers: tuple[int, ...], samples: tuple[str, ...], why: str, suggestion: str | None = None
) -> Finding:
    """Return a finding with the severity and the advice of its kind."""
    known = KINDS[kind]
    return Finding(known.severity, kind, samples, why, known.advice, numbers, suggestion)
