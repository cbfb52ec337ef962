"""ResNet-9, which learns CIFAR-10 in a minute on one GPU."""

from torch import Tensor, nn

from mdc_flower.models.small import Shape, conv_norm_relu


class Residual(nn.Module):
    """Two convolutions whose output is added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *conv_norm_relu(channels, channels), *conv_norm_relu(channels, channels)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return an array of the shape of the input."""
        outputs: Tensor = inputs + self.layers(inputs)
        return outputs


def resnet9(input_shape: Shape, num_classes: int) -> nn.Module:
    """Return a ResNet with eight convolutions and a linear layer, for images of any size.

    The architecture is that of Page, "How to train your ResNet" (2018), with 64 to 512 channels,
    without the constant by which it multiplies the output. For three input channels and ten classes
    it has 6.6 million parameters.
    """
    return nn.Sequential(
        *conv_norm_relu(input_shape[0], 64),
        *conv_norm_relu(64, 128),
        nn.MaxPool2d(2, ceil_mode=True),
        Residual(128),
        *conv_norm_relu(128, 256),
        nn.MaxPool2d(2, ceil_mode=True),
        *conv_norm_relu(256, 512),
        nn.MaxPool2d(2, ceil_mode=True),
        Residual(512),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(512, num_classes),
    )
