"""Image folders: decoded as they are, cached, and refused by the name of what is wrong."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mdc_flower.data import load_dataset
from mdc_flower.data.readers.image_folder import load_image_folder
from strategies.common.errors import DataError

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)
DARK, PALE = (128, 0, 0), (200, 200, 200)
Colour = tuple[int, int, int]


def paint(path: Path, colour: Colour, size: tuple[int, int] = (6, 4)) -> Path:
    """Write an image of one colour; ``size`` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two classes, in an order that is not that of their making."""
    root = tmp_path / "images"
    paint(root / "train" / "dog" / "1.png", GREEN)
    paint(root / "train" / "cat" / "2.png", BLUE)
    paint(root / "train" / "cat" / "1.png", RED)
    paint(root / "test" / "dog" / "1.png", PALE)
    paint(root / "test" / "cat" / "1.png", DARK)
    return root


def colours(inputs: NDArray[np.generic]) -> list[Colour]:
    """Return the colour of each image, having checked that it has only one."""
    assert (inputs == inputs[:, :, :1, :1]).all()
    return [tuple(int(value) for value in image[:, 0, 0]) for image in inputs]  # type: ignore[misc]


def test_a_file_whose_name_is_not_utf_8_is_named(folder: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/train/cat/caf\xe9.png"))
    paint(odd, RED)
    with pytest.raises(
        DataError, match=r"/train/cat/caf\\xe9.png: the name is not UTF-8"
    ) as caught:
        load_image_folder(str(folder), 0)
    str(caught.value).encode()


def test_classes_and_files_are_in_the_order_of_their_names(folder: Path) -> None:
    data = load_image_folder(str(folder), 0).checked()
    assert data.class_names == ["cat", "dog"]
    assert colours(data.train.inputs) == [RED, BLUE, GREEN]
    assert data.train.labels.tolist() == [0, 0, 1]
    assert colours(data.test.inputs) == [DARK, PALE]
    assert data.test.labels.tolist() == [0, 1]
    assert data.train.inputs.dtype == np.uint8
    assert data.input_shape == (3, 4, 6)
    assert data.name == "image-folder"  # never a path


def test_images_in_folders_of_a_class_belong_to_it(folder: Path) -> None:
    paint(folder / "train" / "dog" / "small" / "terrier.png", GREY)
    data = load_image_folder(str(folder), 0)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert colours(data.train.inputs)[-1] == GREY


def test_other_files_are_left_alone(folder: Path) -> None:
    (folder / "train" / "dog" / "notes.txt").write_text("a good dog")
    (folder / "train" / "dog" / ".DS_Store").write_bytes(b"\0")
    (folder / "train" / "readme.md").write_text("two classes")
    assert len(load_image_folder(str(folder), 0).train) == 3


@pytest.mark.parametrize("name", ["3.jpg", "3.JPEG", "3.bmp", "3.gif", "3.tiff"])
def test_what_pillow_reads_is_read(folder: Path, name: str) -> None:
    paint(folder / "train" / "dog" / name, GREY)
    (colour,) = colours(load_image_folder(str(folder), 0).train.inputs)[3:]
    assert np.abs(np.array(colour) - np.array(GREY)).max() <= 2


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("L", 90, GREY), ("1", 255, (255, 255, 255)), ("RGBA", (*BLUE, 10), BLUE), ("P", 0, None)],
)
def test_every_kind_of_image_becomes_rgb(
    folder: Path, mode: str, value: int | tuple[int, ...], expected: Colour | None
) -> None:
    image = Image.new(mode, (6, 4), value)
    if mode == "P":
        image.putpalette([12, 34, 56])
        expected = (12, 34, 56)
    image.save(folder / "train" / "dog" / "2.png")
    assert colours(load_image_folder(str(folder), 0).train.inputs)[3] == expected


def test_rows_columns_and_channels_are_where_they_belong(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "train" / "cat" / "0.png")
    image = load_image_folder(str(folder), 0).train.inputs[0]
    assert np.array_equal(image, pixels.transpose(2, 0, 1))


def test_with_a_size_every_image_is_resized_to_it(folder: Path) -> None:
    paint(folder / "train" / "dog" / "2.png", GREY, size=(50, 3))
    data = load_image_folder(str(folder), 8)
    assert data.input_shape == (3, 8, 8)
    assert colours(data.train.inputs) == [RED, BLUE, GREEN, GREY]


def test_resizing_is_bilinear(folder: Path) -> None:
    # From 2x1 pixels of 0 and 240 to 4x4. The centres of the four columns lie at 1/4, 3/4,
    # 5/4 and 7/4 of the two, whose own lie at 1/2 and 3/2: 0, 1/4, 3/4 and 1 of the way.
    pixels = np.array([[[0] * 3, [240] * 3]], dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "train" / "cat" / "0.png")
    image = load_image_folder(str(folder), 4).train.inputs[0]
    assert image[0].tolist() == [[0, 60, 180, 240]] * 4


def test_the_statistics_are_imagenets(folder: Path) -> None:
    data = load_image_folder(str(folder), 0)
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.std == (0.229, 0.224, 0.225)


# Refused


def refusal(path: Path | str, image_size: int = 0) -> DataError:
    with pytest.raises(DataError) as caught:
        load_image_folder(str(path), image_size)
    return caught.value


@pytest.mark.parametrize("path", ["images", "./images", "~/images", ""])
def test_a_relative_path_is_refused(path: str) -> None:
    error = refusal(path)
    assert "not absolute" in str(error)
    assert error.got == path


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_named(folder: Path, split: str) -> None:
    (folder / split).rename(folder / "elsewhere")
    error = refusal(folder)
    assert "the folder is missing" in str(error)
    assert error.where == str(folder / split)


def test_fewer_than_two_classes_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "cat" / "1.png", RED)
    error = refusal(tmp_path)
    assert (error.where, error.got) == (str(tmp_path / "train"), 1)


def test_a_test_class_that_was_not_trained_on_is_named(folder: Path) -> None:
    paint(folder / "test" / "bird" / "1.png", GREY)
    error = refusal(folder)
    assert "the test folder has a class that the training folder does not have" in str(error)
    assert (error.got, error.expected) == ("bird", "one of: cat, dog")


def test_a_class_need_not_be_in_test(folder: Path) -> None:
    paint(folder / "train" / "bird" / "1.png", GREY)
    data = load_image_folder(str(folder), 0)
    assert data.class_names == ["bird", "cat", "dog"]
    assert data.test.labels.tolist() == [1, 2]


def test_a_class_without_training_images_is_named(folder: Path) -> None:
    (folder / "train" / "bird").mkdir()
    error = refusal(folder)
    assert "no images" in str(error)
    assert error.where == str(folder / "train" / "bird")


def test_a_split_without_images_is_named(folder: Path) -> None:
    for file in (folder / "test").rglob("*.png"):
        file.unlink()
    error = refusal(folder)
    assert "there are no images" in str(error)
    assert error.where.startswith(str(folder / "test"))


def test_images_of_different_sizes_are_refused_with_the_file_and_both_sizes(folder: Path) -> None:
    odd = paint(folder / "train" / "dog" / "2.png", GREY, size=(7, 4))
    error = refusal(folder)
    assert "images differ in size" in str(error)
    assert (error.where, error.got) == (str(odd), "7x4")
    assert error.expected == f"6x4, the size of {folder / 'train' / 'cat' / '1.png'}"
    assert "image-size" in error.hint


def test_train_and_test_of_different_sizes_are_refused(folder: Path) -> None:
    for file in (folder / "test").rglob("*.png"):
        paint(file, GREY, size=(7, 4))
    with pytest.raises(DataError, match="shape"):
        load_dataset(f"image-folder:{folder}")


def png(width: int = 6) -> bytes:
    """Return a PNG of noise, which does not compress to almost nothing."""
    import io

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (4, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def with_shorter_chunk(content: bytes) -> bytes:
    """Return a PNG whose data chunk claims to be shorter than it is, so that no chunk follows."""
    at = content.index(b"IDAT") - 4
    length = int.from_bytes(content[at : at + 4], "big")
    return content[:at] + (length - 30).to_bytes(4, "big") + content[at + 4 :]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("2.png", b""),
        ("2.png", b"this is no picture"),
        ("2.png", png()[:60]),
        ("2.png", png()[:-50]),
        ("2.png", with_shorter_chunk(png())),
        ("2.jpg", b"\xff\xd8\xff\xe0 and no more"),
        ("2.ppm", b"P6 6 4 255\n" + b"\0" * 10),
        ("2.ppm", b"P6 six 4 255\n" + b"\0" * 72),
    ],
    ids=["empty", "text", "head", "cut", "chunk", "jpeg", "ppm-cut", "ppm-head"],
)
@pytest.mark.parametrize("image_size", [0, 8])
def test_a_broken_image_is_named(folder: Path, name: str, content: bytes, image_size: int) -> None:
    broken = folder / "train" / "dog" / name
    broken.write_bytes(content)
    error = refusal(folder, image_size)
    assert "cannot be decoded" in str(error)
    assert error.where == str(broken)


def test_an_image_of_absurd_size_is_named(folder: Path) -> None:
    # A bitmap's head alone, which claims 60000 x 60000 pixels: pillow refuses such bombs.
    head = b"BM" + (54).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    head += (40).to_bytes(4, "little") + (60000).to_bytes(4, "little") * 2
    bomb = folder / "train" / "dog" / "2.bmp"
    bomb.write_bytes(head + (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + bytes(24))
    assert refusal(folder, 8).where == str(bomb)


# Cached


def test_images_are_decoded_once_and_mapped_from_then_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_image_folder(str(folder), 0)

    def refuse(path: Path) -> Image.Image:
        raise AssertionError(f"{path} was opened again")

    monkeypatch.setattr(Image, "open", refuse)
    again = load_image_folder(str(folder), 0)
    assert isinstance(again.train.inputs, np.memmap)
    assert np.array_equal(again.train.inputs, before.train.inputs)
    assert np.array_equal(again.test.inputs, before.test.inputs)


def test_a_file_that_was_written_anew_is_decoded_anew(folder: Path) -> None:
    # Bitmaps of one size have one length: only the time tells them apart.
    file = paint(folder / "train" / "cat" / "1.bmp", RED)
    (folder / "train" / "cat" / "1.png").unlink()
    length = file.stat().st_size
    load_image_folder(str(folder), 0)
    assert paint(file, GREY).stat().st_size == length
    later = file.stat().st_mtime_ns + 1_000_000_000
    os.utime(file, ns=(later, later))
    assert colours(load_image_folder(str(folder), 0).train.inputs) == [GREY, BLUE, GREEN]


def test_an_added_and_a_removed_file_are_noticed(folder: Path) -> None:
    load_image_folder(str(folder), 0)
    added = paint(folder / "train" / "cat" / "0.png", GREY)
    assert colours(load_image_folder(str(folder), 0).train.inputs) == [GREY, RED, BLUE, GREEN]
    added.unlink()
    assert colours(load_image_folder(str(folder), 0).train.inputs) == [RED, BLUE, GREEN]


def test_each_size_is_cached_by_itself(folder: Path) -> None:
    shapes = [load_image_folder(str(folder), size).input_shape for size in (0, 8, 5, 0)]
    assert shapes == [(3, 4, 6), (3, 8, 8), (3, 5, 5), (3, 4, 6)]


def test_a_broken_image_leaves_nothing_in_the_cache(folder: Path, cache: Path) -> None:
    broken = folder / "train" / "dog" / "2.png"
    broken.write_bytes(b"")
    refusal(folder)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []
    broken.unlink()
    assert len(load_image_folder(str(folder), 0).train) == 3
