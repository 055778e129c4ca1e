"""Every torchvision classifier: its head by the table and by its forward pass, its replacement, and its stages.

Models are built on the meta device. Those with batch norms, which are slow there, run on the CPU with
uninitialized memory and small images.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from finetune.model.families import family_of
from finetune.model.freezing import eval_mode, train_mode
from finetune.model.inspection.forward_graph import record
from finetune.model.stages import stages
from finetune.model.surgery.head_search import find_head, last_parametrised, layers_read, recorded_head
from finetune.model.surgery.heads import num_features, num_outputs, replace_head
from finetune.nested import tensors_of
from tests.helpers.models import layers_of, unfilled

IN_FEATURES = {
    "alexnet": 4096, "vgg": 4096, "squeezenet": 512, "googlenet": 1024, "inception_v3": 2048,
    "resnet18": 512, "resnet34": 512, "resnet": 2048, "resnext": 2048, "wide_resnet": 2048,
    "shufflenet_v2_x2_0": 2048, "shufflenet": 1024, "densenet121": 1024, "densenet161": 2208,
    "densenet169": 1664, "densenet201": 1920, "mobilenet_v2": 1280, "mnasnet": 1280,
    "mobilenet_v3_large": 1280, "mobilenet_v3_small": 1024, "maxvit_t": 512,
    "convnext_tiny": 768, "convnext_small": 768, "convnext_base": 1024, "convnext_large": 1536,
    "swin_b": 1024, "swin_v2_b": 1024, "swin": 768, "vit_b": 768, "vit_l": 1024, "vit_h": 1280,
}  # fmt: skip
# The smallest model with each forward pass: these are also searched as unknown models are.
SEARCHED = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "resnet50", "shufflenet_v2_x0_5",
    "squeezenet1_0", "swin_t", "vgg11", "vit_b_32",
)  # fmt: skip
SIDES = {
    "inception_v3": 299,
    "googlenet": 224,
    "maxvit_t": 224,
}  # the others run on 64 pixels


@pytest.fixture(params=models.list_models(module=models))
def family(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Tensor]:
    """Return the name, the model, and two images for it."""
    name: str = request.param
    model = unfilled(name)
    side = getattr(model, "image_size", SIDES.get(name, 64))
    numbers = sum(parameter.numel() for parameter in model.parameters())
    device = "meta"
    if any(layers_of(model, nn.BatchNorm2d)) and numbers < 1.2e8 and name != "maxvit_t":
        device = "cpu"
        model.to_empty(device=device)
    return name, model, torch.zeros(2, 3, side, side, device=device)


def in_features(name: str) -> int | None:
    known = max((key for key in IN_FEATURES if name.startswith(key)), key=len, default=None)
    return IN_FEATURES[known] if known else None


def output_shapes(model: nn.Module, pictures: Tensor) -> list[list[int]]:
    with torch.no_grad():
        return [list(tensor.shape) for tensor in tensors_of(model(pictures))]


def test_the_head_is_found_and_replaced(family: tuple[str, nn.Module, Tensor]) -> None:
    name, model, pictures = family
    names = find_head(model)
    assert names == family_of(model).heads(model)
    check_stages(model, names)
    if name in SEARCHED:
        by_forward = recorded_head(model, pictures)
        assert by_forward[0] == names[0]
        assert sorted(by_forward) == sorted(names)

    old = {head: model.get_submodule(head) for head in names}
    before = {id(module) for module in model.modules()} | {id(p) for p in model.parameters()}
    biased = [layer.bias is not None for layer in old.values()]
    assert num_features(old[names[0]]) == (in_features(name) or num_features(old[names[0]]))
    assert {num_outputs(layer) for layer in old.values()} == {1000}
    assert replace_head(model, 7, names, verify=False) == names

    new = [model.get_submodule(head) for head in names]
    assert {n.rpartition(".")[0] for n, p in model.named_parameters() if id(p) not in before} == set(names)
    swapped = [module for module in model.modules() if id(module) not in before]
    assert {module for module in swapped if not isinstance(module, nn.Identity)} == set(new)
    assert [layer.bias is not None for layer in new] == biased
    assert [num_features(layer) for layer in new] == [num_features(layer) for layer in old.values()]
    assert {p.device.type for layer in new for p in layer.parameters()} == {pictures.device.type}
    assert getattr(model, "num_classes", 7) == 7

    eval_mode(model)
    recording = record(model, pictures)
    assert list(recording.output.shape) == [2, 7]
    last = [layer for operation in last_parametrised(recording.last) for layer in layers_read(operation)]
    assert set(last) == {names[0]}  # the forward pass and the table agree
    if len(names) > 1:  # auxiliary heads give results in train mode only
        train_mode(model)
        assert output_shapes(model, pictures) == [[2, 7]] * len(names)


def check_stages(model: nn.Module, head: tuple[str, ...]) -> None:
    """Check that every parameter is in one stage, and that the last stage is the head alone."""
    found = stages(model, head)
    listed = [name for stage in found for name in stage.parameters]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert len({stage.name for stage in found}) == len(found) >= 4
    assert found[-1].name == head[0]
    assert {name.rpartition(".")[0] for name in found[-1].parameters} == set(head)
    assert all(any(name.startswith(f"{stage.name}.") for name in stage.parameters) for stage in found)


def test_the_table_has_every_classifier() -> None:
    assert len(models.list_models(module=models)) == 80


def test_trap_27_auxiliary_heads_are_replaced_and_weighted_as_in_their_papers() -> None:
    google, inception = unfilled("googlenet"), unfilled("inception_v3")
    assert find_head(google) == ("fc", "aux1.fc2", "aux2.fc2")
    assert find_head(inception) == ("fc", "AuxLogits.fc")
    assert family_of(google).loss_weights(google) == (1, 0.3)
    assert family_of(inception).loss_weights(inception) == (1, 0.4)
    other = nn.Linear(1, 1)
    assert family_of(other).loss_weights(other) == (1, 0.3)
    for model in (google, inception):
        replace_head(model, 7, find_head(model), verify=False)
        assert {num_outputs(model.get_submodule(name)) for name in find_head(model)} == {7}
    with torch.device("meta"):
        pretrained = models.googlenet(weights=None, aux_logits=False, init_weights=False)
    assert find_head(pretrained) == ("fc",)


def test_squeezenet_has_logits_below_zero() -> None:
    model = models.squeezenet1_1(weights=None)
    replace_head(model, 7, find_head(model))
    model.eval()
    assert isinstance(model.classifier[2], nn.Identity)
    assert model(torch.randn(4, 3, 64, 64)).min() < 0
    assert model.num_classes == 7


def test_a_subclass_with_its_own_head_is_searched() -> None:
    class Own(models.ResNet):
        def __init__(self) -> None:
            super().__init__(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=16)
            self.last = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(super().forward(x).relu())
            return out

    model = Own()
    assert family_of(model).heads(model) == ()
    assert find_head(model, torch.zeros(2, 3, 32, 32)) == ("last",)
    assert replace_head(model, 7, ("last",)) == ("last",)


def test_a_segmentation_model_is_searched() -> None:
    with torch.device("meta"):
        model = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    assert family_of(model).heads(model) == ()
    names = find_head(model)
    assert sorted(names) == ["classifier.high_classifier", "classifier.low_classifier"]
    replace_head(model, 7, names)
    assert output_shapes(model, torch.zeros(2, 3, 64, 64, device="meta")) == [[2, 7, 64, 64]]


def test_a_model_inside_a_sequential_is_searched() -> None:
    model = nn.Sequential(models.resnet18(weights=None))
    assert find_head(model, torch.zeros(2, 3, 32, 32)) == ("0.fc",)


# ---------------------------------------------------------------- stages

NAMES = {
    "resnet18": "conv1 layer1 layer2 layer3 layer4 fc",
    "vit_b_16": f"conv_proj {' '.join(f'encoder.layers.encoder_layer_{i}' for i in range(12))} heads.head",
    "densenet121": "features.conv0 features.denseblock1 features.transition1 features.denseblock2 features.transition2 "
    "features.denseblock3 features.transition3 features.denseblock4 classifier",
    "vgg11": "features.0 features.3 features.6 features.8 features.11 features.13 features.16 features.18 "
    "classifier.0 classifier.3 classifier.6",
    "convnext_tiny": f"{' '.join(f'features.{i}' for i in range(8))} classifier.2",
    "maxvit_t": "stem blocks.0 blocks.1 blocks.2 blocks.3 classifier.3 classifier.5",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_stage_names(name: str, expected: str) -> None:
    model = unfilled(name)
    assert " ".join(stage.name for stage in stages(model, find_head(model))) == expected


@pytest.mark.parametrize(
    ("name", "norm", "stage"),
    [
        ("resnet18", "bn1.weight", "conv1"),
        ("vit_b_16", "encoder.ln.weight", "encoder.layers.encoder_layer_11"),
        ("vit_b_16", "class_token", "conv_proj"),
        ("vit_b_16", "encoder.pos_embedding", "conv_proj"),
        ("densenet121", "features.norm5.weight", "features.denseblock4"),
        ("convnext_tiny", "classifier.0.weight", "features.7"),
        ("swin_t", "norm.weight", "features.7"),
    ],
)
def test_norms_and_bare_parameters_belong_to_the_stage_before(name: str, norm: str, stage: str) -> None:
    model = unfilled(name)
    assert [s.name for s in stages(model, find_head(model)) if norm in s.parameters] == [stage]
