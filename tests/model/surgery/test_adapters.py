"""Models with PEFT adapters in `FineTuner`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune import ArgumentError, CheckpointError, FineTuner, HeadError, Phase
from finetune.model.freezing import frozen_modules, trainable

# PEFT reads an attribute of transformers by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOKENS, LABELS = torch.arange(96).view(12, 8) % 30, torch.arange(12) % 4


def tuned(model: nn.Module, **settings: Any) -> FineTuner:
    return FineTuner(model, device="cpu", **settings)


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


def test_a_frozen_head_beside_adapters_is_warned_about(base: nn.Module) -> None:
    model = adapted(base, task_type=None)  # nothing in modules_to_save
    with pytest.warns(UserWarning, match="is frozen, so it stays random.*modules_to_save"):
        tuned(model).fit((TOKENS, LABELS), progress=False)


@pytest.mark.parametrize("strategy", [None, "full_finetune", [Phase("*", lr=1e-2)], "gradual_unfreezing", "lp_ft"])
def test_only_the_parameters_of_peft_train(base: nn.Module, strategy: Any) -> None:
    model = adapted(base)
    tuner = tuned(model)
    fit = lambda: tuner.fit((TOKENS, LABELS), epochs=4, lr=1e-2, batch_size=4, strategy=strategy, progress=False)  # noqa: E731
    assert moved(model, fit) == own(model)
    assert len(own(model)) == 10


def test_unfreezing_everything_unfreezes_the_parameters_of_peft(base: nn.Module) -> None:
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
    assert set(trainable(tuned(again.model).unfreeze().model)) == own(model)  # even if all of it was frozen before


def test_the_adapters_dropout_is_on_while_the_base_is_in_eval_mode(base: nn.Module) -> None:
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


def test_a_checkpoint_holds_the_adapters_and_checks_the_base(base: nn.Module, tmp_path: Path) -> None:
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


def test_base_layers_trained_by_name_are_in_the_checkpoint_too(base: nn.Module, tmp_path: Path) -> None:
    tuner = tuned(adapted(base)).unfreeze("*.bert.pooler")
    tuner.fit((TOKENS, LABELS), lr=1e-2, progress=False)
    tuner.freeze("*.bert.pooler")
    again = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "x"), adapted(base), device="cpu")
    assert torch.equal(again.predict(TOKENS), tuner.predict(TOKENS))
    once_more = FineTuner.load_checkpoint(again.save_checkpoint(tmp_path / "y"), adapted(base), device="cpu")
    assert torch.equal(once_more.predict(TOKENS), tuner.predict(TOKENS))


def test_a_run_with_adapters_resumes_bit_for_bit(base: nn.Module, tmp_path: Path) -> None:
    whole = tuned(adapted(base))
    whole.fit((TOKENS, LABELS), epochs=2, schedule="constant", progress=False)
    first = tuned(adapted(base))
    first.fit((TOKENS, LABELS), epochs=1, schedule="constant", checkpoint_dir=tmp_path, progress=False)
    second = tuned(adapted(base))
    second.fit((TOKENS, LABELS), epochs=2, schedule="constant", resume_from=tmp_path, progress=False)
    assert torch.equal(second.predict(TOKENS), whole.predict(TOKENS))


def test_the_base_cannot_be_changed_beneath_adapters(base: nn.Module) -> None:
    tuner = tuned(adapted(base))
    with pytest.raises(HeadError, match=r"get_peft_model\(FineTuner\(model\)\.replace_head\(5\)\.model, config\)"):
        tuner.replace_head(5)
    with pytest.raises(ArgumentError, match=r"get_peft_model\(FineTuner\(model, in_channels=1\)\.model, config\)"):
        tuned(adapted(base), in_channels=1)
    changed = tuned(copy.deepcopy(base)).replace_head(5)
    after = tuned(adapted(changed.model))
    assert after.predict(TOKENS).shape == (12, 5)


@pytest.mark.parametrize("family", ["torchvision", "timm"])
def test_adapters_in_image_models(family: str, tmp_path: Path) -> None:
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
    assert moved(tuner.model, lambda: tuner.fit((pictures, torch.arange(6) % 3), progress=False)) == own(tuner.model)
    file = tuner.save_checkpoint(tmp_path / "vit")
    again = FineTuner.load_checkpoint(file, peft.get_peft_model(bare, peft.LoraConfig(**settings)), device="cpu")
    assert torch.equal(again.predict(pictures), tuner.predict(pictures))


@pytest.mark.no_cover
def test_a_compiled_model_with_adapters(base: nn.Module, tmp_path: Path) -> None:
    tuner = tuned(torch.compile(adapted(base), backend="eager"))
    assert moved(tuner.inner, lambda: tuner.fit((TOKENS, LABELS), progress=False)) == own(tuner.inner)
    again = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "x"), adapted(base), device="cpu")
    torch.testing.assert_close(again.predict(TOKENS), tuner.predict(TOKENS))


def test_the_head_is_the_adapted_layer_without_its_base(base: nn.Module) -> None:
    model = adapted(base, task_type=None, target_modules=["query", "classifier"])
    tuner = tuned(model).freeze()
    assert set(trainable(model)) == {f"base_model.model.classifier.lora_{part}.default.weight" for part in "AB"}
    assert tuner.predict(TOKENS).shape == (12, 4)
    assert moved(model, lambda: tuner.fit((TOKENS, LABELS), progress=False)) <= set(trainable(model))
