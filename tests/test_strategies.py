"""Strategies: the phases that each returns, and training with each."""

from __future__ import annotations

import itertools
import sys
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune import FineTuner, Phase, strategies
from finetune.callbacks import Callback
from finetune.checkpoint.starting_weights import starting_weights
from finetune.errors import ArgumentError, CheckpointError, PatternError
from finetune.model.freezing import trainable
from finetune.model.stages import Stage
from finetune.training.optim.rates import LayerDecay, Rate

NAMES = ("linear_probe", "last_stage", "full_finetune", "gradual_unfreezing", "lp_ft", "from_scratch", "lora")
FIVE = [Stage(name, (f"{name}.weight", f"{name}.bias")) for name in ("stem", "layer1", "layer2", "layer3", "fc")]


def names(*stages: str) -> tuple[str, ...]:
    return tuple(f"{stage}.{kind}" for stage in stages for kind in ("weight", "bias"))


@pytest.mark.parametrize(
    ("strategy", "epochs", "expected"),
    [
        ("linear_probe", 3, [Phase(names("fc"), 3, 0.1, name="linear_probe")]),
        ("last_stage", 3, [Phase(names("layer3", "fc"), 3, 0.1, name="last_stage")]),
        ("full_finetune", 3, [Phase("*", 3, 0.1, name="full_finetune")]),
        ("lp_ft", 5, [Phase(names("fc"), 2, 0.1, name="linear_probe"), Phase("*", 3, 0.1 * 0.1, name="finetune")]),
        ("lp_ft", 1, [Phase(names("fc"), 1, 0.1, name="linear_probe")]),
        (
            "gradual_unfreezing",
            7,
            [
                Phase(names("fc"), 1, 0.1, name="gradual_unfreezing_1"),
                Phase(names("layer3", "fc"), 1, 0.1, name="gradual_unfreezing_2"),
                Phase(names("layer2", "layer3", "fc"), 2, 0.1, name="gradual_unfreezing_3"),
                Phase(names("layer1", "layer2", "layer3", "fc"), 1, 0.1, name="gradual_unfreezing_4"),
                Phase(names("stem", "layer1", "layer2", "layer3", "fc"), 2, 0.1, name="gradual_unfreezing_5"),
            ],
        ),
        (
            "gradual_unfreezing",
            3,
            [
                Phase(names("fc"), 1, 0.1, name="gradual_unfreezing_1"),
                Phase(names("layer2", "layer3", "fc"), 1, 0.1, name="gradual_unfreezing_2"),
                Phase(names("stem", "layer1", "layer2", "layer3", "fc"), 1, 0.1, name="gradual_unfreezing_3"),
            ],
        ),
        ("gradual_unfreezing", 1, [Phase(names("fc"), 1, 0.1, name="gradual_unfreezing_1")]),
        ("from_scratch", 3, [Phase("*", 3, 0.1, name="from_scratch", start_from="scratch")]),
        ("lora", 3, [Phase(("*lora_*", *names("fc")), 3, 0.1, name="lora", lora_rank=8)]),
        ("surgical:layer1", 3, [Phase(("layer1", *names("fc")), 3, 0.1, name="surgical_layer1")]),
    ],
)
def test_the_phases_for_five_stages(strategy: str, epochs: int, expected: list[Phase]) -> None:
    assert strategies.get_strategy(strategy)(FIVE, epochs, 0.1) == expected


@pytest.mark.parametrize(("name", "expected"), [("from_scratch", 1e-3), ("lora", (1e-4, 1e-3)), ("last_stage", None)])
def test_new_weights_do_not_train_at_the_default_rates_of_pretrained_ones(name: str, expected: Any) -> None:
    assert [phase.lr for phase in strategies.get_strategy(name)(FIVE, 3, None)] == [expected]


@given(name=st.sampled_from(NAMES), epochs=st.integers(1, 60), count=st.integers(1, 15))
def test_epochs_sum_to_the_number_given(name: str, epochs: int, count: int) -> None:
    stages = [Stage(f"s{i}", (f"s{i}.weight",)) for i in range(count)]

    phases = strategies.get_strategy(name)(stages, epochs, None)

    assert sum(phase.epochs for phase in phases) == epochs
    assert all(phase.epochs >= 1 for phase in phases)


@given(epochs=st.integers(2, 60), count=st.integers(1, 15))
def test_gradual_unfreezing_ends_with_the_whole_model_and_never_refreezes(epochs: int, count: int) -> None:
    stages = [Stage(f"s{i}", (f"s{i}.weight",)) for i in range(count)]

    depths = [set(phase.train or ()) for phase in strategies.gradual_unfreezing(stages, epochs, None)]

    assert depths[-1] == {stage.parameters[0] for stage in stages}
    assert all(before < after for before, after in itertools.pairwise(depths))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("epochs", [0, -2, 1.5])
def test_an_invalid_number_of_epochs_is_an_error(name: str, epochs: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected epochs to be a whole number"):
        strategies.get_strategy(name)(FIVE, epochs, None)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("linear_prob", "linear_probe"), ("lpft", "lp_ft"), ("surgical", "surgical:BLOCK"), ("lor", "lora")],
)
def test_an_unknown_strategy_is_an_error_with_the_nearest_name(typo: str, meant: str) -> None:
    with pytest.raises(ArgumentError, match=f"There is no strategy '{typo}'. Did you mean '{meant}'"):
        strategies.get_strategy(typo)


def test_strategies_are_named_after_their_functions() -> None:
    assert tuple(strategies.STRATEGIES) == NAMES
    assert all(strategies.get_strategy(name) is getattr(strategies, name) for name in NAMES)


class Tiny(nn.Module):
    """Five stages, each but the head with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (4, 6, 6, 6, 6)
        for name, before, after in zip(("stem", "layer1", "layer2", "layer3"), sizes, sizes[1:], strict=False):
            self.add_module(name, nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer3(self.layer2(self.layer1(self.stem(x)))))


MOVED = {
    "linear_probe": {"fc"},
    "last_stage": {"layer3", "fc"},
    "full_finetune": {"stem", "layer1", "layer2", "layer3", "fc"},
    "gradual_unfreezing": {"stem", "layer1", "layer2", "layer3", "fc"},
    "lp_ft": {"stem", "layer1", "layer2", "layer3", "fc"},
    "from_scratch": {"stem", "layer1", "layer2", "layer3", "fc"},
    "lora": {"stem", "layer1", "layer2", "layer3", "fc"},
    "surgical:layer2": {"layer2", "fc"},
}


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("lr", [None, 1e-2, (1e-3, 1e-2)])
def test_each_strategy_trains_its_stages(name: str, lr: Any) -> None:
    if name == "lora":
        pytest.importorskip("peft")
    torch.manual_seed(0)
    model = Tiny()
    X, y = torch.randn(30, 4), torch.arange(30) % 3
    before = {key: value.clone() for key, value in model.state_dict().items()}

    history = FineTuner(model, device="cpu").fit((X, y), epochs=6, strategy=name, lr=lr, batch_size=10)

    after = model.state_dict()
    moved = {key.partition(".")[0] for key in after if key not in before or not torch.equal(after[key], before[key])}
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert moved == MOVED[name]
    assert all(set(row["lr"]) for row in history)


@pytest.mark.parametrize("spread", [(1e-3, 1e-2), {"*": 1e-3, "fc.*": 1e-2}, LayerDecay(1e-2), None])
def test_lp_ft_uses_rates_by_stage_or_name_unchanged(spread: Rate | None) -> None:
    probe, finetune = strategies.lp_ft(FIVE, 6, spread)
    assert probe.lr == finetune.lr == spread


def test_the_second_phase_of_lp_ft_uses_a_tenth_of_a_single_rate_or_the_defaults() -> None:
    model = Tiny()
    X, y = torch.randn(30, 4), torch.arange(30) % 3

    tuner = FineTuner(model, device="cpu")
    history = tuner.fit((X, y), epochs=4, strategy="lp_ft", schedule=lambda progress: 1.0, lr=1e-2)
    by_default = FineTuner(model, device="cpu").fit((X, y), epochs=3, strategy="lp_ft", schedule="constant")

    assert [row["phase"] for row in history] == ["linear_probe"] + ["finetune"] * 3
    assert [set(row["lr"].values()) for row in history] == [{1e-2}, *3 * [{1e-2 * 0.1}]]
    assert len({*by_default[-1]["lr"].values()}) > 3
    assert by_default[-1]["lr"]["fc"] == by_default[0]["lr"]["fc"]


# ---------------------------------------------------------------------- names, functions and lists


def tiny(seed: int = 0) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tiny()


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, generator=generator), torch.arange(30) % 3


def fitted(data: Any, strategy: Any, model: nn.Module | None = None, **kwargs: Any) -> FineTuner:
    tuner = FineTuner(tiny() if model is None else model, device="cpu")
    tuner.fit(data, batch_size=10, strategy=strategy, **kwargs)
    return tuner


@pytest.mark.parametrize("name", ["lp_ft", "from_scratch", "gradual_unfreezing"])
def test_name_function_and_list_of_phases_train_the_same(name: str, data, same) -> None:
    arguments = {"epochs": 5, "lr": 1e-2, "schedule": "linear"}
    stages = FineTuner(tiny(), device="cpu").network.trainable_stages()
    listed = strategies.get_strategy(name)(stages, 5, 1e-2)

    runs = [fitted(data, strategy, **arguments) for strategy in (name, getattr(strategies, name), listed)]

    states = [tuner.model.state_dict() for tuner in runs]
    assert same(dict(states[0]), dict(states[1]))
    assert same(dict(states[0]), dict(states[2]))


def test_a_phase_without_lr_or_schedule_uses_those_of_fit(data) -> None:
    phases = [Phase("fc", 1), Phase("*", 1, lr=0.5, schedule="constant")]

    tuner = fitted(data, phases, lr=0.25, schedule=lambda progress: 0.5)

    assert [set(row["lr"].values()) for row in tuner.history] == [{0.125}, {0.5}]


def test_a_function_that_does_not_return_phases_is_an_error(data) -> None:
    with pytest.raises(ArgumentError, match="a function that returns one, but got"):
        fitted(data, lambda stages, epochs, lr: ["linear_probe"])


# ---------------------------------------------------------------------- starting weights


def test_from_scratch_does_not_depend_on_the_previous_weights(data, same) -> None:
    one, other = tiny(1), tiny(2)
    with torch.no_grad():
        other.stem[1].running_mean += 3.0
        other.stem[1].num_batches_tracked += 7

    trained = [fitted(data, "from_scratch", model, epochs=2) for model in (one, other)]
    another_seed = FineTuner(tiny(1), device="cpu", seed=1)
    another_seed.fit(data, batch_size=10, strategy="from_scratch", epochs=2)

    assert same(dict(trained[0].model.state_dict()), dict(trained[1].model.state_dict()))
    assert not same(dict(trained[0].model.state_dict()), dict(another_seed.model.state_dict()))


def test_parameters_that_cannot_be_reset_are_an_error_before_training(data, same) -> None:
    class WithToken(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.ones(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.layer3(self.layer2(self.layer1(self.stem(x)))) + self.token)

    model = WithToken()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(
        ArgumentError, match="1 parameters cannot be reinitialized, the first is 'token' of a WithToken"
    ):
        fitted(data, [Phase("fc", 1), Phase("*", 1, start_from="scratch")], model)

    assert same(dict(model.state_dict()), before)


def test_a_custom_reset_runs_after_those_of_its_parts(data) -> None:
    class Own(Tiny):
        def reset_parameters(self) -> None:
            nn.init.constant_(self.fc.weight, 0.5)

    model = Own()

    class Look(Callback):
        def on_phase_begin(self, run: Any) -> None:
            self.weight = run.model.fc.weight.clone()

    look = Look()
    FineTuner(model, device="cpu").fit(data, strategy="from_scratch", callbacks=[look])

    assert torch.equal(look.weight, torch.full((3, 6), 0.5))


def test_a_named_model_is_reset_as_its_constructor_initializes_it() -> None:
    tuner = FineTuner("squeezenet1_1", weights=None, device="cpu", seed=3).replace_head(2)
    state = starting_weights(tuner.network, "scratch", seed=3)

    final = state["features.0.weight"]  # Kaiming uniform with bound sqrt(6 / fan_in)
    assert final.abs().max() > 0.4
    assert state.keys() == tuner.model.state_dict().keys()
    assert not torch.equal(final, tuner.model.features[0].weight)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_transformers_model_is_reset_by_its_own_rules() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    model = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)

    state = starting_weights(FineTuner(model, device="cpu").network, "scratch", seed=0)

    assert all(value.abs().max() < 1.5 for name, value in state.items() if value.is_floating_point())
    assert 0.01 < state["vit.embeddings.cls_token"].std() < 0.04  # initializer_range is 0.02


def test_lp_ft_may_start_from_a_saved_probe(data, tmp_path, same) -> None:
    whole = fitted(data, "lp_ft", epochs=6, lr=1e-2, checkpoint_dir=tmp_path)
    probe = fitted(data, "linear_probe", epochs=2, lr=1e-2)
    probe.save_checkpoint(tmp_path / "probe.safetensors")

    class First(Callback):
        state: Any = None

        def on_phase_begin(self, run: Any) -> None:
            self.state = {name: value.clone() for name, value in run.model.state_dict().items()}

    first, other = First(), tiny(5)
    strategy = partial(strategies.lp_ft, probe=tmp_path / "probe.safetensors")
    tuner = fitted(data, strategy, other, epochs=2, callbacks=[first])

    assert same(first.state, dict(probe.model.state_dict()))
    assert [row["phase"] for row in tuner.history] == ["finetune"] * 2
    assert [row["phase"] for row in whole.history] == ["linear_probe"] * 2 + ["finetune"] * 4


def test_mismatched_starting_weights_are_an_error_before_training(data, tmp_path) -> None:
    FineTuner(nn.Sequential(nn.Linear(4, 3)), device="cpu").save_checkpoint(tmp_path / "other.safetensors")
    model = tiny()

    with pytest.raises(CheckpointError, match="does not belong to this Tiny"):
        fitted(data, [Phase("fc"), Phase("*", start_from=tmp_path / "other.safetensors")], model)
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors"):
        fitted(data, [Phase("fc"), Phase("*", start_from=tmp_path / "nowhere.safetensors")], model)

    assert torch.equal(model.fc.weight, tiny().fc.weight)


def test_moments_do_not_carry_over_to_other_weights(data) -> None:
    class Steps(Callback):
        steps: tuple[float, ...] = ()

        def on_step_end(self, run: Any) -> None:
            self.steps += (float(run.optimizer.state[run.model.fc.weight]["step"]),)

    steps = Steps()
    fitted(data, [Phase("*", 1), Phase("*", 1), Phase("*", 1, start_from="scratch")], callbacks=[steps])

    assert steps.steps == (1, 2, 3, 4, 5, 6, 1, 2, 3)


@pytest.mark.parametrize("interrupted", [1, 2, 3])
def test_from_scratch_resumes_bit_for_bit(data, tmp_path, same, interrupted: int) -> None:
    class Cut(Callback):
        saves_run = True

        def on_epoch_end(self, run: Any) -> None:
            if run.epoch == interrupted:
                run.save(tmp_path / "cut.safetensors")

    strategy = [Phase("fc", 2), Phase("*", 2, start_from="scratch", name="again")]
    whole = fitted(data, strategy, callbacks=[Cut()])

    resumed = fitted(data, strategy, tiny(9), resume_from=tmp_path / "cut.safetensors")

    assert same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))


# ---------------------------------------------------------------------- LoRA


def test_lora_trains_only_the_adapters_and_the_head(data) -> None:
    pytest.importorskip("peft")
    model = tiny()
    before = {name: value.clone() for name, value in model.named_parameters()}
    identity = {id(value) for value in model.parameters()}

    tuner = fitted(data, partial(strategies.lora, rank=2), model, epochs=3)

    assert tuner.model is model
    now = dict(model.named_parameters())
    assert set(trainable(model)) == {name for name in now if "lora_" in name} | {"fc.weight", "fc.bias"}
    assert now["layer1.0.lora_A.default.weight"].shape == (2, 6)
    for name, value in before.items():
        kept = now.get(name, now.get(name.replace("0.", "0.base_layer.")))
        assert id(kept) in identity
        assert torch.equal(kept, value) == (not name.startswith("fc"))
    assert list(tuner.history[0]["lr"]) == ["stem", "layer1", "layer2", "layer3", "fc"]


def test_lora_starts_from_the_outputs_of_the_original_model(data) -> None:
    pytest.importorskip("peft")
    plain = FineTuner(tiny(), device="cpu").predict(data[0])

    class Look(Callback):
        def on_phase_begin(self, run: Any) -> None:
            self.outputs = run.tuner.predict(data[0])

    look = Look()
    fitted(data, "lora", callbacks=[look])

    torch.testing.assert_close(look.outputs, plain)


def test_a_lora_checkpoint_holds_the_adapters(data, tmp_path, same) -> None:
    pytest.importorskip("peft")
    tuner = FineTuner("squeezenet1_1", weights=None, device="cpu").replace_head(3)
    pictures = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    tuner.fit(pictures, strategy="lora", batch_size=3)
    tuner.save_checkpoint(tmp_path / "lora.safetensors")
    own = fitted(data, "lora")
    own.save_checkpoint(tmp_path / "own.safetensors")

    again = FineTuner.load_checkpoint(tmp_path / "lora.safetensors", device="cpu")
    other = FineTuner.load_checkpoint(tmp_path / "own.safetensors", tiny(4), device="cpu")

    assert torch.equal(again.predict(pictures[0]), tuner.predict(pictures[0]))
    assert set(trainable(again.model)) == set(trainable(tuner.model))
    assert torch.equal(other.predict(data[0]), own.predict(data[0]))
    other.fit(data, strategy="lora")  # reuses its adapters
    with pytest.raises(ArgumentError, match="has LoRA adapters of rank 8, so adapters of rank 4 cannot be added"):
        other.fit(data, strategy=partial(strategies.lora, rank=4))


def test_lora_resumes_bit_for_bit(data, tmp_path, same) -> None:
    pytest.importorskip("peft")
    whole = fitted(data, "lora", epochs=4)
    with pytest.raises(KeyError):
        fitted(data, "lora", epochs=4, callbacks=[Stop()], checkpoint_dir=tmp_path)

    resumed = fitted(data, "lora", tiny(3), epochs=4, resume_from=tmp_path)

    assert same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))


class Stop(Callback):
    """Interrupt a run in its third epoch."""

    only_watches = True

    def on_epoch_begin(self, run: Any) -> None:
        if run.epoch == 2:
            raise KeyError


def test_a_failed_plan_removes_the_adapters(data) -> None:
    pytest.importorskip("peft")
    model = tiny()
    tuner = FineTuner(model, device="cpu").freeze("stem")
    names = list(trainable(model))

    with pytest.raises(PatternError, match="nowhere"):
        tuner.fit(data, strategy=[Phase("*lora_*", lora_rank=2), Phase("nowhere")])

    assert list(trainable(model)) == names
    assert not any("lora" in name for name, _ in model.named_modules())
    fitted(data, "lora", model)


def test_without_peft_the_error_names_the_package_to_install(data, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)

    with pytest.raises(ArgumentError, match=r"peft is not installed. Run `pip install peft`"):
        fitted(data, "lora")


def test_a_model_without_a_layer_to_adapt_is_an_error(data) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ArgumentError, match="no linear layer and no convolution outside its head"):
        fitted(data, "lora", nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)))


@pytest.mark.parametrize("strategy", ["lp_ft", "gradual_unfreezing"])
def test_one_epoch_for_two_phases_is_said(strategy: str, caplog: pytest.LogCaptureFixture) -> None:
    data = torch.randn(12, 4), torch.arange(12) % 3
    for epochs, said in ((2, False), (1, True)):
        caplog.clear()
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        FineTuner(model, device="cpu").fit(data, strategy=strategy, epochs=epochs, progress=False)
        assert ("trains the head only. Pass epochs=2" in caplog.text) == said
