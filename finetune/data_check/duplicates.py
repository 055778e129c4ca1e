"""Groups of samples with the same content: exact copies by hash, and near copies.

Pairs that are close in their features or in their tiles are candidates for near copies. The details of the pictures, or
the words of the texts, confirm them.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.data_check import tiles as agreement
from finetune.data_check.neighbors import nearest_neighbors
from finetune.data_check.samples.facts import Facts
from finetune.display.progress.waits import announced

_CANDIDATES = 3  # neighbors in features, and in tiles

_DETAIL = 1.0  # standard deviation of the details, in levels of gray, below which tiles show nothing to compare
_GAP = 0.1  # 1 - correlation of the details of near copies, at most
_GAP_IN_SIMILAR = 0.25  # and at most this fraction of the median gap between a picture and its likest one
_TINY_GAP = 0.005  # which counts as a copy in any data
_CROP_TILES = 0.9  # correlation of the tiles of a crop, at least
_CROP_COARSE = 0.7  # before it is refined
_CROP_NEARER = 0.7  # distance of the features of a crop, as a fraction of that of the last neighbor, at most
_PAIRS_AT_ONCE = 2048

_SAME_LETTERS = 0.95  # similarity of texts of at least `_LONG_TEXT` letters that differ by typing errors
_LONG_TEXT = 40


@dataclass(frozen=True)
class Group:
    """Samples with the same content.

    Attributes:
        members: Numbers of the samples, rising.
        exact: Whether all are equal, byte by byte.
    """

    members: tuple[int, ...]
    exact: bool


def groups_of(keys: Tensor, pairs: Iterable[tuple[int, int]], among: Sequence[int]) -> list[Group]:
    """Join exact and near copies to groups.

    Args:
        keys: Hash of the content of each sample, uint8 [N, K].
        pairs: Pairs of near copies.
        among: Numbers of the samples to group.

    Example:
        >>> groups_of(torch.tensor([[1], [2], [1], [3]]), [(1, 3)], range(4))
        [Group(members=(0, 2), exact=True), Group(members=(1, 3), exact=False)]
    """
    contents = [bytes(row) for row in keys.to(torch.uint8).numpy()]
    first: dict[bytes, int] = {}
    parent = {sample: first.setdefault(contents[sample], sample) for sample in among}

    def root(sample: int) -> int:
        while parent[sample] != sample:
            parent[sample] = parent[parent[sample]]
            sample = parent[sample]
        return sample

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    members: dict[int, list[int]] = {}
    for sample in sorted(among):
        members.setdefault(root(sample), []).append(sample)
    return [
        Group(tuple(group), len({contents[sample] for sample in group}) == 1)
        for group in members.values()
        if len(group) > 1
    ]


def near_pictures(facts: Facts, distances: Tensor, neighbors: Tensor) -> list[tuple[int, int]]:
    """Return the pairs of pictures of which one is a re-encoded, resized, cropped or brighter copy of the other.

    Args:
        facts: Facts of the pictures, each [N, ...].
        distances: Distance of the nearest neighbors in the features, float [N, K].
        neighbors: Their numbers, int64 [N, K].
    """
    tiles, details = facts["tile"], agreement.details(facts["tile"])
    if len(tiles) < 2:
        return []
    detailed = details.flatten(1).std(1) >= _DETAIL
    units = agreement.unit(details)
    del details  # 4 KB per picture
    _, alike = nearest_neighbors(agreement.unit(tiles), _CANDIDATES)
    gaps = 1 - _correlation(units, torch.arange(len(tiles))[:, None], alike[:, :1])[:, 0]
    limit = _limit(gaps[detailed])

    pairs = _unique_pairs([alike, neighbors[:, :_CANDIDATES]])
    pairs = pairs[detailed[pairs].all(1)]
    pairs = pairs[agreement.same_colors(facts["colors"][pairs[:, 0]], facts["colors"][pairs[:, 1]])]
    copies = 1 - _correlation(units, pairs[:, 0], pairs[:, 1]) <= limit
    others = pairs[~copies]
    nearer = _relative_distance(others, distances, neighbors) <= _CROP_NEARER
    crops = others[nearer][_are_crops(tiles, others[nearer], limit)]
    return [(one, other) for one, other in torch.cat([pairs[copies], crops]).tolist()]


def near_texts(text: Callable[[int], str | None], neighbors: Tensor) -> list[tuple[int, int]]:
    """Return the pairs of texts that differ in case, accents, punctuation and spaces, or in a typing error.

    Args:
        text: Function that returns the text of a sample.
        neighbors: Numbers of the nearest neighbors in the features, int64 [N, K].

    Example:
        >>> texts = ["A good film.", "a good  film", "A bad film."]
        >>> near_texts(texts.__getitem__, torch.tensor([[1], [0], [0]]))
        [(0, 1)]
    """
    plain = [plain_text(text(sample) or "") for sample in range(len(neighbors))]
    first: dict[str, int] = {}
    equal = [(first.setdefault(words, sample), sample) for sample, words in enumerate(plain) if words]
    pairs = _unique_pairs([neighbors[:, :_CANDIDATES]]).tolist()
    typed = [
        (one, other)
        for one, other in announced(pairs, "Comparing texts", len(pairs))
        if _differ_by_typing(plain[one], plain[other])
    ]
    return [pair for pair in equal if pair[0] != pair[1]] + typed


def plain_text(text: str) -> str:
    """Return a text in lower case, without accents and punctuation.

    Example:
        >>> plain_text("Déjà-vu,  again!")
        'deja vu again'
    """
    letters = unicodedata.normalize("NFKD", text.casefold())
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.findall(r"\w+", letters))


def _differ_by_typing(one: str, other: str) -> bool:
    """Return whether long texts differ only within words: no word is another one, or is missing."""
    if one == other or min(len(one), len(other)) < _LONG_TEXT:
        return False
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    if matcher.real_quick_ratio() < _SAME_LETTERS or matcher.quick_ratio() < _SAME_LETTERS:
        return False
    ours, theirs = one.split(), other.split()
    if len(ours) != len(theirs):
        return matcher.ratio() >= _SAME_LETTERS and one.replace(" ", "") == other.replace(" ", "")
    changed = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    return all(_is_misspelt(a, b) for a, b in changed)


def _is_misspelt(one: str, other: str) -> bool:
    """Return whether words, and not numbers, differ by one letter, or by two that are exchanged."""
    if any(letter.isdigit() for letter in one + other) or min(len(one), len(other)) < 4:
        return False
    if len(one) == len(other):
        places = [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        swapped = len(places) == 2 and places[1] == places[0] + 1 and sorted(one) == sorted(other)
        return len(places) == 1 or swapped
    short, long = sorted((one, other), key=len)
    return any(long[:place] + long[place + 1 :] == short for place in range(len(long)))


def _limit(gaps: Tensor) -> float:
    """Return the highest gap between near copies, for the gaps between all pictures and their likest ones.

    In data of small or similar pictures, different ones have small gaps too.
    """
    typical = float(gaps.median()) if len(gaps) else 1.0
    return max(_TINY_GAP, min(_GAP, _GAP_IN_SIMILAR * typical))


def _are_crops(tiles: Tensor, pairs: Tensor, limit: float) -> Tensor:
    """Return bool [P], True for the pairs of which one agrees with a window of the other."""
    found = [torch.zeros(0, dtype=torch.bool)]
    parts = pairs.split(_PAIRS_AT_ONCE) if len(pairs) else ()
    for part in announced(parts, "Comparing pictures", len(parts)):
        one, other = tiles[part[:, 0]], tiles[part[:, 1]]
        crop = torch.zeros(len(part), dtype=torch.bool)
        for whole, window in ((one, other), (other, one)):
            cuts, coarse = agreement.best_windows(whole, window)
            likely = (coarse >= _CROP_COARSE).nonzero().flatten()
            if len(likely):
                light, details = agreement.refined(whole[likely], window[likely], cuts[likely])
                crop[likely] |= (light >= _CROP_TILES) & (1 - details <= limit)
        found.append(crop)
    return torch.cat(found)


def _correlation(units: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.cat([(units[a] * units[b]).sum(-1) for a, b in zip(one.split(2**16), other.split(2**16), strict=True)])


def _relative_distance(pairs: Tensor, distances: Tensor, neighbors: Tensor) -> Tensor:
    """Return the distance of each pair, as a fraction of the distance to the last neighbor of either; 1 if unknown."""
    found = torch.ones(len(pairs))
    for one, other in ((0, 1), (1, 0)):
        same = neighbors[pairs[:, one]] == pairs[:, [other]]
        own = torch.where(same, distances[pairs[:, one]], torch.inf).amin(1)
        found = torch.minimum(found, own / distances[pairs].amax((1, 2)).clamp_min(1e-12))
    return found


def _unique_pairs(neighbors: Sequence[Tensor]) -> Tensor:
    """Return the pairs of each sample with its neighbors, each once and the lower number first, int64 [P, 2]."""
    found = [
        torch.stack([torch.arange(len(each))[:, None].expand_as(each), each], 2).reshape(-1, 2) for each in neighbors
    ]
    pairs: Tensor = torch.cat(found).sort(1).values.unique(dim=0)
    return pairs
