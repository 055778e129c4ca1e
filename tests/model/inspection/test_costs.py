"""Multiply-adds and activations of one sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from finetune.devices.generators import torch_generators
from finetune.errors import ArgumentError
from finetune.model.freezing import freeze, freeze_all_but, train_only
from finetune.model.inspection.costs import measure_costs
from finetune.model.inspection.probing import samples_of_size
from finetune.model.surgery.head_search import find_head
from tests.helpers.models import unfilled

# Billions, as published by torchvision for the image size of its weights.
PUBLISHED = {
    "resnet18": 1.814, "resnet50": 4.089, "mobilenet_v2": 0.301, "vit_b_16": 17.564, "vgg16": 15.470,
    "densenet121": 2.834, "googlenet": 1.498, "swin_t": 4.491, "convnext_tiny": 4.456, "regnet_y_400mf": 0.402,
    "efficientnet_b0": 0.386,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_adds_are_the_published_ones(name: str) -> None:
    model = unfilled(name)
    freeze(model, "*")  # lets torch take the fast path of encoders
    counted = measure_costs(model, samples_of_size(model, (3, 224, 224))).multiply_adds
    assert counted / 1e9 == pytest.approx(PUBLISHED[name], abs=6e-4)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_multiply_adds_of_an_encoder_and_of_recurrent_layers(samples: int) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    freeze(encoder, "*")
    projections, attention, feed_forward = 5 * 8 * (24 + 8), 2 * 2 * 5 * 5 * 4, 2 * 5 * 8 * 16
    expected = 2 * (projections + attention + feed_forward)
    assert measure_costs(encoder, torch.randn(samples, 5, 8)).multiply_adds == expected
    for cell, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        recurrent = cell(6, 8, batch_first=True)
        assert measure_costs(recurrent, torch.randn(samples, 5, 6)).multiply_adds == 5 * gates * 8 * (6 + 8)


def test_the_settings_of_torchs_backends_are_restored() -> None:
    backends = torch.backends
    before = [backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, backends.cudnn.enabled]
    measure_costs(nn.Linear(2, 2), torch.randn(2, 2))
    with pytest.raises(ArgumentError):
        measure_costs(nn.Linear(2, 2), torch.randn(2, 3))
    assert [backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, backends.cudnn.enabled] == before


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_activations_of_two_layers(samples: int) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    inputs = torch.randn(100, 6)[:samples]  # a view of a larger tensor
    assert measure_costs(model, inputs).activations == 4 * (6 + 8)  # the input, and the hidden layer once
    freeze(model, "0")
    assert measure_costs(model, inputs).activations == 4 * 8
    freeze(model, "2")
    assert measure_costs(model, inputs).activations == 0
    train_only(model, "0")  # the ReLU keeps the hidden layer
    assert measure_costs(model, inputs).activations == 4 * (6 + 8)
    assert measure_costs(model.double(), inputs.double()).activations == 8 * (6 + 8)


def test_activations_of_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    inputs = torch.randn(2, 3, 8, 8)
    statistics = 4 * (4 + 4) // 2  # mean and deviation of the batch, shared by two samples
    assert measure_costs(model, inputs).activations == 4 * (3 * 64 + 4 * 64 + 4 * 64) + statistics
    freeze(model, "0")
    assert measure_costs(model, inputs).activations == 4 * (4 * 64 + 4 * 64) + statistics
    freeze(model, "1")
    assert measure_costs(model, inputs).activations == 4 * 4 * 64


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_a_frozen_backbone_keeps_little(name: str) -> None:
    model = unfilled(name)
    inputs = samples_of_size(model, (3, 224, 224))
    whole = measure_costs(model, inputs).activations
    freeze_all_but(model, find_head(model))
    features = {"resnet18": 512, "vit_b_16": 197 * 768}[name]  # a view of the class token keeps all tokens in memory
    kept = measure_costs(model, inputs).activations
    assert whole is not None
    assert kept == 4 * features
    assert kept < whole / 100


def test_costs_on_a_gpu_are_those_on_a_cpu(accelerator: torch.device) -> None:
    model = models.resnet18(weights=None)
    freeze(model, "*")
    on_cpu = measure_costs(model, samples_of_size(model, (3, 64, 64)))
    model.to(accelerator)
    random = [generator.get_state() for generator in torch_generators()]
    on_gpu = measure_costs(model, samples_of_size(model, (3, 64, 64)))
    assert on_gpu == on_cpu
    assert all(map(torch.equal, random, (generator.get_state() for generator in torch_generators())))


@pytest.mark.gpu
def test_costs_of_a_recurrent_layer_in_cudnn() -> None:
    lstm = nn.LSTM(6, 8, batch_first=True).cuda()
    assert measure_costs(lstm, torch.randn(2, 5, 6).cuda()).multiply_adds == 5 * 4 * 8 * 14
