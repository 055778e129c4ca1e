"""`FeatureMemo`: features that a verb has computed, for the next verb on the same model and samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import nn

from finetune.advice.features import Features
from finetune.caching.store.keys import keys_of
from finetune.data.batch import split_batch
from finetune.data.preprocessing.base import TEXT, InputPreprocessing, TextPair
from finetune.data.sources.base import Source
from finetune.digests import checksum, key_of


class FeatureMemo:
    """Features of samples by the key of each sample. They are forgotten when anything else that they depend on changes.

    Example:
        >>> memo, keys = FeatureMemo(), [b"a", b"b", b"c"]
        >>> memo.keep("weights", keys, Features(torch.eye(3), {}, torch.arange(3)))
        >>> memo.recall("weights", [b"c", b"a"]).last
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
        >>> memo.recall("other weights", keys) is None
        True
    """

    def __init__(self) -> None:
        self._identity: str | None = None
        self._parts: list[tuple[dict[bytes, int], Features]] = []

    def keep(self, identity: str, keys: Sequence[bytes], features: Features) -> None:
        """Keep the features of some samples.

        Args:
            identity: Everything that the features depend on beside the samples.
            keys: Key of each sample.
            features: Features of the samples.
        """
        if identity != self._identity:
            self._identity, self._parts = identity, []
        self._parts.append(({key: row for row, key in enumerate(keys)}, features))

    def recall(
        self, identity: str, keys: Sequence[bytes], stages: Collection[str] = (), *, facts: bool = False
    ) -> Features | None:
        """Return the features of samples, with the targets of equal samples; None if a sample is unknown.

        Without facts, an unreadable sample counts as unknown, so that it is read again and found to be an error.

        Args:
            identity: Everything that the features depend on beside the samples.
            keys: Key of each sample.
            stages: Names of the stages whose features are needed.
            facts: Whether facts of the samples are needed.
        """
        for known, features in self._parts if identity == self._identity else []:
            if (facts and not features.facts) or not {*stages} <= {*features.stages}:
                continue
            rows = torch.tensor([known.get(key, -1) for key in keys], dtype=torch.int64)
            readable = features.facts.get("readable", torch.tensor(True)).expand(len(features))
            if (rows >= 0).all() and (facts or readable[rows].all()):
                return Features(
                    features.last[rows],
                    {name: features.stages[name][rows] for name in stages},
                    features.targets[rows],
                    {name: values[rows] for name, values in features.facts.items()} if facts else {},
                )
        return None


_memos: WeakKeyDictionary[nn.Module, FeatureMemo] = WeakKeyDictionary()


def memo_of(model: nn.Module) -> FeatureMemo:
    """Return the memo that belongs to a model and is freed with it."""
    return _memos.setdefault(model, FeatureMemo())


def remembered(
    compute: Callable[[], Features],
    model: nn.Module,
    preprocessing: InputPreprocessing | None,
    source: Source,
    stages: Collection[str],
    settings: Sequence[str] | None,
    *,
    facts: bool = False,
) -> Features:
    """Return the features of a source, from the memo of the model if it has them all.

    Args:
        compute: Function that returns the features. It is called if the memo lacks one.
        model: The model.
        preprocessing: Preprocessing of the raw items, or None.
        source: The data.
        stages: Names of the stages whose features are needed.
        settings: Everything else that the features depend on; None if they must be computed anew.
        facts: Whether facts of the samples are needed.
    """
    keys = None if settings is None else sample_keys(source)
    identity = None if keys is None else identity_of(model, preprocessing, *(settings or ()))
    if keys is None or identity is None or source.targets is None:
        return compute()
    memo = memo_of(model)
    found = memo.recall(identity, keys, stages, facts=facts)
    if found is not None:
        return replace(found, targets=source.targets.cpu())  # equal samples may differ in their targets
    features = compute()
    if len(features) == len(keys):
        memo.keep(identity, keys, features)
    return features


def identity_of(model: nn.Module, preprocessing: InputPreprocessing | None, *settings: str) -> str | None:
    """Return a text that changes with the weights, the structure or the preprocessing; None if weights cannot be read.

    Reads every weight, at about 1 GB/s.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    sums = {name: checksum(tensor) for name, tensor in tensors.items()}
    if None in sums.values():
        return None
    described = None if preprocessing is None else preprocessing.to_dict()
    return json.dumps([str(model), sums, described, *settings], default=str)


def sample_keys(source: Source) -> list[bytes] | None:
    """Return a key of each sample, or None if the samples, or their targets, are not known without reading them."""
    if not source.indexed or source.targets is None:
        return None
    if source.kind == TEXT and not source.stochastic:
        return [_key_of_text(split_batch(source[index])[0]) for index in range(len(source))]
    keys = keys_of(source)
    return None if keys is None else keys.tolist()


def _key_of_text(text: str | TextPair) -> bytes:
    pair = (text.first, text.second) if isinstance(text, TextPair) else (text,)
    return key_of("text", json.dumps(pair).encode())
