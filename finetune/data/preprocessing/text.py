"""How a text becomes the model's input: a Hugging Face tokenizer and a greatest length."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from finetune.data.preprocessing.base import TEXT, InputPreprocessing, TextPair
from finetune.data.preprocessing.hf_files import Files, as_tensors, files_of, from_tensors, rebuild
from finetune.errors import ArgumentError, DataError

DEFAULT_MAX_LENGTH = 512
_NO_LIMIT = 1_000_000  # tokenizers that know none say some 1e30


@dataclass(frozen=True)
class TextPreprocessing(InputPreprocessing):
    """Texts to token ids, padded to the longest of their batch; travels in every checkpoint.

    The attention mask keeps padding from changing results, so that batches are no longer than they have
    to be. Padding is on the side that the tokenizer was made with.

    Attributes:
        files: the tokenizer's own files, by name.
        max_length: tokens; longer texts are cut there.

    Raises:
        ArgumentError: a length below 1.
    """

    files: Files
    max_length: int = DEFAULT_MAX_LENGTH
    kind: ClassVar[str] = TEXT

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ArgumentError(f"max_length is {self.max_length}; expected 1 token or more.")

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, max_positions: int | None = None) -> TextPreprocessing:
        """Read a tokenizer of transformers; it is not changed.

        One without a padding token, as GPT-2's and Llama's, pads with its end token.

        Args:
            tokenizer: a `PreTrainedTokenizer` or `PreTrainedTokenizerFast`.
            max_positions: the tokens that the model can take, where that is known. Texts are cut at this or
                at the tokenizer's own limit, whichever is less, and at 512 where there is neither.

        Raises:
            ArgumentError: it has neither a padding nor an end token.
        """
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ArgumentError(
                    f"The {type(tokenizer).__name__} has neither a padding nor an end token, and texts of a batch "
                    "differ in length. Set tokenizer.pad_token to one of its tokens."
                )
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = tokenizer.eos_token
        limits = [n for n in (tokenizer.model_max_length, max_positions) if n is not None and 0 < n < _NO_LIMIT]
        return cls(files_of(tokenizer), int(min(limits, default=DEFAULT_MAX_LENGTH)))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, made from its files on first use. Raises ArgumentError without transformers."""
        return rebuild("AutoTokenizer", self.files)

    @property
    def pad_token_id(self) -> int:
        """The token that fills up. Decoders find a text's last token by it, as `config.pad_token_id`."""
        return int(self.tokenizer.pad_token_id)

    def check(self, item: Any) -> None:
        """Raise DataError for what is no text, or an empty one."""
        texts = (item.first, item.second) if isinstance(item, TextPair) else (item,)
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"Expected a text, but got {'nothing' if text is None else repr(text)}.")
            if not text.strip():
                raise DataError("The text is empty. Fill it in, or remove the sample.")

    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` [N, T], int64, and what else the tokenizer gives."""
        texts = [sample.first if isinstance(sample, TextPair) else sample for sample in samples]
        pairs = [sample.second for sample in samples if isinstance(sample, TextPair)]
        if pairs and len(pairs) != len(texts):
            raise DataError("Some samples are pairs of texts and others single texts. Expected one or the other.")
        encoded = self.tokenizer(
            texts, pairs or None, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return dict(encoded)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "files": as_tensors(self.files), "max_length": self.max_length}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextPreprocessing:
        return cls(from_tensors(values["files"]), int(values["max_length"]))
