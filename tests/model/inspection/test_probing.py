"""Finding inputs that a model accepts, without side effects."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetune.model.inspection.probing import accepted_example, example_inputs, undisturbed, without_autocast
from finetune.model.surgery.head_search import find_head

X = torch.zeros(2, 6)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def test_a_models_own_example_comes_first() -> None:
    model = mlp()
    model.example_input_array = torch.ones(3, 6)
    assert next(iter(example_inputs(model))) is model.example_input_array
    assert accepted_example(model) is model.example_input_array
    assert accepted_example(model, X) is X
    assert accepted_example(model, torch.zeros(2, 7)) is None


def test_an_input_that_is_accepted_in_both_modes_is_preferred() -> None:
    class Picky(nn.Module):
        def __init__(self, smallest: int) -> None:
            super().__init__()
            self.conv, self.smallest = nn.Conv2d(3, 2, 1), smallest

        def forward(self, x: Tensor) -> Tensor:
            if self.training and x.shape[-1] < self.smallest:
                raise ValueError
            out: Tensor = self.conv(x)
            return out

    assert accepted_example(Picky(10)).shape[-1] == 224
    assert accepted_example(Picky(300)).shape[-1] == 384
    assert accepted_example(Picky(10_000)).shape[-1] == 224  # the first that runs in eval mode


def test_autocast_is_off_on_every_device(accelerator: torch.device) -> None:
    kinds = ("cpu", accelerator.type)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast(accelerator.type, torch.float16), without_autocast():
        assert not any(map(torch.is_autocast_enabled, kinds))


def test_draws_on_every_device_are_undone(accelerator: torch.device) -> None:
    def draw() -> list[Tensor]:
        return [torch.rand(3, device=device).cpu() for device in ("cpu", accelerator)]

    model = mlp()
    with undisturbed(model):
        first = draw()
    with undisturbed(model):
        assert all(map(torch.equal, draw(), first))


def test_buffers_are_restored_even_if_the_model_replaces_them() -> None:
    class Counting(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.fc = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            out: Tensor = self.fc(x)
            return out

    model = Counting()
    buffer = model.count
    with undisturbed(model):
        model(X)
        assert model.count == 1
    assert model.count is buffer
    assert model.count == 0
    find_head(model)
    assert model.count == 0
