"""A model so large that its transfer takes a noticeable time."""

from torch import nn

HIDDEN = 150_000


def wide(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a perceptron of about 45 MB for the digits."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes)
    )
