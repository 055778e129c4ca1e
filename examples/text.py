"""Fine-tune a text classifier on a CSV file with the columns text and label.

    python examples/text.py reviews.csv --model distilbert-base-uncased --epochs 3

Without a file, the script trains a small BERT from random weights on generated reviews, offline and in seconds.
Requires `pip install "torch-finetune[hf]"`.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from finetune import FineTuner

WORDS = {"good": ["great", "lovely", "moving"], "bad": ["dull", "awful", "slow"]}
NOUNS = ["film", "plot", "cast", "ending"]


def generate_reviews() -> tuple[list[str], list[str]]:
    """Return all reviews of one adjective for each of two nouns, with their labels."""
    rows = [
        (f"a {word} {first} and a {word} {second}", label)
        for label, words in WORDS.items()
        for word, first, second in itertools.product(words, NOUNS, NOUNS)
    ]
    return [text for text, _ in rows], [label for _, label in rows]


def small_bert() -> tuple[Any, Any]:
    """Return an untrained BERT and a word tokenizer."""
    vocabulary = ["[PAD]", "[UNK]", "a", "and", *WORDS["good"], *WORDS["bad"], *NOUNS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    return BertForSequenceClassification(config), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="CSV file with the columns text and label")
    parser.add_argument("--model", help="name or folder of a Hugging Face model")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate; about 2e-5 for a pretrained model")
    options = parser.parse_args()

    if options.model:
        model = AutoModelForSequenceClassification.from_pretrained(options.model)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    else:
        model, tokenizer = small_bert()

    # The tokenizer is the preprocessing: raw texts go in, and it becomes part of every checkpoint.
    tuner = FineTuner(model, preprocessing=tokenizer).replace_head(options.classes)
    tuner.fit(options.data or generate_reviews(), val=0.2, epochs=options.epochs, lr=options.lr, batch_size=16)
    print(f"validation accuracy: {tuner.history[-1]['val_accuracy']:.3f}")

    texts = ["a moving film and a lovely cast", "a slow plot and an awful ending"]
    classes = tuner.classes or ()
    for text, row in zip(texts, tuner.predict(texts).softmax(1), strict=True):
        print(f"{text}: {classes[int(row.argmax())]} ({row.max():.2f})")


if __name__ == "__main__":
    main()
