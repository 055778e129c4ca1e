"""timm's models: heads, stages, names. Small models, random weights, no network."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from finetune import FineTuner, Preprocessing
from finetune.errors import ArgumentError, CheckpointError, HeadError
from finetune.model import catalog
from finetune.model.families import family_of
from finetune.model.inspection.probing import accepted_example
from finetune.model.stages import stages
from finetune.model.surgery.head_search import find_head
from finetune.model.surgery.heads import replace_head

timm = pytest.importorskip("timm")

# Name -> options, heads: one model for each kind of classifier in timm.
MODELS = {
    "resnet10t": ({}, ("fc",)),
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, ("head",)),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, ("head", "head_dist")),
    "levit_128s": ({"img_size": 64}, ("head.linear", "head_dist.linear")),
    "repvit_m0_9": ({}, ("head.head.l", "head.head_dist.l")),
    "crossvit_9_240": ({}, ("head.0", "head.1")),
    "caformer_s18": ({}, ("head.fc.fc2",)),
    "resnetv2_18": ({}, ("head.fc",)),
    "dla46_c": ({}, ("fc",)),
}


@pytest.fixture(params=MODELS)
def made(request: pytest.FixtureRequest) -> tuple[str, nn.Module, tuple[str, ...]]:
    options, heads = MODELS[request.param]
    torch.manual_seed(0)
    return request.param, timm.create_model(request.param, **options), heads


def pictures(model: nn.Module) -> Tensor:
    example = accepted_example(model)
    assert isinstance(example, Tensor)
    return example[:2]


def test_the_head_is_replaced_and_nothing_else(made: tuple[str, nn.Module, tuple[str, ...]]) -> None:
    _, model, heads = made
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert find_head(model) == heads
    assert replace_head(model, 7, heads, verify=False) == heads
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - changed)
    assert model.num_classes == 7
    model.eval()
    with torch.no_grad():
        assert model(pictures(model)).shape == (2, 7)


def test_stages_are_complete_and_end_with_the_head(made: tuple[str, nn.Module, tuple[str, ...]]) -> None:
    _, model, heads = made
    found = stages(model, heads)
    listed = [name for stage in found for name in stage.parameters]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert len({stage.name for stage in found}) == len(found) >= 4
    last = {name for name in listed if name.rpartition(".")[0] in heads}
    assert set(found[-1].parameters) == last


@pytest.mark.parametrize(
    ("name", "norm", "stage"),
    [
        ("densenet121", "features.norm5.weight", "features.denseblock4"),
        ("convnext_atto", "head.norm.weight", "stages.3"),
        ("vit_tiny_patch16_224", "norm.weight", "blocks.11"),
    ],
)
def test_a_norm_before_the_head_is_not_part_of_it(name: str, norm: str, stage: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert [found.name for found in stages(model, find_head(model)) if norm in found.parameters] == [stage]


def test_layers_before_the_classifier_are_a_separate_stage() -> None:
    with torch.device("meta"):
        model = timm.create_model("vgg11")
    assert [stage.name for stage in stages(model, find_head(model))][-2:] == ["pre_logits", "head.fc"]


@pytest.mark.parametrize("name", ["resnet10t", "caformer_s18"])
def test_a_model_without_classes_gets_the_head_of_its_architecture(name: str) -> None:
    tuner = FineTuner(timm.create_model(name, num_classes=0).to(torch.float64)).replace_head(3)
    assert tuner.model.num_classes == 3
    assert tuner.head.weight.dtype == torch.float64
    tuner.model.eval()
    assert tuner.model(torch.zeros(2, 3, 64, 64, dtype=torch.float64)).shape == (2, 3)


def test_an_encoder_without_a_classifier_is_an_error() -> None:
    with torch.device("meta"):
        model = timm.create_model("mobilenetv5_300m_enc")
    with pytest.raises(HeadError, match="MobileNetV5Encoder is an encoder and has no classifier"):
        find_head(model)


def test_a_custom_head_is_found_in_its_place() -> None:
    model = timm.create_model("repvit_m0_9")
    model.head = nn.Sequential(nn.Linear(384, 8), nn.ReLU(), nn.Linear(8, 5))
    assert family_of(model).heads(model) == ("head",)


def test_a_subclass_with_its_own_forward_pass_is_searched() -> None:
    class Mine(timm.models.resnet.ResNet):
        def __init__(self) -> None:
            super().__init__(timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8))
            self.mine = nn.Linear(1000, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.mine(super().forward(x))
            return out

    assert find_head(Mine(), torch.zeros(2, 3, 32, 32)) == ("mine",)


def test_trap_27_a_distilled_heads_loss_has_weight_one_half_in_training_only() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=3)
    model.set_distilled_training(True)
    tuner = FineTuner(model, loss="cross_entropy")
    batch = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    model.train()
    main, distilled = model(batch[0])
    expected = (nn.functional.cross_entropy(main, batch[1]) + nn.functional.cross_entropy(distilled, batch[1])) / 2
    assert torch.equal(tuner.training_step(batch).loss, expected)
    model.eval()
    assert torch.equal(tuner.validation_step(batch).loss, nn.functional.cross_entropy(model(batch[0]), batch[1]))


# ---------------------------------------------------------------- by name


def test_a_name_gives_model_and_preprocessing_and_can_be_rebuilt() -> None:
    made = catalog.create("timm/resnet10t.c3_in1k", None)
    assert type(made.model).__module__ == "timm.models.resnet"
    assert made.preset["input_size"] == (3, 176, 176)
    assert made.classes is None
    again = catalog.rebuild(made.origin).state_dict()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in made.model.state_dict().items()}


def test_the_hub_cache_is_used_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    import huggingface_hub.constants

    theirs = timm.create_model("resnet10t.c3_in1k")
    folder = tmp_path / "models--timm--resnet10t.c3_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    safetensors.torch.save_file(theirs.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    made = catalog.create("timm/resnet10t.c3_in1k")
    state = made.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())
    assert made.classes is not None
    assert len(made.classes) == 1000
    assert made.classes[1].startswith("goldfish")


def test_without_a_network_or_a_cached_file_the_error_suggests_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # skip a minute of retries
    with pytest.raises(CheckpointError, match=r"not in the Hugging Face cache.*weights='FILE'"):
        catalog.create("timm/resnet10t")


def test_a_local_file_with_another_number_of_classes(tmp_path: Path) -> None:
    theirs = timm.create_model("resnet10t", num_classes=4)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    made = catalog.create("timm/resnet10t", tmp_path / "w.safetensors").model
    assert made.num_classes == 4
    assert torch.equal(made.fc.weight, theirs.fc.weight)


@pytest.mark.parametrize("name", ["timm/resnet10", "timm/resnet10t.nonsense"])
def test_an_unknown_name_suggests_the_nearest(name: str) -> None:
    with pytest.raises(ArgumentError, match="Did you mean 'resnet10t"):
        catalog.create(name, None)


def test_a_checkpoint_of_a_named_model_needs_no_model(tmp_path: Path) -> None:
    tuner = FineTuner("timm/resnet10t", weights=None).replace_head(3).freeze()
    pictures = torch.randn(4, 3, 64, 64)
    tuner.save_checkpoint(tmp_path / "t.safetensors")
    again = FineTuner.load_checkpoint(tmp_path / "t.safetensors")
    assert torch.equal(again.predict(pictures), tuner.predict(pictures))
    assert again.model.num_classes == 3


def test_a_module_has_its_own_data_config() -> None:
    tuner = FineTuner(timm.create_model("vit_tiny_patch16_224", depth=1))
    assert tuner.preprocessing.mean == (0.5, 0.5, 0.5)
    assert tuner.preprocessing.crop_size == (224, 224)


@pytest.mark.parametrize(
    ("name", "options", "channels", "crop_size"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}, 3, (64, 64)),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1, "dynamic_img_size": True}, 3, (64, 64)),
        ("vit_tiny_patch16_224", {"img_size": (64, 32), "depth": 1, "in_chans": 1}, 1, (64, 32)),
        ("mixer_s32_224", {"img_size": 64}, 3, (64, 64)),
        ("deit_tiny_distilled_patch16_224", {"img_size": 96, "depth": 1}, 3, (96, 96)),
        ("resnet10t", {"in_chans": 1}, 1, (176, 176)),
        ("tresnet_m", {}, 3, (224, 224)),
    ],
)
def test_the_preprocessing_is_of_the_size_that_a_model_was_built_for(
    name: str, options: dict[str, object], channels: int, crop_size: tuple[int, int]
) -> None:
    tuner = FineTuner(timm.create_model(name, num_classes=2, **options), device="cpu")
    assert isinstance(tuner.preprocessing, Preprocessing)
    assert (tuner.preprocessing.channels, tuner.preprocessing.crop_size) == (channels, crop_size)
    assert tuner.predict([Image.new("RGB", (40, 50))]).shape == (1, 2)
