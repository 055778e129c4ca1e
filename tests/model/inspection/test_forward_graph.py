"""Recording the operations of a forward pass, the parameters they read and the modules they ran in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.model.inspection.forward_graph import Operation, Recording, output_shapes, record
from tests.helpers.models import TiedLanguageModel, TwoHeads

Forward = Callable[[Any, Tensor], Any]


class Model(nn.Module):
    """Two layers and two bare parameters, with a given `forward`."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.bare = nn.Parameter(torch.randn(3))
        self.other = nn.Parameter(torch.randn(3))
        self.buffer: Tensor
        self.register_buffer("buffer", torch.zeros(3))
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def recorded(forward: Forward) -> Recording:
    return record(Model(forward), torch.randn(2, 3))


def reached(operations: tuple[Operation, ...]) -> set[str]:
    """Return every parameter that these operations' results depend on."""
    todo, seen = list(operations), set(operations)
    while todo:
        new = [before for before in todo.pop().inputs if before not in seen]
        todo += new
        seen.update(new)
    return {name for operation in seen for name in operation.parameters}


A, B = {"a.weight", "a.bias"}, {"b.weight", "b.bias"}


def written_view(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros(2, 3)
    out[:, :2] = m.a(x)[:, :2]
    out[:, 2:] = m.b(x)[:, 2:]
    return out


def viewed_before_it_is_written(m: Any, x: Tensor) -> Tensor:
    base = torch.zeros(2, 3)
    view = base.view(3, 2)
    base.copy_(m.a(x))
    return view


def written_through_a_view(m: Any, x: Tensor) -> Tensor:
    base = m.a(x)
    base.view(-1)[:2].add_(m.b(x).sum())
    return base


def assembled_weight(m: Any, x: Tensor) -> Tensor:
    weight = torch.empty(2, 3)
    weight[0] = m.bare
    weight[1] = m.other
    return F.linear(x, weight)


def returned_nothing(m: Any, x: Tensor) -> Tensor:
    out = torch.empty(2, 3)
    torch.add(m.a(x), 1, out=out)
    return out


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.a(x), A),
        (lambda m, x: m.b(m.a(x)), A | B),
        (lambda m, x: (m.a(x), m.b(x))[1], B),
        (lambda m, x: x + m.a(x), A),
        (lambda m, x: m.a(m.a(x)), A),
        (lambda m, x: m.a(x).relu_().mul_(2), A),
        (lambda m, x: x * m.bare, {"bare"}),
        (lambda m, x: x @ torch.outer(m.bare, m.other).t().contiguous(), {"bare", "other"}),
        (lambda m, x: F.linear(x, F.normalize(m.a.weight, dim=1)), {"a.weight"}),
        (lambda m, x: F.linear(x, torch.cat([m.a.weight, m.b.weight])), {"a.weight", "b.weight"}),
        (lambda m, x: m.a(x).detach().clone(), A),
        (lambda m, x: m.a(x).chunk(3, 1)[0], A),
        (lambda m, x: {"out": [m.a(x), (m.b(x),)]}, A | B),
        (lambda m, x: m.a(x) + m.buffer, A),
        (lambda m, x: torch.where(m.a(x) > 0, m.bare, x), A | {"bare"}),
        (lambda m, x: m.a(x).to_sparse(), A),
        (written_view, A | B),
        (viewed_before_it_is_written, A),
        (written_through_a_view, A | B),
        (assembled_weight, {"bare", "other"}),
        (returned_nothing, A),
    ],
)  # fmt: skip
def test_the_output_is_traced_to_every_parameter_behind_it(forward: Forward, expected: set[str]) -> None:
    assert reached(recorded(forward).last) == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_parameters_reached_are_those_with_a_gradient(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def forward(m: Any, x: Tensor) -> Tensor:
        made = [x]
        for _ in range(8):
            picked = made[int(torch.randint(len(made), (), generator=generator))]
            kinds: list[Callable[[Tensor], Tensor]] = [
                m.a, m.b, torch.tanh, lambda t: t * m.bare, lambda t: t + made[0], lambda t: t.view(-1).view(2, 3),
            ]  # fmt: skip
            made.append(kinds[int(torch.randint(len(kinds), (), generator=generator))](picked))
        return made[-1]

    state = generator.get_state()
    model = Model(forward)
    last = record(model, torch.randn(2, 3)).last
    generator.set_state(state)
    model(torch.randn(2, 3, requires_grad=True)).sum().backward()
    assert reached(last) == {name for name, p in model.named_parameters() if p.grad is not None}


def test_values_independent_of_the_input_are_not_recorded() -> None:
    assert recorded(lambda m, x: m.bare * m.other).operations == ()
    assert recorded(lambda m, x: m.a(torch.ones(1, 3))).last == ()
    assert recorded(lambda m, x: x).last == ()
    assert recorded(lambda m, x: None).last == ()


def test_operations_record_the_module_they_ran_in() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    operations = record(model, torch.ones(1, 3)).operations
    assert {operation.module for operation in operations} == {"0", "1.0", "1.1"}
    assert {name for o in operations if o.module == "1.1" for name in o.parameters} == {"1.1.weight", "1.1.bias"}
    assert recorded(lambda m, x: x * 2).last[0].module == ""


def test_a_shared_layer_has_its_first_name_and_two_uses() -> None:
    shared = nn.Linear(3, 3)
    recording = record(nn.Sequential(shared, nn.ReLU(), shared), torch.ones(1, 3))
    uses = [operation for operation in recording.operations if "0.weight" in operation.parameters]
    assert len(uses) == 2
    assert uses[0] is not uses[1]
    assert recording.last == (uses[1],)


def test_a_tied_parameter_has_the_name_of_the_module_that_reads_it() -> None:
    recording = record(TiedLanguageModel(), torch.zeros(2, 4, dtype=torch.long))
    names = {name for operation in recording.operations for name in operation.parameters}
    assert {"embed.weight", "out.weight", "out.bias"} <= names
    assert {name for operation in recording.last for name in [*operation.parameters]} <= {"out.weight", "out.bias"}


def test_inputs_can_be_positional_or_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out: Tensor = self.a(x) + self.b(y)
            return out

    x, y = torch.ones(1, 3), torch.ones(1, 3)
    assert reached(record(Two(), (x, y)).last) == reached(record(Two(), {"y": y, "x": x}).last) == A | B


def test_named_logits_take_precedence_over_other_results() -> None:
    def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
        features = m.a(x)
        return {"features": features, "logits": m.b(features), "aux": features * m.bare}

    last = recorded(forward).last
    assert {name for operation in last for name in operation.parameters} == {*B, "bare"}


def test_recording_leaves_no_hooks_and_no_gradients() -> None:
    model = TwoHeads()

    def broken(m: Any, x: Tensor) -> Tensor:
        raise KeyError

    output = record(model, torch.ones(2, 6)).output
    assert not any(tensor.requires_grad for tensor in output)
    output_shapes(model, torch.ones(2, 6))
    failing = Model(broken)
    with pytest.raises(KeyError):
        record(failing, torch.ones(2, 3))
    with pytest.raises(KeyError):
        output_shapes(failing, torch.ones(2, 3))
    for module in (*model.modules(), *failing.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_output_shapes_are_those_of_one_sample() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Identity())
    shapes = output_shapes(model, torch.zeros(2, 3, 8, 8))
    assert shapes == {"": (5,), "0": (4, 6, 6), "1": (144,), "2": (5,), "3": (5,)}
