"""All checks of the data, one after the other, with the reasons for those that are left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from torch import Tensor

from finetune.data.preprocessing.base import SOUND, TEXT
from finetune.data.sources.base import Source, type_name
from finetune.data_check import duplicates, findings, image_quality, label_errors
from finetune.data_check.data_check import DataCheck
from finetune.data_check.findings import Finding, finding
from finetune.data_check.neighbors import directions, nearest_neighbors
from finetune.data_check.outliers import outliers
from finetune.data_check.samples.inspected import Inspected
from finetune.data_check.samples.observed import problem
from finetune.data_check.samples.places import Places
from finetune.errors import DataError
from finetune.interpret.page import samples
from finetune.signals.stops import interruptible

_NEIGHBORS = 10
_EXAMPLES = 2  # samples of each of two classes that are alike
_FEWEST = 2  # samples per class on average


def check_indexed(sources: Sequence[Source]) -> None:
    """Check that samples have numbers, by which findings name them.

    Raises:
        DataError: If the data is a stream or a loader.
    """
    for source in sources:
        if not source.indexed:
            what = type_name(getattr(source, "iterable", source)).rsplit(".", 1)[1]
            raise DataError(
                f"The data is read as a stream ({what}), whose samples have no numbers, so no finding could name them. "
                f"Expected a folder, a table, arrays or a map-style dataset. Of a DataLoader, pass its dataset."
            )


@interruptible()
def run_checks(data: Inspected) -> DataCheck:
    """Return everything that is found in the data."""
    report = _Report(data.places)
    usable = data.usable
    if not len(usable):
        raise DataError("The features of the model are NaN or infinite for every sample. Check its weights.")
    _check_readable(data, report)
    distances, neighbors = nearest_neighbors(directions(data.features[usable]), _NEIGHBORS)
    _check_duplicates(data, usable, distances, neighbors, report)
    _check_labels(data, usable, neighbors, report)
    report.checked.append("outliers")
    for row, times in outliers(distances):
        why = f"its features are {times:.1f} times farther from the nearest others than usual"
        report.add(findings.OUTLIER, [int(usable[row])], why)
    _check_pictures(data, report)
    return report.result()


@dataclass
class _Report:
    """Findings so far."""

    places: Places
    found: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, kind: str, numbers: Sequence[int], why: str, suggestion: str | None = None) -> None:
        names = tuple(map(self.places.name, numbers))
        self.found.append(finding(kind, tuple(numbers), names, why, suggestion))

    def result(self) -> DataCheck:
        order = list(findings.KINDS)
        ordered = sorted(self.found, key=lambda each: order.index(each.kind))
        return DataCheck(ordered, self.places, tuple(self.checked), tuple(self.left_out))


def _check_readable(data: Inspected, report: _Report) -> None:
    report.checked.append("unreadable samples")
    for number in (~data.readable).nonzero().flatten().tolist():
        reason = problem(*data.places.place(number), data.preprocessing)
        report.add(findings.UNREADABLE, [number], reason or "it has values that are NaN or infinite")
    for number in (~data.labeled).nonzero().flatten().tolist():
        report.add(findings.UNREADABLE, [number], "its target is NaN or infinite")
    strange = data.readable.clone()
    strange[data.usable] = False
    for number in strange.nonzero().flatten().tolist():
        report.add(findings.UNREADABLE, [number], "the features of the model are NaN or infinite for it")


def _check_duplicates(data: Inspected, usable: Tensor, distances: Tensor, neighbors: Tensor, report: _Report) -> None:
    facts = {name: values[usable] for name, values in data.facts.items()}
    report.checked.append("duplicates")
    if data.shows_pictures:
        pairs = duplicates.near_pictures(facts, distances, neighbors)
    elif data.kind == TEXT:
        pairs = duplicates.near_texts(lambda row: data.places.text(int(usable[row])), neighbors)
    else:
        pairs = []
    if data.shows_pictures or data.kind == TEXT:
        report.checked.append("near duplicates")
    else:
        kind = "sounds" if data.kind == SOUND else "inputs that are neither pictures nor texts"
        report.left_out.append(f"near duplicates of {kind}")
    if len(data.places.sources) > 1:
        report.checked.append("leaks between training and validation data")
    else:
        report.left_out.append("leaks, for lack of validation data")
    for group in duplicates.groups_of(facts["key"], pairs, range(len(usable))):
        numbers = [int(usable[row]) for row in group.members]
        for kind, ordered, why in _kinds_of(data, numbers, group.exact):
            report.add(kind, ordered, why)


def _kinds_of(data: Inspected, numbers: Sequence[int], exact: bool) -> Iterator[tuple[str, Sequence[int], str]]:
    """Yield the kinds of finding that a group of samples with the same content is, each with its samples and reason."""
    how = "identical" if exact else "nearly identical"
    labels = [] if data.labels is None else [data.places.class_name(label) for label in data.labels[numbers].tolist()]
    parts = data.parts[numbers].tolist()
    if len({*parts}) > 1:
        yield findings.LEAK, _one_of_each_first(numbers, parts), how
    elif len({*labels}) <= 1:
        yield findings.DUPLICATE if exact else findings.NEAR_DUPLICATE, numbers, how
    if len({*labels}) > 1:
        why = f"{how}, but labeled {', '.join(map(repr, dict.fromkeys(labels)))}"
        yield findings.CONFLICT, _one_of_each_first(numbers, labels), why


def _one_of_each_first(numbers: Sequence[int], groups: Sequence[object]) -> list[int]:
    """Return the first sample of each group and then the others, because pages show only the first samples."""
    first = dict(zip(reversed(groups), reversed(numbers), strict=True)).values()
    return [*sorted(first), *(number for number in numbers if number not in first)]


def _check_labels(data: Inspected, usable: Tensor, neighbors: Tensor, report: _Report) -> None:
    reason = _unlabeled(data)
    if reason is not None:
        report.left_out.append(f"wrong labels and classes that cannot be told apart: {reason}")
        return
    assert data.labels is not None
    labeled = data.labels[usable] >= 0
    rows = labeled.nonzero().flatten()
    known, labels = data.labels[usable[rows]].unique(return_inverse=True)
    if len(known) < 2 or len(labels) < _FEWEST * len(known):
        report.left_out.append("wrong labels: there are fewer than two classes, or two samples per class")
        return
    if not labeled.all():
        report.left_out.append(f"labels of {samples(int((~labeled).sum()))} without a class")
        _, neighbors = nearest_neighbors(directions(data.features[usable[rows]]), _NEIGHBORS)
    probe = label_errors.cleaned_probe(data.features[usable[rows]], labels)
    if not probe.beats_guessing(labels):
        report.left_out.append(
            "wrong labels: a probe on the features of the model is hardly better than guessing; a model that is "
            "pretrained or trained would see more"
        )
        return
    report.checked += ["wrong labels", "classes that cannot be told apart"]
    names = [data.places.class_name(label) for label in known.tolist()]
    for wrong in label_errors.wrong_labels(probe, labels, neighbors):
        given, rather = names[int(labels[wrong.row])], names[wrong.suggested]
        why = f"labeled {given!r}, looks like {rather!r} (probability {wrong.probability:.2f})"
        report.add(findings.WRONG_LABEL, [int(usable[rows[wrong.row]])], why, rather)
    for pair in label_errors.confusable_pairs(probe.first, labels):
        examples = [usable[rows[labels == label]][:_EXAMPLES].tolist() for label in (pair.first, pair.second)]
        in_turn = chain.from_iterable(zip_longest(*examples))  # so that the first two are one of each class
        why = (
            f"a probe tells {names[pair.first]!r} from {names[pair.second]!r} for {pair.accuracy:.0%} of their "
            f"{pair.samples} samples; guessing, for 50%"
        )
        report.add(findings.CONFUSABLE, [number for number in in_turn if number is not None], why)


def _unlabeled(data: Inspected) -> str | None:
    """Return the reason that labels cannot be checked, or None."""
    if data.labels is not None:
        return None
    several = data.targets.dim() > 1 and data.targets.shape[1] > 1
    if several and bool(((data.targets == 0) | (data.targets == 1)).all()):
        return "the samples have several labels each"
    return "the targets are numbers, not classes"


def _check_pictures(data: Inspected, report: _Report) -> None:
    if not data.shows_pictures:
        return
    rows = data.readable.nonzero().flatten()
    facts = {name: values[rows] for name, values in data.facts.items()}
    report.checked += ["blank, dark, overexposed and blurred pictures", "odd sizes"]
    if facts["darkest"].isnan().any():
        report.checked[-2] = "blank and blurred pictures"
        report.left_out.append("dark and overexposed pictures: the scale of floats is unknown")
    for kind, row, why in image_quality.poor_pictures(facts):
        report.add(kind, [int(rows[row])], why)
