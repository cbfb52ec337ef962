"""`Reading`: the options for turning files into examples, one class per kind of data."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table.

    Attributes
    ----------
    inputs, labels : str
        Columns of the model's inputs and of their classes; an empty ``labels`` reads no labels.
    groups : str
        Column of each example's owner; empty for none. In folders of images or recordings, a
        column of ``metadata.csv``, or ``folder`` for the folder below that of the class.
    """

    inputs: str = "text"
    labels: str = "label"
    groups: str = ""


@dataclass(frozen=True)
class AudioReading:
    """How to read recordings: all get the same number of log-mel bands and frames.

    Attributes
    ----------
    sample_rate : int
        Rate in Hz to which every recording is resampled.
    mels : int
        Bands of the mel scale, from 0 Hz to half the sample rate.
    seconds : float
        Length to which recordings are cut, or padded with silence.
    """

    sample_rate: int = 16_000
    mels: int = 64
    seconds: float = 1.0


@dataclass(frozen=True)
class TextReading:
    """How to read texts: all get the same number of tokens.

    Attributes
    ----------
    length : int
        Number of tokens to which texts are cut or padded.
    vocabulary : str
        Absolute path of a vocabulary file; empty to make one from the training texts.
    vocabulary_size : int
        Maximum size of a vocabulary that is made, including padding and unknown; 0 for no limit.
    min_count : int
        Minimum count in the training texts of a token in a vocabulary that is made.
    """

    length: int = 64
    vocabulary: str = ""
    vocabulary_size: int = 20_000
    min_count: int = 2


@dataclass(frozen=True)
class HubReading:
    """Which part of a Hugging Face Hub data set to read.

    Attributes
    ----------
    subset : str
        Name of the subset (called "config" on the Hub); empty for the only one.
    test_split : str
        Name of the test split; the training split is always ``train``.
    """

    subset: str = ""
    test_split: str = "test"


@dataclass(frozen=True)
class Reading:
    """All options of the run config for reading data.

    Attributes
    ----------
    image_size : int
        Height and width in pixels to which images are resized; 0 keeps their size.
    classes : tuple of str
        The agreed classes, in the order of their labels. Then any of them may have no examples,
        there may be no test split, and no other class may occur. Empty for those in the data.
    """

    image_size: int = 0
    audio: AudioReading = field(default_factory=AudioReading)
    text: TextReading = field(default_factory=TextReading)
    columns: Columns = field(default_factory=Columns)
    hub: HubReading = field(default_factory=HubReading)
    classes: tuple[str, ...] = ()
