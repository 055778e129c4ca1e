"""Models of packages other than torchvision, timm and transformers, which the library does not know by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.family import SAMPLES, Built, Family

_PACKAGES = {
    "efficientnet_pytorch": "efficientnet-pytorch",
    "vit_pytorch": "vit-pytorch",
    "monai": "monai",
    "open_clip": "open-clip-torch",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "x_transformers": "x-transformers",
    "pytorchcv": "pytorchcv",
    "resnest": "resnest",
}


def _noise(*shape: int) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))


def _efficientnet(name: str) -> Built:
    from efficientnet_pytorch import EfficientNet

    return Built(EfficientNet.from_name(name), _noise(3, 64, 64))


def _vit_pytorch(name: str) -> Built:
    import importlib

    sizes: dict[str, Any] = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2}
    settings: dict[str, dict[str, Any]] = {
        "vit.ViT": {**sizes, "mlp_dim": 64},
        "simple_vit.SimpleViT": {**sizes, "mlp_dim": 64},
        "deepvit.DeepViT": {**sizes, "mlp_dim": 64},
        "cait.CaiT": {**sizes, "mlp_dim": 64, "cls_depth": 1},
        "t2t.T2TViT": {
            "image_size": 64, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64,
            "t2t_layers": ((7, 4), (3, 2), (3, 2)),
        },
        "cct.CCT": {"img_size": 64, "embedding_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2,
                    "num_classes": 10},
        "nest.NesT": {"image_size": 64, "patch_size": 4, "dim": 32, "heads": 2, "num_hierarchies": 2,
                      "block_repeats": (1, 1), "num_classes": 10},
        "mobile_vit.MobileViT": {"image_size": (64, 64), "dims": [32, 32, 32], "num_classes": 10,
                                 "channels": [16, 16, 16, 16, 24, 24, 32, 32, 32, 32, 64]},
    }  # fmt: skip
    module, _, class_name = name.partition(".")
    made: nn.Module = getattr(importlib.import_module(f"vit_pytorch.{module}"), class_name)(**settings[name])
    return Built(made, _noise(3, 64, 64))


def _monai(name: str) -> Built:
    from monai.networks import nets

    settings: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
        "DenseNet121": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 4}, (1, 64, 64)),
        "SEResNet50": ({"spatial_dims": 2, "in_channels": 3, "num_classes": 10}, (3, 64, 64)),
        "EfficientNetBN": ({"model_name": "efficientnet-b0", "pretrained": False}, (3, 64, 64)),
        "resnet10": ({"spatial_dims": 3, "n_input_channels": 1, "num_classes": 4}, (1, 32, 32, 32)),
        "TorchVisionFCModel": ({"model_name": "resnet18", "num_classes": 5}, (3, 224, 224)),
        "Classifier": ({"in_shape": (1, 32, 32), "classes": 4, "channels": (8, 16), "strides": (2, 2)}, (1, 32, 32)),
        "ViT": ({"in_channels": 1, "img_size": (32, 32), "patch_size": (8, 8), "hidden_size": 32, "mlp_dim": 64,
                 "num_layers": 2, "num_heads": 2, "classification": True, "num_classes": 4, "spatial_dims": 2,
                 "post_activation": None}, (1, 32, 32)),
    }  # fmt: skip
    options, shape = settings[name]
    return Built(getattr(nets, name)(**options), _noise(*shape))


def _open_clip(name: str) -> Built:
    import open_clip

    tower: Any = open_clip.create_model(name, pretrained=None).visual
    side = tower.image_size[0] if isinstance(tower.image_size, tuple) else tower.image_size
    # the usual way to fine-tune it: the image tower with a linear layer on the embedding
    return Built(nn.Sequential(tower, nn.Linear(tower.output_dim, 10)), _noise(3, side, side))


def _x_transformers(name: str) -> Built:
    from x_transformers import Encoder, TransformerWrapper, ViTransformerWrapper

    layers = Encoder(dim=32, depth=2, heads=2)
    if name == "ViTransformerWrapper":
        return Built(ViTransformerWrapper(image_size=32, patch_size=8, num_classes=10, attn_layers=layers),
                     _noise(3, 32, 32))  # fmt: skip
    words = torch.randint(50, (SAMPLES, 16), generator=torch.Generator().manual_seed(0))
    wrapper = TransformerWrapper(num_tokens=50, max_seq_len=16, use_cls_token=True, logits_dim=10, attn_layers=layers)
    return Built(wrapper, words)


def _pytorchcv(name: str) -> Built:
    from pytorchcv.model_provider import get_model

    side = 299 if name in ("inceptionv4", "xception") else 224
    return Built(get_model(name, pretrained=False), _noise(3, side, side))


def _resnest(name: str) -> Built:
    from resnest import torch as resnest

    return Built(getattr(resnest, name)(pretrained=False), _noise(3, 64, 64))


def _segmentation_models(name: str) -> Built:
    """Return the encoder of a segmentation network with the classification head that `aux_params` adds."""
    import segmentation_models_pytorch as smp

    model = getattr(smp, name)("resnet18", encoder_weights=None, aux_params={"classes": 4})
    return Built(nn.Sequential(model.encoder, _Last(), model.classification_head), _noise(3, 64, 64))


class _Last(nn.Module):
    def forward(self, features: list[Tensor]) -> Tensor:
        return features[-1]


_BUILDERS: dict[str, tuple[Callable[[str], Built], tuple[str, ...]]] = {
    "efficientnet_pytorch": (_efficientnet, ("efficientnet-b0", "efficientnet-b3")),
    "vit_pytorch": (
        _vit_pytorch,
        ("vit.ViT", "simple_vit.SimpleViT", "deepvit.DeepViT", "cait.CaiT", "t2t.T2TViT", "cct.CCT", "nest.NesT",
         "mobile_vit.MobileViT"),
    ),
    "monai": (
        _monai,
        ("DenseNet121", "SEResNet50", "EfficientNetBN", "resnet10", "TorchVisionFCModel", "Classifier", "ViT"),
    ),
    "open_clip": (_open_clip, ("RN50", "ViT-B-32")),
    "segmentation_models_pytorch": (_segmentation_models, ("Unet", "FPN")),
    "x_transformers": (_x_transformers, ("ViTransformerWrapper", "TransformerWrapper")),
    "pytorchcv": (
        _pytorchcv,
        ("resnet10", "preresnet10", "seresnet10", "densenet121", "squeezenet_v1_0", "mobilenet_w1", "shufflenet_g1_w1",
         "igcv3_w1", "darknet_ref", "nasnet_4a1056", "inceptionv4", "xception", "ghostnet", "bninception"),
    ),
    "resnest": (_resnest, ("resnest50",)),
}  # fmt: skip


def _names() -> list[str]:
    """Return the models of the installed packages as `package/model`."""
    return [
        f"{package}/{name}"
        for package, (_, models) in _BUILDERS.items()
        if find_spec(package) is not None
        for name in models
    ]


def _build(name: str) -> Built:
    package, _, model = name.partition("/")
    return _BUILDERS[package][0](model)


FAMILY = Family(
    title="models of other packages",
    packages=tuple(_PACKAGES.values()),
    names=_names,
    build=_build,
    sample=tuple(name for name in _names() if name in ("efficientnet_pytorch/efficientnet-b0", "vit_pytorch/vit.ViT")),
)
