"""A folder of images with everything wrong that real folders have."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

FOUND = (
    # Problems
    "images cannot be read (6): train/cat/cut.png",
    "train/cat/empty.png",
    "train/cat/text.png",
    "links lead nowhere (1): train/dog/dangling.png",
    "files are in train and in another split (1): train/cat/0.png = test/cat/again.png",
    "files are in two classes (1): train/cat/1.png = train/dog/as-cat.png",
    "classes have no folder in train/ (1): bird",
    "classes have no file to train on (1): nothing",
    "names of classes begin or end with white space (1): 'cat '",
    "different sizes; image-size makes them all the same",
    # To look at
    "3 files are left out by their suffix: 2 .heic, 1 .txt",
    "names that systems leave behind, or that are no class (3): "
    "train/.ipynb_checkpoints, train/cat/._0.png, train/cat/Thumbs.db",
    "train/cat/scan.png: the image does not have eight bits per channel",
    "the images have 4 modes: I;16, L, RGB, RGBA",
    "images were taken with a turned camera (EXIF orientation) (1): train/dog/phone.jpg",
    "train/dog/moving.tiff: the image has several frames or pages (got 2, expected 1)",
    "files are there twice (1): train/dog/0.png = train/dog/twice.png",
    "classes have a single file to train on (1): cat ",
    "pairs of classes differ in case or white space only (1): 'cat' and 'cat '",
    # What is there
    "linked",
    "caf\\xe9.png",
)
"""What the survey must say about it."""


def write_wrong_folder(root: Path) -> str:
    """Write the folder; return it as a data set."""
    chance = np.random.default_rng(5)

    def image(name: str, size: tuple[int, int] = (24, 24), mode: str = "RGB") -> Image.Image:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = chance.integers(0, 256, (size[1], size[0], 4), np.uint8)
        picture = Image.fromarray(pixels, "RGBA").convert(mode)
        picture.save(file)
        return picture.copy()

    for name in ("cat", "dog"):
        for split, count in (("train", 6), ("test", 2)):
            for number in range(count):
                image(f"{split}/{name}/{number}.png")
    cat, dog = root / "train" / "cat", root / "train" / "dog"
    (cat / "text.png").write_text("no image")
    (cat / "empty.png").write_bytes(b"")
    (cat / "cut.png").write_bytes((cat / "2.png").read_bytes()[:300])
    for name in ("a.heic", "b.heic", "notes.txt"):
        (dog / name).write_bytes(b"later")
    image("train/.ipynb_checkpoints/thumbnail.png")
    (cat / "._0.png").write_bytes(b"\0")
    (cat / "Thumbs.db").write_bytes(b"\0")
    (dog / "dangling.png").symlink_to(root / "gone.png")
    image("elsewhere/linked.png", size=(30, 30))
    (dog / "linked").symlink_to(root / "elsewhere")
    deep = (chance.integers(0, 4096, (24, 24)) * 16).astype(np.uint16)
    Image.fromarray(deep).save(cat / "scan.png")
    image("train/cat/gray.png", mode="L")
    image("train/cat/clear.png", mode="RGBA")
    image("train/dog/wide.png", size=(40, 24))
    turned = Image.Exif()
    turned[0x0112] = 6
    image("train/dog/phone.png").save(dog / "phone.jpg", exif=turned)
    pages = [image(f"train/dog/page{number}.png") for number in range(2)]
    pages[0].save(dog / "moving.tiff", save_all=True, append_images=pages[1:])
    (root / "test" / "cat" / "again.png").write_bytes((cat / "0.png").read_bytes())
    (dog / "as-cat.png").write_bytes((cat / "1.png").read_bytes())
    (dog / "twice.png").write_bytes((dog / "0.png").read_bytes())
    image("train/cat /single.png")
    image("test/bird/0.png")
    (root / "train" / "nothing").mkdir()
    odd = root / "train" / "dog" / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes(b"no image either")
    return f"image-folder:{root}"
