"""Batch norms are joined for a phase, and as they were after it."""

from __future__ import annotations

import torch
from torch import nn

from finetune.distributed.norms import can_join_norms
from finetune.distributed.replicas import Replicas
from finetune.distributed.world import World


class _Own(nn.BatchNorm2d):
    """A batch norm with a forward pass of its own, as timm's."""


def test_joined_norms_keep_their_state_and_are_parted_by_close() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(3, affine=False), _Own(3), nn.LayerNorm(3))
    held, kinds = dict(model.state_dict(keep_vars=True)), [type(module) for module in model]
    replicas = Replicas(model, lambda batch: batch, World(0, 2), moving=True, joint_norms=True)
    assert [type(module) for module in model] == [nn.SyncBatchNorm, nn.SyncBatchNorm, _Own, nn.LayerNorm]
    assert all(held[name] is value for name, value in model.state_dict(keep_vars=True).items())
    assert replicas.joint_norms
    replicas.close()
    replicas.close()
    assert [type(module) for module in model] == kinds
    assert "process_group" not in vars(model[0])


def test_only_cuda_joins_norms() -> None:
    assert can_join_norms(torch.device("cuda", 1))
    assert not can_join_norms(torch.device("cpu"))
