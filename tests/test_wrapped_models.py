"""Models that come wrapped, by `torch.compile`, DataParallel and DistributedDataParallel or PEFT, through the verbs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import ArgumentError, CheckpointError, FineTuner, HeadError, Phase
from finetune.model.freezing import frozen_modules, trainable

# PEFT asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

torch.manual_seed(0)
X, Y = torch.randn(16, 3, 8, 8), torch.arange(16) % 3


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
    """Have a process group of one."""
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
        tuner.predict(X[:4])  # compiled once already, with the old head, all of it in training
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
        (in_place, "the model came compiled"),
    ],
    ids=["DataParallel", "compiled", "compiled in place"],
)
def test_a_wrapped_model_is_not_taken_apart_and_that_is_said(
    wrap: Callable[[nn.Module], nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        tuned(wrap(net())).freeze().fit((X, Y), epochs=2, cache="memory", progress=False)
    assert f"cache: none, as {reason}" in caplog.text


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_names_are_the_inner_models_and_the_wrapper_stays(wrap: Callable[[nn.Module], nn.Module]) -> None:
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
def test_what_is_frozen_stays_in_eval_mode_whichever_is_put_in_train_mode(
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


def test_a_model_compiled_in_place_is_right_after_its_head_was_replaced() -> None:
    model = net()
    model.compile(backend="eager")
    model.eval()(X)
    tuner = tuned(model).replace_head(3).freeze()
    assert tuner.summary(input_size=(3, 8, 8)).rows[-1].shape == (3,)
    tuner.fit((X, Y), progress=False)
    plain = tuned(net()).replace_head(3).freeze()
    plain.fit((X, Y), progress=False)
    torch.testing.assert_close(tuner.predict(X), plain.predict(X))


def test_distributed_data_parallel_trains_what_it_was_made_for_or_says_so(group: None) -> None:
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


# ---------------------------------------------------------------------------------------------- PEFT

TOKENS, LABELS = torch.arange(96).view(12, 8) % 30, torch.arange(12) % 4


@pytest.fixture(scope="module")
def base() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        num_labels=4, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config)


def adapted(base: nn.Module, **settings: Any) -> Any:
    import peft

    given = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"], "lora_dropout": 0.1, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**given))


def moved(model: nn.Module, train: Callable[[], Any]) -> set[str]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def own(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if "lora_" in name or "modules_to_save" in name}


def test_a_head_that_the_adapters_leave_frozen_is_warned_of(base: nn.Module) -> None:
    model = adapted(base, task_type=None)  # nothing in modules_to_save
    with pytest.warns(UserWarning, match="is frozen, so it stays random.*modules_to_save"):
        tuned(model).fit((TOKENS, LABELS), progress=False)


@pytest.mark.parametrize("strategy", [None, "full_finetune", [Phase("*", lr=1e-2)], "gradual_unfreezing", "lp_ft"])
def test_only_what_peft_trains_moves(base: nn.Module, strategy: Any) -> None:
    model = adapted(base)
    tuner = tuned(model)
    fit = lambda: tuner.fit((TOKENS, LABELS), epochs=4, lr=1e-2, batch_size=4, strategy=strategy, progress=False)  # noqa: E731
    assert moved(model, fit) == own(model)
    assert len(own(model)) == 10


def test_everything_is_all_that_peft_trains_and_a_name_is_what_it_says(base: nn.Module) -> None:
    model = adapted(base)
    tuner = tuned(model).freeze()
    head = "base_model.model.classifier.modules_to_save.default"
    assert set(trainable(model)) == {f"{head}.weight", f"{head}.bias"}
    assert tuner.head.out_features == 4
    tuner.unfreeze()
    assert set(trainable(model)) == own(model)
    tuner.unfreeze("*.bert.pooler")
    assert set(trainable(model)) == own(model) | {f"base_model.model.bert.pooler.dense.{n}" for n in ("weight", "bias")}
    again = tuned(adapted(base).eval()).freeze()
    assert set(trainable(tuned(again.model).unfreeze().model)) == own(model)  # also where all of it came frozen


def test_the_adapters_dropout_is_on_and_the_base_beneath_it_in_eval_mode(base: nn.Module) -> None:
    model = adapted(base)
    tuned(model)
    model.train()
    frozen = set(frozen_modules(model))
    layers = [module for name, module in model.named_modules() if name.endswith(("query", "value"))]
    assert len(layers) == 4
    for layer in layers:
        assert layer.base_layer in frozen
        assert not layer.base_layer.training
        assert layer.lora_dropout["default"].training
        assert layer.lora_A["default"].training
    assert not model.base_model.model.bert.embeddings.dropout.training


def test_a_checkpoint_holds_what_peft_saves_and_knows_its_base(base: nn.Module, tmp_path: Path) -> None:
    import peft

    tuner = tuned(adapted(base))
    tuner.fit((TOKENS, LABELS), epochs=2, lr=1e-2, progress=False)
    file = tuner.save_checkpoint(tmp_path / "adapted.safetensors")
    again = FineTuner.load_checkpoint(file, adapted(base), device="cpu")
    assert torch.equal(again.predict(TOKENS), tuner.predict(TOKENS))
    assert set(trainable(again.model)) == own(tuner.model)
    tuner.model.save_pretrained(tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "peft").eval()
    assert torch.equal(theirs(TOKENS).logits, tuner.predict(TOKENS))

    other = copy.deepcopy(base)
    with torch.no_grad():
        other.bert.pooler.dense.bias[0] += 1e-6
    before = {name: value.clone() for name, value in adapted(other).state_dict().items()}
    stranger = adapted(other)
    with pytest.raises(CheckpointError, match="the base"):
        FineTuner.load_checkpoint(file, stranger, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in stranger.state_dict().items())
    with pytest.raises(CheckpointError):
        FineTuner.load_checkpoint(file, copy.deepcopy(base), device="cpu")
    with pytest.raises(CheckpointError):
        FineTuner.load_checkpoint(file, adapted(base, r=4), device="cpu")


def test_what_else_was_trained_by_name_is_in_the_checkpoint_too(base: nn.Module, tmp_path: Path) -> None:
    tuner = tuned(adapted(base)).unfreeze("*.bert.pooler")
    tuner.fit((TOKENS, LABELS), lr=1e-2, progress=False)
    tuner.freeze("*.bert.pooler")
    again = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "x"), adapted(base), device="cpu")
    assert torch.equal(again.predict(TOKENS), tuner.predict(TOKENS))
    once_more = FineTuner.load_checkpoint(again.save_checkpoint(tmp_path / "y"), adapted(base), device="cpu")
    assert torch.equal(once_more.predict(TOKENS), tuner.predict(TOKENS))


def test_a_run_over_adapters_resumes_bit_for_bit(base: nn.Module, tmp_path: Path) -> None:
    whole = tuned(adapted(base))
    whole.fit((TOKENS, LABELS), epochs=2, schedule="constant", progress=False)
    first = tuned(adapted(base))
    first.fit((TOKENS, LABELS), epochs=1, schedule="constant", checkpoint_dir=tmp_path, progress=False)
    second = tuned(adapted(base))
    second.fit((TOKENS, LABELS), epochs=2, schedule="constant", resume_from=tmp_path, progress=False)
    assert torch.equal(second.predict(TOKENS), whole.predict(TOKENS))


def test_the_base_is_changed_before_it_gets_adapters(base: nn.Module) -> None:
    tuner = tuned(adapted(base))
    with pytest.raises(HeadError, match=r"get_peft_model\(FineTuner\(model\)\.replace_head\(5\)\.model, config\)"):
        tuner.replace_head(5)
    with pytest.raises(ArgumentError, match=r"get_peft_model\(FineTuner\(model, in_channels=1\)\.model, config\)"):
        tuned(adapted(base), in_channels=1)
    changed = tuned(copy.deepcopy(base)).replace_head(5)
    after = tuned(adapted(changed.model))
    assert after.predict(TOKENS).shape == (12, 5)


@pytest.mark.parametrize("family", ["torchvision", "timm"])
def test_adapters_in_models_of_pictures(family: str, tmp_path: Path) -> None:
    import peft
    from torchvision.models import VisionTransformer

    if family == "timm":
        timm = pytest.importorskip("timm")
        options = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
        model, targets, head = timm.models.VisionTransformer(**options), ["qkv"], "head"
    else:
        model, targets, head = VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3), ["mlp.0", "mlp.3"], "heads.head"
    pictures = torch.randn(6, 3, 16, 16)
    bare = copy.deepcopy(model)
    settings = {"target_modules": targets, "r": 2, "modules_to_save": [head], "init_lora_weights": False}
    tuner = tuned(peft.get_peft_model(model, peft.LoraConfig(**settings)))
    assert tuner.freeze().head.out_features == 3
    tuner.unfreeze()
    assert moved(tuner.model, lambda: tuner.fit((pictures, Y[:6]), progress=False)) == own(tuner.model)
    file = tuner.save_checkpoint(tmp_path / "vit")
    again = FineTuner.load_checkpoint(file, peft.get_peft_model(bare, peft.LoraConfig(**settings)), device="cpu")
    assert torch.equal(again.predict(pictures), tuner.predict(pictures))


def test_a_compiled_model_with_adapters(base: nn.Module, tmp_path: Path) -> None:
    tuner = tuned(torch.compile(adapted(base), backend="eager"))
    assert moved(tuner.inner, lambda: tuner.fit((TOKENS, LABELS), progress=False)) == own(tuner.inner)
    again = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "x"), adapted(base), device="cpu")
    torch.testing.assert_close(again.predict(TOKENS), tuner.predict(TOKENS))


def test_an_adapted_head_is_the_head_and_its_base_is_not(base: nn.Module) -> None:
    model = adapted(base, task_type=None, target_modules=["query", "classifier"])
    tuner = tuned(model).freeze()
    assert set(trainable(model)) == {f"base_model.model.classifier.lora_{part}.default.weight" for part in "AB"}
    assert tuner.predict(TOKENS).shape == (12, 4)
    assert moved(model, lambda: tuner.fit((TOKENS, LABELS), progress=False)) <= set(trainable(model))
