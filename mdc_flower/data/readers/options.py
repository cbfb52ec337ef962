"""`Reading`: how files become examples, where that is a choice. One part a kind of data."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table.

    Attributes
    ----------
    inputs, labels : str
        What the model sees, and the class of it; no labels, and no groups, if that is empty.
    groups : str
        Natural owner of each example, for ``partition = natural-id``; empty for none.
    """

    inputs: str = "text"
    labels: str = "label"
    groups: str = ""


@dataclass(frozen=True)
class AudioReading:
    """Every recording becomes as many log-mel bands and frames as any other.

    Attributes
    ----------
    sample_rate : int
        Samples a second (Hz) that every recording is resampled to.
    mels : int
        Bands of the mel scale, from 0 Hz to half the sample rate.
    seconds : float
        Length that recordings are cut to, or padded to with silence.
    """

    sample_rate: int = 16_000
    mels: int = 64
    seconds: float = 1.0


@dataclass(frozen=True)
class TextReading:
    """Every text becomes as many tokens as any other.

    Attributes
    ----------
    length : int
        Tokens that texts are cut to, or padded to.
    vocabulary : str
        Absolute path of a vocabulary file; empty to make one from the training texts.
    vocabulary_size : int
        Most tokens of a vocabulary that is made, padding and unknown among them; 0 for no limit.
    min_count : int
        How often a token of a vocabulary that is made must be in the training texts.
    """

    length: int = 64
    vocabulary: str = ""
    vocabulary_size: int = 20_000
    min_count: int = 2


@dataclass(frozen=True)
class HubReading:
    """Which part of a data set of the Hugging Face Hub.

    Attributes
    ----------
    subset : str
        Name of the subset ("config" there); empty for the only one.
    test_split : str
        Split that is tested on; ``train`` is trained on.
    """

    subset: str = ""
    test_split: str = "test"


@dataclass(frozen=True)
class Reading:
    """What the run config says about reading, for every kind of data.

    Attributes
    ----------
    image_size : int
        Pixels that images are resized to; 0 keeps their size.
    """

    image_size: int = 0
    audio: AudioReading = field(default_factory=AudioReading)
    text: TextReading = field(default_factory=TextReading)
    columns: Columns = field(default_factory=Columns)
    hub: HubReading = field(default_factory=HubReading)
