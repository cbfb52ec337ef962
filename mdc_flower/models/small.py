"""Small networks for small images that two cores can train in minutes."""

import math

from torch import nn

Shape = tuple[int, ...]


def mlp(input_shape: Shape, num_classes: int) -> nn.Module:
    """Return a perceptron with one hidden layer of 64 units, for any input shape."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


def small_cnn(input_shape: Shape, num_classes: int) -> nn.Module:
    """Return three 3x3 convolutions with BatchNorm, for images of at least 4x4 pixels."""
    return nn.Sequential(
        *conv_norm_relu(input_shape[0], 32),
        *conv_norm_relu(32, 64),
        nn.MaxPool2d(2),
        *conv_norm_relu(64, 64),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 2 * 2, num_classes),
    )


def fast_cnn(input_shape: Shape, num_classes: int) -> nn.Module:
    """Return three 3x3 convolutions that halve the size, with BatchNorm, for images of any size."""
    return nn.Sequential(
        *conv_norm_relu(input_shape[0], 16, stride=2),
        *conv_norm_relu(16, 32, stride=2),
        *conv_norm_relu(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 2 * 2, num_classes),
    )


def resnet(input_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Return a ResNet for small images, with ``6 blocks + 2`` layers.

    It has three stages of 16, 32 and 64 channels (He et al., CVPR 2016, section 4.2), made of
    torchvision's `BasicBlock`. Shortcuts that change the shape are 1x1 convolutions.
    """
    layers = list(conv_norm_relu(input_shape[0], 16))
    channels = 16
    for width in (16, 32, 64):
        for index in range(blocks):
            stride = 2 if width > 16 and index == 0 else 1
            layers.append(_block(channels, width, stride))
            channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)
    )


def _block(channels: int, width: int, stride: int) -> nn.Module:
    # The import takes a second, and a real site imports everything again for each message.
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or channels != width:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
        )
    block: nn.Module = BasicBlock(channels, width, stride, shortcut)
    return block


def conv_norm_relu(channels: int, width: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """Return a 3x3 convolution that divides the size by the stride, BatchNorm, and ReLU."""
    return (
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
