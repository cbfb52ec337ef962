"""The one decoder of images, for all readers."""

from pathlib import Path
from typing import IO

from PIL import Image, ImageOps

from strategies.common.errors import DataError

DECODER_VERSION = 1
"""Increase it with every change of the decoded pixels, to invalidate the cache."""

EIGHT_BIT = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
)
"""Pillow's modes with at most eight bits per channel, which become RGB without clipping."""


def decode_image(source: Path | IO[bytes], name: str) -> Image.Image:
    """Return an image as RGB, turned upright as its EXIF orientation says.

    Parameters
    ----------
    source, name
        The image, and its name for errors.

    Raises
    ------
    DataError
        If it cannot be decoded, has more than eight bits per channel, or has several frames.
    """
    try:
        with Image.open(source) as image:
            _check(image, name)
            return ImageOps.exif_transpose(image).convert("RGB")
    except DataError:
        raise
    except Exception as error:  # each format's decoder raises other exceptions
        raise DataError(f"the image cannot be decoded: {error}", where=name) from None


def _check(image: Image.Image, name: str) -> None:
    """Refuse an image of which only a part would be kept."""
    if image.mode not in EIGHT_BIT:
        raise DataError(
            "the image does not have eight bits per channel, so its values would be clipped",
            where=name,
            got=f"mode {image.mode}",
            expected="one of: " + ", ".join(sorted(EIGHT_BIT)),
            hint="Scale it to 8 bits, with the same range of values at every site",
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photograph with its preview
        raise DataError(
            "the image has several frames or pages",
            where=name,
            got=frames,
            expected="1",
            hint="Save each frame that is an example as a file of its own",
        )
