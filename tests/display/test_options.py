"""Messages of the library in the words of the command line."""

from __future__ import annotations

import pytest

from finetune.display.options import in_options


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Held out. Pass val=False to train on all samples.", "Held out. Pass --val none to train on all samples."),
        ("To leave them out, pass skip_corrupt=True to fit.", "To leave them out, pass --skip-corrupt."),
        (
            "No validation data. Pass val=... to fit, or Report('a.html', data=...).",
            "No validation data. Pass --val.",
        ),
        ("Pass fit and FineTuner the same ones, or resume_changed=True.", "Pass the same ones, or --resume-changed."),
        ("Rename one of them, or pass card=False.", "Rename one of them, or omit --card."),
        ("Pass another one as token=..., or run `hf`.", "Set another one as HF_TOKEN, or run `hf`."),
        ("Expected one of lora, or a list of Phase; BLOCK is a layer.", "Expected one of lora; BLOCK is a layer."),
        ("resume_from='auto' needs a checkpoint_dir.", "--resume needs a --checkpoint-dir."),
        ("For random weights, pass weights=None.", "For random weights, pass --weights none."),
        ("Try precision='bf16' or lr=1e-4.", "Try --precision bf16 or --lr 1e-4."),
        (
            "The model has 2 outputs. Call `replace_head(3)` to give it one output per class.",
            "The model has 2 outputs. Train a model for these classes with finetune train.",
        ),
        (
            "Expected 0 to 2. Correct the labels, or call `replace_head(4)`.",
            "Expected 0 to 2. Correct the labels, or train a model for these classes with finetune train.",
        ),
        (
            "Expected the same shape. Set the number of outputs with replace_head(n).",
            "Expected the same shape. Train a model for these targets with finetune train.",
        ),
        ("It looks channels-last: X.transpose(0, 3, 1, 2).", "It looks channels-last: X.transpose(0, 3, 1, 2)."),
        ("It looks channels-last. Pass X.transpose(0, 3, 1, 2).", "It looks channels-last."),
        (
            "No model 'a'. Did you mean 'b'? Expected a name, or an nn.Module.",
            "No model 'a'. Did you mean 'b'? Expected a name.",
        ),
        ("It is text. Pass the tokenizer: FineTuner(model, preprocessing=tokenizer).", "It is text."),
        (
            "cache: off, because of a; augment_views=4 would cycle 4 fixed views",
            "cache: off, because of a; --augment-views 4 would cycle 4 fixed views",
        ),
        (
            "There is no metric 'f2'. Expected f1, or a torchmetrics object, or a function of outputs and targets.",
            "There is no metric 'f2'. Expected f1.",
        ),
    ],
)
def test_arguments_become_options(message: str, said: str) -> None:
    assert in_options(message) == said


@pytest.mark.parametrize(
    "message",
    [
        "'data(1).csv', row 3 has 2 cells. Expected 3 (path, label, extra).",
        "The image 'my val.png' cannot be decoded (OSError: truncated). Replace the file or remove it from the data.",
        "epoch 1/2  loss 0.5000  accuracy 0.5000  0.1 s, 300 samples/s",
        "There is no model 'resnet19'. Did you mean 'resnet18'?",
        "'weights_only.csv' is empty. Expected a header row.",
    ],
)
def test_other_messages_stay_as_they_are(message: str) -> None:
    assert in_options(message) == message
