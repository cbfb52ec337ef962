"""`InputForm`: how images, recordings, texts or numbers become a model's inputs.

It travels in the metadata of the model's file, so that a trained model reads new inputs as the run
has read its own. Metadata without it mean arrays: bytes for images ``(C, H, W)``, otherwise any.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mdc_flower.data.contract import CONTRACT, Contract
from mdc_flower.data.dataset import DataSet
from mdc_flower.data.readers.options import AudioReading, Reading
from mdc_flower.data.readers.text import read_vocabulary
from mdc_flower.data.readers.vocabulary import Vocabulary
from mdc_flower.data.registry import READERS, TEXT_READERS, training_texts

KEY = "inputs"
"""Key of the metadata."""

DTYPES = {"image": "uint8", "audio": "float32", "text": "int64"}
"""Types of the arrays that are read from files, by kind."""


@dataclass(frozen=True)
class InputForm:
    """The form of a model's raw inputs.

    Attributes
    ----------
    kind : str
        ``image``, ``audio`` or ``text``, which are read from files, or ``array``.
    shape : tuple of int
        Shape of one input.
    dtype : str
        Type of the arrays; empty if it is not known.
    image_size : int
        Height and width in pixels to which images are resized; 0 keeps their size.
    sample_rate, seconds
        To which recordings are resampled, and cut or padded; the shape says how many bands.
    vocabulary : Vocabulary or None
        Of texts.
    num_tokens : int
        Number of tokens; 0 if it is not known, or if the inputs are not tokens.
    """

    kind: Literal["image", "audio", "text", "array"]
    shape: tuple[int, ...]
    dtype: str = ""
    image_size: int = 0
    sample_rate: int = 0
    seconds: float = 0.0
    vocabulary: Vocabulary | None = None
    num_tokens: int = 0

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "InputForm":
        """Return the form that the metadata of a model's file describe."""
        told = about.get(KEY, {})
        kind, shape = told.get("kind", "array"), tuple(about["input-shape"])
        plain = DTYPES.get(kind, "uint8" if len(shape) == 3 else "")
        return cls(
            kind,
            shape,
            told.get("dtype", plain),
            told.get("image-size", 0),
            told.get("sample-rate", 0),
            told.get("seconds", 0.0),
            Vocabulary(tuple(told["tokens"])) if "tokens" in told else None,
            about.get("num-tokens", 0),
        )

    @property
    def audio(self) -> AudioReading:
        """Return how recordings are read."""
        return AudioReading(self.sample_rate, self.shape[1], self.seconds)

    def reading(self, base: Reading) -> Reading:
        """Return how files are read; ``base`` gives the settings that are not of this kind."""
        if self.kind == "image":
            return replace(base, image_size=self.image_size)
        if self.kind == "audio":
            return replace(base, audio=self.audio)
        if self.kind == "text":
            return replace(base, text=replace(base.text, length=self.shape[0]))
        return base


def described(spec: str, data_root: str, reading: Reading, dataset: DataSet) -> dict[str, Any]:
    """Return the metadata about the form of a data set's inputs; empty for bytes in arrays.

    Parameters
    ----------
    spec, data_root, reading
        As in `load_dataset`, which has loaded the data set.
    """
    form = _form(spec, data_root, reading, dataset)
    return {KEY: form} if form else {}


def _form(spec: str, data_root: str, reading: Reading, dataset: DataSet) -> dict[str, Any]:
    dtype, shape = dataset.train.inputs.dtype, dataset.input_shape
    is_contract = spec.startswith(CONTRACT)
    from_files = is_contract or (":" in spec and spec.partition(":")[0] in READERS)
    if is_contract:
        contract = Contract.from_spec(spec)
        reading = contract.reading(reading)
    if from_files and dtype == np.uint8 and len(shape) == 3 and shape[0] == 3:
        return {"kind": "image", "image-size": reading.image_size}
    has_sound = not is_contract or contract.sample_rate > 0
    if from_files and dtype == np.float32 and len(shape) == 3 and has_sound:
        audio = reading.audio
        return {"kind": "audio", "sample-rate": audio.sample_rate, "seconds": audio.seconds}
    if from_files and dtype == np.int64 and dataset.vocabulary:
        known = _vocabulary(spec, data_root, reading)
        has_tokens = known is not None and known.sha256 == dataset.vocabulary
        return {"kind": "text", **({"tokens": list(known.tokens)} if known and has_tokens else {})}
    return {} if dtype == np.uint8 else {"kind": "array", "dtype": str(dtype)}


def _vocabulary(spec: str, data_root: str, reading: Reading) -> Vocabulary | None:
    """Return the vocabulary of a data set of texts: from the file, or made as the reader does."""
    if reading.text.vocabulary:
        return read_vocabulary(reading.text)
    if spec.partition(":")[0] not in TEXT_READERS:
        return None
    texts = training_texts(spec, data_root, reading)
    return Vocabulary.of(texts, reading.text.vocabulary_size, reading.text.min_count)
