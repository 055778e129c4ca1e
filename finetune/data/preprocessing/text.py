"""Preprocessing of text with a Hugging Face tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from finetune.data.preprocessing.base import TEXT, InputPreprocessing, TextPair
from finetune.data.preprocessing.hf_files import (
    PretrainedFiles,
    class_in,
    files_from_tensors,
    files_to_tensors,
    load_pretrained,
    saved_files,
)
from finetune.errors import ArgumentError, DataError, whole_number
from finetune.threads.cached import cached_property

DEFAULT_MAX_LENGTH = 512
_UNLIMITED = 1_000_000  # tokenizers without a limit report about 1e30


@dataclass(frozen=True)
class TextPreprocessing(InputPreprocessing):
    """Preprocessing from texts to token ids, padded to the longest text of each batch.

    The attention mask makes results independent of padding, so batches are as short as possible.
    The tokenizer decides the padding side.

    Attributes:
        files: Files of the tokenizer.
        max_length: Number of tokens at which longer texts are truncated.

    Raises:
        ArgumentError: If `max_length` is below 1.
    """

    files: PretrainedFiles
    max_length: int = DEFAULT_MAX_LENGTH
    kind: ClassVar[str] = TEXT

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_length", whole_number("max_length", self.max_length))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({class_in(self.files, 'tokenizer_class')}, max_length={self.max_length})"

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, max_positions: int | None = None) -> TextPreprocessing:
        """Return the preprocessing of a transformers tokenizer, which stays unchanged.

        A tokenizer without a padding token, such as GPT-2's or Llama's, pads with its end token.

        Args:
            tokenizer: A `PreTrainedTokenizer` or `PreTrainedTokenizerFast`.
            max_positions: Number of tokens that the model can take, or None if unknown. Texts are
                truncated at the smaller of this and the tokenizer's own limit, or at 512 without either.

        Raises:
            ArgumentError: If the tokenizer has neither a padding nor an end token.
        """
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ArgumentError(
                    f"The {type(tokenizer).__name__} has neither a padding nor an end token, but the texts of a batch "
                    "differ in length. Set tokenizer.pad_token to one of its tokens."
                )
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = tokenizer.eos_token
        limits = [n for n in (tokenizer.model_max_length, max_positions) if n is not None and 0 < n < _UNLIMITED]
        return cls(saved_files(tokenizer), int(min(limits, default=DEFAULT_MAX_LENGTH)))

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer, loaded from its files on first use. Raises ArgumentError without transformers."""
        return load_pretrained("AutoTokenizer", self.files)

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token, by which decoders find the last token of a text (`config.pad_token_id`)."""
        return int(self.tokenizer.pad_token_id)

    def check(self, item: Any) -> None:
        """Check that the item is a text and not empty.

        Raises:
            DataError: If the item is not a text, is empty, or holds half of a character.
        """
        texts = (item.first, item.second) if isinstance(item, TextPair) else (item,)
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"Expected a text, but got {'nothing' if text is None else repr(text)}.")
            if not text.strip():
                raise DataError("The text is empty. Fill it in, or remove the sample.")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"The text holds {text[error.start]!r}, half of a character, at position {error.start}. Remove it, "
                    "or read the text again in its own encoding."
                ) from error

    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, int64 [N, T], and further outputs of the tokenizer."""
        texts = [sample.first if isinstance(sample, TextPair) else sample for sample in samples]
        pairs = [sample.second for sample in samples if isinstance(sample, TextPair)]
        if pairs and len(pairs) != len(texts):
            raise DataError("Some samples are pairs of texts, others single texts. Expected one or the other.")
        encoded = self.tokenizer(
            texts, pairs or None, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return dict(encoded)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "files": files_to_tensors(self.files), "max_length": self.max_length}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextPreprocessing:
        return cls(files_from_tensors(values["files"]), int(values["max_length"]))
