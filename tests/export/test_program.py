"""Programs of torch.export: free sizes, checks of values, and what cannot be traced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune import ExportError, FineTuner
from finetune.export import program
from finetune.export.deployed import Deployed
from tests.helpers.models import Recurrent

transformers = pytest.importorskip("transformers")


class Checking(nn.Module):
    """A model that checks how many different values its inputs have, as Bart does with its end tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        torch._check(torch.unique_consecutive(x.sign().abs().sum(1)).shape[0] == 1)
        out: Tensor = self.layer(x)
        return out


class Words(nn.Module):
    """A bag of words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.embed(tokens).mean(1)
        return out


def test_checks_of_values_are_not_part_of_the_file(tmp_path: Path) -> None:
    X = torch.randn(6, 4)
    made = FineTuner(Checking(), device="cpu", loss="cross_entropy").export(tmp_path / "model.pt2", "torch", verify=X)
    assert made.agreement.same == 6
    loaded = torch.export.load(made.path).module()
    assert loaded(X[:2]).shape == (2, 3)


def test_content_that_is_no_program_is_refused() -> None:
    with pytest.raises(ExportError, match=r"of Net cannot be written to a file and loaded again: .* format='onnx'"):
        program.runner_of(b"no program", "Net")


@pytest.mark.parametrize(("model", "shown"), [(Words(), "x int64 [N, T]"), (Recurrent(nn.GRU), "x int64 [N, 7]")])
def test_sizes_that_are_free_and_those_that_are_fixed(model: nn.Module, shown: str) -> None:
    tokens = torch.randint(11, (2, 7))
    deployed = Deployed(model.eval(), {"x": tokens}, lambda outputs: outputs.softmax(1))
    _, found = program.trace(deployed, [tokens], deployed.inputs({"x": tokens}, {"x": [1]}))
    assert [str(each) for each in found] == [shown]


def test_the_first_cause_of_an_error_is_said_in_one_line() -> None:
    error = RuntimeError("a consequence")
    error.__cause__ = ValueError("the cause\nand a stack")
    assert program.cause(error) == "ValueError: the cause"


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", ["text", "sound"])
def test_texts_of_any_length_and_sounds_of_any_duration(kind: str, tmp_path: Path) -> None:
    from tests.data.preprocessing import test_sound, test_text

    text = kind == "text"
    model = test_text.make_bert() if text else test_sound.make_model()
    preprocessing = test_text.make_tokenizer() if text else test_sound.make_extractor()
    tuner = FineTuner(model, device="cpu", preprocessing=preprocessing, loss="cross_entropy")
    made = tuner.export(tmp_path / "model", "onnx" if text else "torch")
    assert made.agreement.same == made.agreement.samples == 4
    assert all("T" in each.shape for each in made.inputs)
    assert bool(made.notes) != text  # the feature extractor has no script
