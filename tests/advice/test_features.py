"""Features of the stages and of the head, collected during a normal forward pass."""

import torch
from torch import nn

from finetune import FineTuner
from finetune.advice.features import pooled
from finetune.demo import DigitNet


def pictures(count: int = 12, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % classes


def features_of(tuner: FineTuner, data: object, samples: int = 100, batch_size: int = 5):
    source = tuner._open_training(data, False).train
    return tuner._passes.features(source, samples, batch_size)


def test_features_are_stage_outputs_and_head_inputs_in_eval_mode():
    x, y = pictures()
    model = DigitNet(3)
    found = features_of(FineTuner(model), (x, y))

    model.eval()
    with torch.no_grad():
        first = model.stem(x)
        second = model.layer1(first)
        third = model.layer2(second)
        last = model.layer3(third)
    assert list(found.stages) == ["stem", "layer1", "layer2", "layer3"]
    for stage, wanted in zip(found.stages.values(), (first, second, third, last), strict=True):
        assert torch.allclose(stage, wanted.mean((2, 3)), atol=1e-5)
    assert torch.allclose(found.last, last.flatten(1), atol=1e-5)
    assert found.labels.tolist() == y.tolist()


def test_the_requested_number_of_samples_is_stratified_by_class():
    x, y = pictures(60)
    found = features_of(FineTuner(DigitNet(3)), (x, y), samples=30)

    assert found.labels.bincount().tolist() == [10, 10, 10]
    assert len(found.last) == 30


def test_a_loader_is_read_until_enough_samples_are_collected():
    x, y = pictures(60)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    found = features_of(FineTuner(DigitNet(3)), loader, samples=20)

    assert found.labels.tolist() == y[:24].tolist()


def test_a_stage_whose_rows_are_not_samples_is_left_out():
    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Linear(4, 6)
            self.mixer = nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.patches(x.reshape(-1, 4))  # a row per part of a sample
            return self.head(self.mixer(parts.reshape(len(x), -1, 6).mean(1)))

    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    found = features_of(FineTuner(Folding()), (x, torch.arange(12) % 3))

    assert list(found.stages) == ["mixer"]
    assert found.last.shape == (12, 6)


def test_pooling_keeps_the_channels_in_any_layout():
    maps = torch.randn(2, 5, 4, 4)
    assert torch.allclose(pooled(maps), maps.mean((2, 3)))
    assert torch.allclose(pooled(maps.movedim(1, 3)), maps.mean((2, 3)))
    tokens = torch.randn(2, 7, 5)
    assert torch.allclose(pooled(tokens), tokens.mean(1))
    volumes = torch.randn(2, 5, 3, 4, 4)
    assert torch.allclose(pooled(volumes), volumes.mean((2, 3, 4)))
    rows = torch.randn(2, 5)
    assert pooled(rows) is rows
