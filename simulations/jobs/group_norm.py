"""The model `fast-cnn` with GroupNorm instead of BatchNorm, as ``module:function`` of a config."""

from torch import nn

from mdc_flower.models.small import Shape, fast_cnn

GROUPS = 8


def fast_cnn_group_norm(input_shape: Shape, num_classes: int) -> nn.Module:
    """Return `fast_cnn` with GroupNorm of eight groups."""
    layers = fast_cnn(input_shape, num_classes)
    assert isinstance(layers, nn.Sequential)
    return nn.Sequential(*map(_with_group_norm, layers))


def _with_group_norm(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.BatchNorm2d):
        return nn.GroupNorm(GROUPS, layer.num_features)
    return layer
