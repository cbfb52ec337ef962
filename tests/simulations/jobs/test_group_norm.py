"""The model with GroupNorm."""

import torch
from torch import nn

from mdc_flower.models.build import build_model

SPEC = "simulations.jobs.group_norm:fast_cnn_group_norm"


def test_only_the_norms_differ_from_the_model_with_batch_norm() -> None:
    group, batch = (build_model(spec, (1, 28, 28), 10, seed=1) for spec in (SPEC, "fast-cnn"))
    assert not [layer for layer in group.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert sum(isinstance(layer, nn.GroupNorm) for layer in group.modules()) == 3
    shapes = [[tuple(p.shape) for p in model.parameters()] for model in (group, batch)]
    assert shapes[0] == shapes[1]


def test_an_output_does_not_depend_on_the_other_examples() -> None:
    model = build_model(SPEC, (1, 28, 28), 10, seed=1)
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(images)[:2], model(images[:2]))
