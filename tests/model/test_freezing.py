"""Freezing parameters, and keeping frozen modules in eval mode."""

from __future__ import annotations

import copy
import glob
import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional as F
from torchvision import models

from finetune import FineTuner
from finetune.distributed.divided import whole
from finetune.distributed.world import join
from finetune.errors import PatternError
from finetune.model import freezing
from finetune.model.patterns import select
from tests.helpers.models import TiedLanguageModel, TokenTransformer, modes, small_cnn, states, trees
from tests.helpers.worlds import in_processes


class Norm2d(nn.BatchNorm2d):
    """A user-defined batch norm."""


class Noisy(nn.Module):
    """Frozen batch norms and dropouts, followed by a trainable dropout and head."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), norm(), FunctionalDropout(), nn.Dropout(0.5))
        self.norm = norm()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.dropout(self.features(x)))
        return out

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.backbone(x)).mean((2, 3))
        return out


class FunctionalDropout(nn.Module):
    """A module with a parameter and a dropout that depends on its own `training`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x * self.scale, 0.5, self.training)


NORMS = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "affine=False": lambda: nn.BatchNorm2d(4, affine=False),
    "momentum=None": lambda: nn.BatchNorm2d(4, momentum=None),
    "subclass": lambda: Norm2d(4),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
}


def frozen(norm: str) -> Noisy:
    model = Noisy(NORMS[norm])
    freezing.freeze_all_but(model, "head")
    freezing.hold_frozen_in_eval(model)
    return model


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


class Wrapper(nn.Module):
    """Wraps a model as `module`, like DataParallel and DistributedDataParallel."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out


TRAINS: dict[str, Callable[[nn.Module], tuple[nn.Module, nn.Module]]] = {
    "train()": lambda model: (model.train(), model),
    "train(True)": lambda model: (model.train(True), model),
    "eval() first": lambda model: (model.eval().train(), model),
    "twice": lambda model: (model.train().train(), model),
    "in Sequential": lambda model: (nn.Sequential(model).train()[0], model),
    "in a container": lambda model: (Wrapper(Wrapper(model)).train(), model),
    "a deep copy": lambda model: ((twin := copy.deepcopy(model)).train(), twin),
    "pickled": lambda model: ((twin := pickled(model)).train(), twin),
    "of the library": lambda model: (freezing.train_mode(model), model),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("train", TRAINS)
def test_trap_04_frozen_norms_keep_their_statistics_after_every_train(norm: str, train: str) -> None:
    _, model = TRAINS[train](frozen(norm))
    assert isinstance(model, Noisy)
    assert model.training
    assert {name for name, training in modes(model).items() if training} == {"", "dropout", "head"}
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 3, 8, 8)
    if norm == "SyncBatchNorm":  # needs a process group in train mode, but not in eval mode
        assert not model.norm.training
    first, second = model.features(x), model.features(x)
    assert torch.equal(first, second)  # no dropout and no batch statistics
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_unfrozen_model_goes_back_to_train_mode() -> None:
    model = frozen("BatchNorm2d")
    assert not model.train().norm.training
    freezing.unfreeze(model)
    assert all(modes(model.train()).values())
    assert not any(modes(model.eval()).values())


def test_a_deep_copy_follows_its_own_freeze_state() -> None:
    model = frozen("BatchNorm2d")
    twin = copy.deepcopy(model)
    freezing.unfreeze(twin)
    twin.train()
    model.train()
    assert twin.norm.training
    assert not model.norm.training


def test_an_overridden_train_method_is_respected() -> None:
    class Own(nn.Sequential):
        def train(self, mode: bool = True) -> Own:
            super().train(mode)
            self[1].training = False
            return self

    model = Own(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    freezing.hold_frozen_in_eval(model)
    assert modes(model.train()) == {"": True, "0": True, "1": False, "2": True}


def test_norms_without_running_statistics_get_none() -> None:
    model = frozen("BatchNorm2d")
    model.norm = nn.BatchNorm2d(4, track_running_stats=False)
    freezing.freeze(model, "norm")
    model.train()
    assert not model.norm.training
    assert model.norm.track_running_stats is False
    assert model.norm.running_mean is None
    assert model.backbone[1].track_running_stats is True


def test_dropout_before_a_trainable_head_is_active() -> None:
    model = frozen("BatchNorm2d")
    model.train()
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("name", "dropouts"),
    [("vgg11", {"classifier.5"}), ("mobilenet_v3_small", {"classifier.2"}), ("efficientnet_b0", {"classifier.0"})],
)
def test_only_the_dropout_that_feeds_the_head_is_active(name: str, dropouts: set[str]) -> None:
    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    last = next(reversed(dict(model.named_parameters()))).rpartition(".")[0]
    freezing.freeze_all_but(model, last)
    freezing.train_mode(model)
    running = {n for n, m in model.named_modules() if isinstance(m, nn.Dropout) and m.training}
    assert running == dropouts


def test_between_frozen_and_trainable_layers_a_norm_follows_the_one_before_and_a_dropout_the_one_after() -> None:
    def parts() -> list[nn.Module]:
        norm, drop = nn.BatchNorm1d(2, affine=False), nn.Sequential(nn.ReLU(), nn.Dropout())
        return [nn.Linear(2, 2), norm, drop, nn.Linear(2, 2)]

    model = nn.Sequential(*parts())
    freezing.freeze(model, "0")
    freezing.train_mode(model)
    assert modes(model) == {"": True, "0": False, "1": False, "2": True, "2.0": True, "2.1": True, "3": True}
    model = nn.Sequential(*parts())
    freezing.freeze(model, "3")
    freezing.train_mode(model)
    assert modes(model) == {"": True, "0": True, "1": True, "2": False, "2.0": False, "2.1": False, "3": False}
    model = nn.Sequential(nn.ReLU(), *parts()[::3], nn.Dropout())
    freezing.freeze(model, "2")
    assert model[3] in freezing.frozen_modules(model)  # without a layer after it, the one before it decides
    assert model[0] not in freezing.frozen_modules(model)


def test_next_to_a_list_of_layers_the_closest_layer_decides() -> None:
    """As in GPT-2, where a dropout after the embeddings feeds the first block, even if only later blocks train."""
    model = nn.Sequential(
        nn.Embedding(3, 2), nn.Dropout(), nn.ModuleList(nn.Linear(2, 2) for _ in range(3)),
        nn.BatchNorm1d(2, affine=False), nn.Dropout(), nn.Linear(2, 2),
    )  # fmt: skip
    early, norm, late = model[1], model[3], model[4]
    freezing.train_only(model, ["2.2", "5"])
    assert early in freezing.frozen_modules(model)
    assert not {norm, late} & set(freezing.frozen_modules(model))
    freezing.train_only(model, ["2.0", "5"])
    assert norm in freezing.frozen_modules(model)
    assert not {early, late} & set(freezing.frozen_modules(model))


def test_a_bare_parameter_makes_a_module_partly_trainable() -> None:
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(1))
    model.drop = nn.Dropout()
    model.inner = nn.Linear(1, 1)
    freezing.freeze(model, "scale")
    assert modes_after(model) == {"": True, "drop": True, "inner": True}
    freezing.train_only(model, "scale")
    assert modes_after(model) == {"": True, "drop": False, "inner": False}
    only = nn.Module()
    only.a, only.b, only.drop = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1)), nn.Dropout()
    freezing.freeze(only, "a")
    assert modes_after(only) == {"": True, "drop": True}


def modes_after(model: nn.Module) -> dict[str, bool]:
    freezing.train_mode(model)
    return modes(model)


@given(trees(), st.data())
def test_frozen_modules_are_in_eval_mode_and_the_others_are_not(model: nn.Module, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(states(model)) or [""])))
    freezing.set_frozen(model, chosen)
    freezing.train_mode(model)
    for module in model.modules():
        trains = {p.requires_grad for p in module.parameters()}
        if trains == {False}:
            assert not any(m.training for m in module.modules())
        elif trains:
            assert module.training
    if not any(p.requires_grad is False for p in model.parameters()):
        assert all(modes(model).values())
    freezing.eval_mode(model)
    assert not any(modes(model).values())


# ---------------------------------------------------------------- trainable parameters


@given(trees(), st.data())
def test_unfreeze_reverses_freeze(model: nn.Module, data: st.DataObject) -> None:
    before = states(model)
    assume(before)
    parts = [part for name in sorted(before) for part in (name, name.split(".")[0], name.rpartition(".")[0] or name)]
    globs = [form for part in parts for form in (part, f"{glob.escape(part)}*", glob.escape(part).replace("1", "?"))]
    wild = st.sampled_from([*globs, "*"])
    patterns = data.draw(st.lists(wild, min_size=1, max_size=3))
    freezing.freeze(model, patterns)
    named = {id(p) for p in select(model, patterns).values()}
    assert all(p.requires_grad is (id(p) not in named) for p in model.parameters())
    freezing.unfreeze(model, patterns)
    assert states(model) == before


@given(trees(), st.data())
def test_the_functions_agree_on_the_trainable_parameters(model: nn.Module, data: st.DataObject) -> None:
    names = list(dict(model.named_parameters()))
    assume(names)
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    one, two, three, four = (copy.deepcopy(model) for _ in range(4))
    freezing.train_only(one, chosen)
    freezing.freeze(two, "*")
    freezing.unfreeze(two, chosen)
    freezing.freeze_all_but(three, chosen)
    trains = set(freezing.trainable(one))
    assert trains == set(freezing.trainable(two)) == set(freezing.trainable(three))
    freezing.set_frozen(four, set(names) - trains)
    assert states(four) == states(one)
    assert trains >= set(chosen)


def test_trap_05_bare_and_packed_parameters_freeze_too() -> None:
    model = TokenTransformer()
    freezing.freeze_all_but(model, "head")
    assert list(freezing.trainable(model)) == ["head.weight", "head.bias"]
    frozen = {name for name, trains in states(model).items() if not trains}
    assert {"cls", "position", "blocks.0.self_attn.in_proj_weight"} <= frozen
    vit = models.VisionTransformer(32, 16, 1, 2, 8, 16)
    freezing.freeze(vit, ["class_token", "encoder"])
    assert not vit.class_token.requires_grad
    assert not vit.encoder.pos_embedding.requires_grad
    assert vit.conv_proj.weight.requires_grad


def test_freezing_drops_the_gradients_of_frozen_parameters_alone() -> None:
    for verb in (
        lambda m: freezing.freeze(m, "0"),
        lambda m: freezing.freeze_all_but(m, "1"),
        lambda m: freezing.train_only(m, "1"),
        lambda m: freezing.set_frozen(m, ["0.weight", "0.bias"]),
    ):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model(torch.ones(1, 2)).sum().backward()
        verb(model)
        assert model[0].weight.grad is None
        assert model[0].bias.grad is None
        assert model[1].weight.grad is not None


def test_freeze_all_but_leaves_the_matching_parameters_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freezing.freeze(model, "1.bias")
    freezing.freeze_all_but(model, "1")
    assert list(freezing.trainable(model)) == ["1.weight"]
    freezing.train_only(model, "1")
    assert list(freezing.trainable(model)) == ["1.weight", "1.bias"]


@pytest.mark.parametrize("verb", [freezing.freeze, freezing.freeze_all_but, freezing.unfreeze, freezing.train_only])
def test_a_wrong_pattern_changes_nothing(verb: Callable[[nn.Module, str], None]) -> None:
    model = small_cnn()
    freezing.freeze(model, "0")
    before = states(model)
    with pytest.raises(PatternError):
        verb(model, "nope")
    assert states(model) == before


def test_integer_parameters_are_never_trainable_and_complex_ones_are() -> None:
    model = nn.Module()
    model.packed = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    for verb in (freezing.unfreeze, lambda m: freezing.set_frozen(m, []), lambda m: freezing.train_only(m, "*")):
        verb(model)
        assert states(model) == {"packed": False, "phase": True}


def test_a_tied_parameter_freezes_under_either_name() -> None:
    model = TiedLanguageModel()
    freezing.freeze(model, "out")
    assert not model.embed.weight.requires_grad
    freezing.unfreeze(model, "embed")
    assert model.out.weight.requires_grad
    assert not model.out.bias.requires_grad


# ---------------------------------------------------------------- restoring


def test_modes_and_the_freeze_state_are_restored_after_an_exception() -> None:
    model = small_cnn()
    freezing.freeze(model, "0")
    model.eval()
    model[5].training = True
    before, trains = modes(model), states(model)
    model[6].weight.grad = torch.ones_like(model[6].weight)

    def spoil() -> None:
        with freezing.modes_restored(model), freezing.freeze_state_restored(model):
            model.train()
            freezing.train_only(model, "0")
            model[0].weight.grad = torch.ones_like(model[0].weight)
            raise KeyError

    with pytest.raises(KeyError):
        spoil()
    assert modes(model) == before
    assert states(model) == trains
    assert model[0].weight.grad is None  # frozen again, so its gradient is gone


def test_moving_statistics_are_those_of_trainable_norms() -> None:
    model = small_cnn()
    norm = model[1]
    assert {id(b) for b in freezing.moving_statistics(model)} >= {id(norm.running_mean), id(norm.running_var)}
    freezing.freeze(model, "1")
    assert freezing.moving_statistics(model) == []


def test_a_single_sample_runs_without_side_effects() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    freezing.freeze(model, "2")
    freezing.train_mode(model)
    with pytest.raises(ValueError, match="more than 1 value"):
        model(torch.ones(1, 3))
    before, state = modes(model), copy.deepcopy(model.state_dict())
    with freezing.single_sample(model):
        assert modes(model) == {**before, "1": False}
        model(torch.ones(1, 3)).sum().backward()
    assert modes(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[1].weight.grad is not None


def test_single_sample_leaves_other_norms_alone_and_is_undone_after_an_exception() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False), nn.InstanceNorm2d(2, track_running_stats=True)
    )

    def spoil() -> None:
        with freezing.single_sample(model):
            assert modes(model) == {"": True, "0": False, "1": True, "2": True}
            raise KeyError

    with pytest.raises(KeyError):
        spoil()
    assert all(modes(model).values())


class Padded(nn.Module):
    """A transformer over token ids, in which 0 is padding."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.embed, self.fc = kind, nn.Embedding(30, 16, padding_idx=0), nn.Linear(16, 2)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 3) if kind == "encoder" else nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3)
        )  # fmt: skip

    def forward(self, ids: Tensor) -> Tensor:
        padding, x = ids == 0, self.embed(ids)
        if self.kind == "encoder":
            return self.fc(self.layers(x, src_key_padding_mask=padding)[:, 0])
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return self.fc(x[:, 0])


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("strategy", ["linear_probe", "last_stage", "gradual_unfreezing"])
@pytest.mark.parametrize("kind", ["encoder", "stack"])
@pytest.mark.parametrize("cache", [False, "memory"])
def test_a_partly_frozen_transformer_takes_padding(kind: str, strategy: str, cache: bool | str) -> None:
    ids = torch.randint(1, 30, (8, 12))
    ids[::2, 8:] = 0
    model = Padded(kind)
    expected = FineTuner(model, device="cpu").predict(ids)
    tuner = FineTuner(model, device="cpu")
    assert torch.equal(tuner.predict(ids), expected)
    data = ids, torch.arange(8) % 2
    tuner.fit(data, data, strategy=strategy, epochs=3, cache=cache, progress=False)
    plain = copy.deepcopy(model).eval()
    with torch.no_grad():
        torch.testing.assert_close(tuner.predict(ids), plain(ids))


def test_whole_weights_are_restored_where_they_are_divided() -> None:
    """As by a callback whose state comes from a file."""
    saved = {"weight": torch.arange(6.0).reshape(3, 2)}

    def restore(rank: int) -> list[list[float]]:
        model, mesh = nn.Linear(2, 3, bias=False), init_device_mesh("cpu", (join("fsdp", torch.device("cpu")).size,))
        model.weight = nn.Parameter(distribute_tensor(torch.zeros(3, 2), mesh, [Shard(0)]))
        freezing.restore(model, saved)
        return whole(model.weight.detach()).tolist()

    assert in_processes(2, restore) == [saved["weight"].tolist()] * 2


def test_an_encoder_makes_nested_tensors_again_in_eval_mode() -> None:
    model = Padded("encoder")
    freezing.freeze(model, ["embed", "layers.layers.0"])
    freezing.train_mode(model)
    assert model.layers.use_nested_tensor is False
    with freezing.modes_restored(model):
        freezing.eval_mode(model)
        assert model.layers.use_nested_tensor is True
    assert model.layers.use_nested_tensor is False
