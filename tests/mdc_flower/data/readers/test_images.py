"""The decoder of images, on real small files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdc_flower.data.readers.images import decode_image
from strategies.common.errors import DataError


def test_the_orientation_is_applied(tmp_path: Path) -> None:
    file = tmp_path / "phone.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(file, exif=exif)
    assert decode_image(file, "phone").size == (4, 8)


@pytest.mark.parametrize(("dtype", "suffix"), [("uint16", "png"), ("float32", "tiff")])
def test_more_than_eight_bits_are_refused(tmp_path: Path, dtype: str, suffix: str) -> None:
    file = tmp_path / f"scan.{suffix}"
    Image.fromarray((np.arange(64).reshape(8, 8) * 64).astype(dtype)).save(file)
    with pytest.raises(DataError, match="mode"):
        decode_image(file, str(file))


@pytest.mark.parametrize("suffix", ["gif", "tiff"])
def test_several_frames_are_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"frames.{suffix}"
    frames = [Image.new("L", (4, 4), value) for value in (0, 255)]
    frames[0].save(file, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="several frames"):
        decode_image(file, str(file))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "damaged.png"
    Image.effect_noise((32, 32), 50).save(file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"damaged\.png"):
        decode_image(file, str(file))
