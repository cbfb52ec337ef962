"""Augmentation of images: random numbers are drawn on the CPU, images are moved where they are."""

from collections.abc import Sequence

import torch
from torch import Tensor

Moves = Sequence[Tensor]
"""What is drawn for a batch, one row per image.

For ``flip`` a bool vector ``(N,)``, then for ``crop`` two int64 tensors ``(N, 1, 1)``: the first
row and the first column of the padded image.
"""


def draw(kind: str, shape: Sequence[int], generator: torch.Generator) -> Moves:
    """Draw how each image of a batch moves.

    Parameters
    ----------
    kind
        ``none``, ``flip``, ``crop`` or ``crop-flip``; see `InputPipeline`.
    shape
        The batch's shape ``(N, C, H, W)``.
    generator
        A generator of the CPU, so that a seed has the same effect for every device.
    """
    count, _, height, width = shape
    moves = [torch.rand(count, generator=generator) < 0.5] if "flip" in kind else []
    if "crop" in kind:
        moves += [
            torch.randint(0, 2 * pad + 1, (count, 1, 1), generator=generator)
            for pad in (_pad(height), _pad(width))
        ]
    return moves


def moved(images: Tensor, kind: str, moves: Moves) -> Tensor:
    """Return the images, moved; everything is on the same device."""
    if "flip" in kind:
        images = torch.where(moves[0].view(-1, 1, 1, 1), images.flip(3), images)
    return _shifted(images, *moves[-2:]) if "crop" in kind else images


def _shifted(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Return each image shifted by up to an eighth of its size, with zeros outside."""
    count, _, height, width = images.shape
    pad_y, pad_x = _pad(height), _pad(width)
    padded = torch.nn.functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    rows = top + torch.arange(height, device=images.device).view(1, -1, 1)
    columns = left + torch.arange(width, device=images.device).view(1, 1, -1)
    image = torch.arange(count, device=images.device).view(-1, 1, 1)
    # Indexing around the channel axis moves it last: (N, H, W, C).
    return padded[image, :, rows, columns].permute(0, 3, 1, 2)


def _pad(size: int) -> int:
    return max(1, size // 8)
