"""Networks for log-mel spectrograms (1, mels, frames) that two cores can train in minutes."""

from torch import Tensor, nn

from mdc_flower.models.small import Shape, conv_norm_relu


def audio_cnn(input_shape: Shape, num_classes: int) -> nn.Module:
    """Return four 3x3 convolutions with BatchNorm, all but the last followed by 2x2 pooling.

    The last maps are averaged over bands and frames, so the time of a sound matters little.
    Spectrograms need at least 8 bands and 8 frames.
    """
    return nn.Sequential(
        *conv_norm_relu(input_shape[0], 16),
        nn.MaxPool2d(2),
        *conv_norm_relu(16, 32),
        nn.MaxPool2d(2),
        *conv_norm_relu(32, 64),
        nn.MaxPool2d(2),
        *conv_norm_relu(64, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


def audio_crnn(input_shape: Shape, num_classes: int) -> nn.Module:
    """Return convolutions that shorten both axes, and a GRU that reads the frames in order.

    After Choi et al., "Convolutional recurrent neural networks for music classification", ICASSP
    2017. This network is smaller, with a bidirectional GRU of one layer; it averages the GRU's
    outputs over time instead of using the last one. Spectrograms need at least 8 bands and 4
    frames.
    """
    return AudioCRNN(input_shape[0], input_shape[1], num_classes)


class AudioCRNN(nn.Module):
    """See `audio_crnn`; inputs must have the number of bands that the network was built for."""

    def __init__(self, channels: int, mels: int, num_classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *conv_norm_relu(channels, 16),
            nn.MaxPool2d(2),
            *conv_norm_relu(16, 32),
            nn.MaxPool2d(2),
            *conv_norm_relu(32, 32),
            nn.MaxPool2d((2, 1)),
        )
        self.gru = nn.GRU(32 * (mels // 8), hidden, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(2 * hidden, num_classes)

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Return the logits of spectrograms ``(batch, channels, mels, frames)``."""
        maps = self.convolutions(spectrograms)  # (batch, 32, mels // 8, frames // 4)
        frames = maps.permute(0, 3, 1, 2).flatten(2)
        outputs, _ = self.gru(frames)
        logits: Tensor = self.classes(outputs.mean(dim=1))
        return logits
