"""Networks: structure found on first use, and wrapped models by themselves and in `FineTuner`."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from finetune import ArgumentError, DataError, FineTuner, HeadError
from finetune.model.freezing import trainable
from finetune.model.network import Network, is_synchronized, unwrapped
from finetune.model.surgery.adapters import has_adapters
from tests.helpers.models import TokenTransformer, TwoHeads, small_cnn

torch.manual_seed(0)
X, Y = torch.randn(16, 3, 8, 8), torch.arange(16) % 3


def test_a_network_finds_its_structure_on_first_use() -> None:
    network = Network.of(small_cnn())
    assert network.found_heads == ()
    assert network.heads == network.found_heads == ("6",)
    assert network.num_outputs == 5
    assert network.parameter_order[0] == "0.weight"
    assert [stage.name for stage in network.stages()] == ["0", "6"]


@pytest.mark.parametrize("make", [small_cnn, TokenTransformer, TwoHeads])
def test_structure_is_found_within_autocast_too(make: Callable[[], nn.Module]) -> None:
    plain, other = Network.of(make()), Network.of(make())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert other.heads == other.required_heads() == plain.heads
        assert other.parameter_order == plain.parameter_order
    assert plain.heads
    assert plain.parameter_order


def test_half_precision_knows_the_number_of_outputs_before_training() -> None:
    data = torch.randn(12, 3, 8, 8), torch.arange(12) % 7
    tuner = FineTuner(small_cnn(), device="cpu", precision="bf16")
    with pytest.raises(DataError, match="labels are out of range"):
        tuner.fit(data, progress=False)


def test_a_network_that_learns_leaves_the_one_before_as_it_was() -> None:
    network = Network.of(TwoHeads("mean"))
    assert network.heads == ("first", "second")
    example = torch.zeros(2, 6)
    later = network.with_example(example)

    assert later.example is example
    assert network.example is None
    assert later.found_heads == network.heads  # found once, and kept
    assert later.module is network.module


def test_a_model_that_leaves_its_head_open_has_none_until_it_is_asked_for() -> None:
    network = Network.of(nn.Sequential(nn.Flatten(), nn.ReLU()))
    assert network.heads == ()
    assert network.num_outputs is None
    with pytest.raises(HeadError, match="head of Sequential cannot be found"):
        network.required_heads()


def test_trying_a_model_leaves_no_trace(state_of: Callable[[nn.Module], dict[str, Tensor]]) -> None:
    model = small_cnn()
    before, random = state_of(model), torch.get_rng_state()
    network = Network.of(model)

    assert network.try_on(X[:2], channels_last=False, trains=True) is None
    assert network.try_on(X[:2], channels_last=True, trains=True) is True
    with pytest.raises(DataError, match="does not accept the data, whose first inputs are float32 \\[2, 4\\]"):
        network.try_on(torch.zeros(2, 4), channels_last=False, trains=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())
    assert all(module.training for module in model.modules())


def test_few_samples_gain_nothing_from_another_memory_format() -> None:
    network = Network.of(small_cnn())
    cpu = torch.device("cpu")
    assert not network.gains_from_channels_last(cpu, 8)
    assert network.gains_from_channels_last(cpu, 800) == network.gains_from_channels_last(cpu, None)
    assert not Network.of(nn.DataParallel(small_cnn())).gains_from_channels_last(cpu, None)


class Within(nn.Module):
    """A custom model that keeps another in `module` but is no wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)


class OwnParallel(nn.DataParallel):
    """A user's subclass of a wrapper."""


@pytest.mark.parametrize("model", [nn.Linear(2, 2), Within(), nn.Sequential(nn.Linear(2, 2))])
def test_a_plain_model_is_its_own_inner_model(model: nn.Module) -> None:
    assert unwrapped(model) is model
    assert not is_synchronized(model)
    assert not has_adapters(model)


def test_wrappers_are_removed_in_any_order_and_depth() -> None:
    model = Within()
    compiled = torch.compile(model, backend="eager")
    for wrapped in (
        compiled,
        nn.DataParallel(model),
        OwnParallel(model),
        nn.DataParallel(compiled),
        torch.compile(OwnParallel(compiled), backend="eager"),
    ):
        assert unwrapped(wrapped) is model
        assert not is_synchronized(wrapped)


class Net(nn.Module):
    """Two layers with batch norm and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.conv1(x)).mean((2, 3)))


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Net()


def tuned(model: nn.Module, **settings: Any) -> FineTuner:
    return FineTuner(model, device="cpu", **settings)


def compiled(backend: str) -> Callable[[nn.Module], nn.Module]:
    return lambda model: torch.compile(model, backend=backend)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """Run in a process group of one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = [
    pytest.param(nn.DataParallel, id="DataParallel"),
    pytest.param(compiled("eager"), id="compiled"),
    pytest.param(compiled("aot_eager"), id="compiled by aot_eager"),
    pytest.param(lambda model: torch.compile(nn.DataParallel(model), backend="eager"), id="both"),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_trains_as_the_plain_one_does(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, wrapped = tuned(net()), tuned(wrap(net()))
    for tuner in (plain, wrapped):
        tuner.predict(X[:4])  # compiled with the old head and everything trainable
        tuner.replace_head(3).freeze("conv1").freeze("layer1.1")
        tuner.fit((X, Y), epochs=2, batch_size=4, lr=(1e-3, 1e-2), progress=False)
    assert wrapped.inner.state_dict().keys() == plain.inner.state_dict().keys()
    for name, value in plain.inner.state_dict().items():
        torch.testing.assert_close(wrapped.inner.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wrapped.predict(X), plain.predict(X), rtol=1e-4, atol=1e-5)
    assert list(wrapped.history[0]["lr"]) == list(plain.history[0]["lr"])
    assert str(wrapped.summary()) == str(plain.summary())


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (nn.DataParallel, "the model is wrapped in DataParallel"),
        (compiled("eager"), "the model is wrapped in OptimizedModule"),
        (in_place, "the model is already compiled"),
    ],
    ids=["DataParallel", "compiled", "compiled in place"],
)
def test_a_wrapped_model_is_not_cached_and_the_log_says_why(
    wrap: Callable[[nn.Module], nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        tuned(wrap(net())).freeze().fit((X, Y), epochs=2, cache="memory", progress=False)
    assert f"cache: off, because {reason}" in caplog.text


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_names_are_those_of_the_inner_model_and_the_wrapper_stays(wrap: Callable[[nn.Module], nn.Module]) -> None:
    inner = net()
    model = wrap(inner)
    tuner = tuned(model).replace_head(5).freeze("layer1")
    assert tuner.model is model
    assert tuner.head is inner.fc
    assert tuner.predict(X).shape == (16, 5)
    assert [name for name, p in inner.named_parameters() if not p.requires_grad] == [
        "layer1.0.weight", "layer1.0.bias", "layer1.1.weight", "layer1.1.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_frozen_layers_stay_in_eval_mode_whichever_module_is_trained(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    inner = net()
    model = wrap(inner)
    tuned(model).freeze("layer1")
    for module in (model, inner):
        model.eval()
        module.train()
        assert not any(part.training for part in inner.layer1.modules())
        assert inner.conv1.training
        assert inner.fc.training


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_checkpoint_goes_from_wrapped_to_plain_and_back(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    wrapped = tuned(wrap(net())).replace_head(3).freeze("conv1")
    wrapped.save_checkpoint(tmp_path / "wrapped")
    plain = FineTuner.load_checkpoint(tmp_path / "wrapped", net(), device="cpu")
    assert torch.equal(plain.predict(X), wrapped.inner.eval()(X))
    plain.save_checkpoint(tmp_path / "plain")
    again = FineTuner.load_checkpoint(tmp_path / "plain", wrap(net()), device="cpu")
    torch.testing.assert_close(again.predict(X), plain.predict(X))
    assert trainable(again.inner).keys() == trainable(wrapped.inner).keys()


def test_a_wrapped_run_resumes_in_a_plain_one(tmp_path: Path) -> None:
    whole = tuned(net()).replace_head(3)
    whole.fit((X, Y), epochs=2, schedule="constant", progress=False)
    first = tuned(nn.DataParallel(net())).replace_head(3)
    first.fit((X, Y), epochs=1, schedule="constant", checkpoint_dir=tmp_path, progress=False)
    second = tuned(net()).replace_head(3)
    second.fit((X, Y), epochs=2, schedule="constant", resume_from=tmp_path, progress=False)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name


def test_the_steps_call_the_wrapper_and_a_weights_file_needs_no_prefix(tmp_path: Path) -> None:
    class Counting(nn.DataParallel):
        calls = 0

        def forward(self, *inputs: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().forward(*inputs, **kwargs)

    torch.save(net().state_dict(), tmp_path / "weights.pth")
    with torch.random.fork_rng(devices=[]):
        model = Counting(Net())
    tuner = tuned(model, weights=tmp_path / "weights.pth")
    assert torch.equal(tuner.inner.fc.weight, net().fc.weight)
    tuner.predict(X)
    assert model.calls == 1


def test_a_model_compiled_in_place_works_after_its_head_is_replaced() -> None:
    model = net()
    model.compile(backend="eager")
    model.eval()(X)
    tuner = tuned(model).replace_head(3).freeze()
    assert tuner.summary(input_size=(3, 8, 8)).rows[-1].shape == (3,)
    tuner.fit((X, Y), progress=False)
    plain = tuned(net()).replace_head(3).freeze()
    plain.fit((X, Y), progress=False)
    torch.testing.assert_close(tuner.predict(X), plain.predict(X))


def test_distributed_data_parallel_trains_the_parameters_it_was_made_for_or_raises(group: None) -> None:
    plain = tuned(net()).replace_head(3).freeze("conv1")
    wrapped = tuned(nn.parallel.DistributedDataParallel(copy.deepcopy(plain.model)))
    for tuner in (plain, wrapped):
        tuner.fit((X, Y), epochs=2, batch_size=4, progress=False)
    torch.testing.assert_close(wrapped.predict(X), plain.predict(X))
    for change in (lambda t: t.freeze("layer1"), lambda t: t.unfreeze(), lambda t: t.replace_head(5)):
        later = tuned(nn.parallel.DistributedDataParallel(copy.deepcopy(plain.model)))
        change(later)
        with pytest.raises(ArgumentError, match="then wrap the model"):
            later.fit((X, Y), progress=False)


@pytest.mark.filterwarnings("ignore:FSDP is switching")  # to the only way in one process
def test_a_model_that_is_divided_among_processes_is_refused(group: None) -> None:
    for divide in (fully_shard, partial(FullyShardedDataParallel, device_id=torch.device("cpu"))):
        with pytest.raises(ArgumentError, match=r"divided among processes already.*distributed='fsdp'"):
            FineTuner(nn.Sequential(divide(nn.Linear(4, 8)), nn.Linear(8, 3)), device="cpu")
    FineTuner(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), device="cpu", distributed="fsdp")  # the advice


def test_peft_is_imported_for_its_own_models_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    tuner = FineTuner(nn.DataParallel(model), device="cpu").replace_head(2).freeze()
    tuner.fit((torch.randn(4, 4), torch.tensor([0, 1, 0, 1])), progress=False)


class Similarity(nn.Module):
    """Scores from two projections, as of prototypical and siamese networks: no layer has the outputs as its width."""

    def __init__(self, n: int, width: int = 8) -> None:
        super().__init__()
        self.f, self.g, self.n = nn.Linear(4, width), nn.Linear(4, width), n

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(self.f(x) * self.g(x.roll(k, 1))).sum(1) for k in range(self.n)], 1)


class Squeezed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(1)


class WithFeatures(nn.Module):
    """Returns its features, as wide as the logits, before or after them."""

    def __init__(self, features_first: bool) -> None:
        super().__init__()
        self.body, self.fc, self.features_first = nn.Linear(4, 3), nn.Linear(3, 3), features_first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        return (features, self.fc(features)) if self.features_first else (self.fc(features), features)


@pytest.mark.parametrize(
    ("model", "data", "outputs"),
    [
        (Similarity(1), torch.randn(2, 4), 1),
        (Similarity(3), torch.randn(2, 4), 3),
        (nn.Linear(4, 5), torch.randn(2, 4), 5),
        (Squeezed(nn.Linear(4, 1)), torch.randn(2, 4), 1),
        (nn.Conv2d(3, 5, 1), torch.randn(2, 3, 4, 4), 5),
        (nn.Linear(4, 5), torch.randn(2, 7, 4), 5),
        (nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (3, 2))), torch.randn(2, 4), 3),
        (nn.Sequential(nn.Linear(4, 12), nn.AdaptiveAvgPool1d(4)), torch.randn(2, 4), 4),
        (WithFeatures(False), torch.randn(2, 4), 3),
    ],
)
def test_the_number_of_outputs_is_what_the_model_gives(model: nn.Module, data: Tensor, outputs: int) -> None:
    network = Network.of(model)
    network.try_on(data, channels_last=False, trains=False)
    assert network.num_outputs == network.with_module(nn.DataParallel(model)).num_outputs == outputs


def test_a_new_head_has_other_outputs_than_those_seen() -> None:
    tuner = FineTuner(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), device="cpu")
    tuner.predict(torch.randn(2, 4))
    assert tuner.network.num_outputs == 3
    assert tuner.replace_head(5).network.num_outputs == 5


@pytest.mark.parametrize("labels", [torch.arange(9) % 3, torch.arange(9) % 2])
def test_scores_without_a_head_are_trained_for_what_they_are(labels: Tensor) -> None:
    outputs = int(labels.max()) + 1 if labels.max() > 1 else 1
    tuner = FineTuner(Similarity(outputs), device="cpu")
    tuner.fit((torch.randn(9, 4), labels), progress=False)
    assert tuner.task is not None
    assert tuner.task.kind == ("binary" if outputs == 1 else "classification")


def test_labels_beyond_the_outputs_are_refused_before_training() -> None:
    with pytest.raises(DataError, match="labels are out of range"):
        FineTuner(Similarity(3), device="cpu").fit((torch.randn(9, 4), torch.arange(9) % 5), progress=False)


def test_features_before_the_logits_are_not_trained_in_their_place() -> None:
    data = torch.randn(9, 4), torch.arange(9) % 3
    with pytest.raises(HeadError, match="another result is computed from the first"):
        FineTuner(WithFeatures(True), device="cpu").fit(data, progress=False)
    FineTuner(WithFeatures(False), device="cpu").fit(data, progress=False)
