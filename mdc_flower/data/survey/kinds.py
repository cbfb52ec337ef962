"""What the files are: modes, bit depths and sizes of images; rates and lengths of recordings."""

import statistics
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mdc_flower.common.extras import library
from mdc_flower.data.readers.images import decode_image
from mdc_flower.data.readers.options import AudioReading
from mdc_flower.data.survey.findings import Counts, Findings, spread
from strategies.common.errors import DataError

BITS = {
    "1": "1 bit", "L": "8 bits, gray", "LA": "8 bits, gray with transparency", "P": "palette",
    "RGB": "8 bits, 3 channels", "RGBA": "8 bits, 3 channels with transparency",
    "CMYK": "8 bits, 4 colours of print", "YCbCr": "8 bits, 3 channels",
    "I;16": "16 bits, gray", "I;16B": "16 bits, gray", "I": "32 bits, gray", "F": "float, gray",
}  # fmt: skip
"""What Pillow's modes mean."""

ORIENTATION = 0x0112
"""EXIF's tag for how the camera was held; 1 if it was upright."""


def look_at_images(findings: Findings, files: Sequence[Path], image_size: int) -> list[Path]:
    """Survey images, and return those that can be decoded."""
    modes: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    damaged, turned, readable = [], [], []
    for file in files:
        try:
            with warnings.catch_warnings(), Image.open(file) as image:
                warnings.simplefilter("ignore")
                mode, size = image.mode, image.size
                is_turned = image.getexif().get(ORIENTATION, 1) != 1
            modes[mode] += 1
            sizes[size] += 1
            decode_image(file, _named(file))
        except UnidentifiedImageError:  # its text has the whole path
            damaged.append(f"{_named(file)} (no image that is known)")
            continue
        except DataError as error:
            damaged.append(str(error))
            continue
        except Exception as error:  # each format's decoder raises other exceptions
            damaged.append(f"{_named(file)} ({error})")
            continue
        readable.append(file)
        if is_turned:
            turned.append(_named(file))
    findings.problem("images cannot be read", damaged)
    findings.note("images were taken with a turned camera (EXIF orientation)", turned)
    _report_modes(findings, modes)
    _report_sizes(findings, sizes, image_size)
    return readable


def look_at_recordings(
    findings: Findings, files: Sequence[Path], reading: AudioReading
) -> list[Path]:
    """Survey recordings, and return those that can be decoded."""
    soundfile = library("soundfile", "audio", "dataset")
    rates: Counter[int] = Counter()
    lengths: list[float] = []
    damaged, cut_off, silent, readable = [], [], [], []
    for file in files:
        try:
            with soundfile.SoundFile(file) as sound:
                promised, rate = sound.frames, int(sound.samplerate)
                samples = sound.read(dtype="float32", always_2d=True)
        except (OSError, RuntimeError, TypeError):  # the text has the whole path
            damaged.append(f"{_named(file)} (no recording that is known)")
            continue
        if len(samples) == 0:
            damaged.append(f"{_named(file)} (it is empty)")
            continue
        readable.append(file)
        rates[rate] += 1
        lengths.append(len(samples) / rate)
        if len(samples) < promised:
            cut_off.append(_named(file))
        if not samples.any():
            silent.append(_named(file))
    findings.problem("recordings cannot be decoded", damaged)
    findings.problem("recordings end before their header says", cut_off)
    findings.note("recordings are silent throughout", silent)
    if lengths:
        rows = [[f"{rate} Hz", str(count)] for rate, count in sorted(rates.items())]
        findings.tables.append(Counts("Sample rates", ["rate", "files"], rows))
        findings.facts.append(("length of recordings", spread(lengths, "s")))
        longer = sum(length > reading.seconds for length in lengths)
        if longer:
            findings.notes.append(
                f"{longer} of {len(lengths)} recordings are cut to {reading.seconds:g} s "
                f"(median {statistics.median(lengths):.3g} s); audio-seconds sets the length"
            )
    return readable


def _report_modes(findings: Findings, modes: Counter[str]) -> None:
    if not modes:
        return
    rows = [[mode, BITS.get(mode, ""), str(count)] for mode, count in sorted(modes.items())]
    findings.tables.append(Counts("Modes", ["mode", "meaning", "files"], rows))
    if len(modes) > 1:
        findings.notes.append(f"the images have {len(modes)} modes: {', '.join(sorted(modes))}")


def _report_sizes(findings: Findings, sizes: Counter[tuple[int, int]], image_size: int) -> None:
    if not sizes:
        return
    common = ", ".join(f"{w}x{h} ({count})" for (w, h), count in sizes.most_common(5))
    more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
    findings.facts.append(("sizes of images", common + more))
    if image_size:
        stretched = sum(count for (width, height), count in sizes.items() if width != height)
        if stretched:
            findings.notes.append(
                f"{stretched} images are not square; image-size = {image_size} changes their shape"
            )
    elif len(sizes) > 1:
        findings.problems.append(
            f"images have {len(sizes)} different sizes; image-size makes them all the same"
        )


def _named(file: Path) -> str:
    text = "/".join(file.parts[-3:])
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
