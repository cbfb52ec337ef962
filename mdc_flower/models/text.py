"""Networks for texts as token numbers (length,), where 0 is padding: small, trained from scratch.

Padding follows a text, and how much of it changes nothing in the outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mdc_flower.models.small import Shape
from strategies.common.errors import ModelError

PADDING = 0
EMBEDDING = 64
"""Numbers a token. With 20,000 tokens that is 5 MB of the 5 to 6 MB that a model has."""


def text_cnn(input_shape: Shape, num_classes: int, num_tokens: int = 0) -> nn.Module:
    """Return convolutions over 3, 4 and 5 tokens, each map's highest value, dropout, and a layer.

    Kim, "Convolutional neural networks for sentence classification", EMNLP 2014, CNN-rand;
    embeddings of 64 in place of 300 numbers and 64 in place of 100 maps of each width, and no
    bound on the norm of the last layer's weights.

    Raises
    ------
    ModelError
        If the inputs are no tokens, or how many there are is not known.
    """
    _check_tokens("text-cnn", input_shape, num_tokens)
    return TextCNN(num_tokens, num_classes)


def text_gru(input_shape: Shape, num_classes: int, num_tokens: int = 0) -> nn.Module:
    """Return a GRU that reads each text in both directions, and the mean of its outputs.

    Cho et al., EMNLP 2014, section 2.3, in torch's variant; 64 units in each direction, and
    dropout before the last layer.

    Raises
    ------
    ModelError
        If the inputs are no tokens, or how many there are is not known.
    """
    _check_tokens("text-gru", input_shape, num_tokens)
    return TextGRU(num_tokens, num_classes)


class TextCNN(nn.Module):
    """See `text_cnn`."""

    def __init__(
        self, num_tokens: int, num_classes: int, maps: int = 64, widths: Sequence[int] = (3, 4, 5)
    ) -> None:
        super().__init__()
        self.widths = widths
        self.embedding = nn.Embedding(num_tokens, EMBEDDING, padding_idx=PADDING)
        self.convolutions = nn.ModuleList(nn.Conv1d(EMBEDDING, maps, width) for width in widths)
        self.dropout = nn.Dropout(0.5)
        self.classes = nn.Linear(maps * len(widths), num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of texts ``(batch, length)``, int64."""
        embedded = self.embedding(tokens).transpose(1, 2)
        # After ReLU nothing is below 0, so zeros where there is no token are never the highest.
        is_token = (tokens != PADDING).unsqueeze(1)
        highest = [
            (torch.relu(convolution(_around(embedded, width))) * is_token).amax(dim=2)
            for convolution, width in zip(self.convolutions, self.widths, strict=True)
        ]
        logits: Tensor = self.classes(self.dropout(torch.cat(highest, dim=1)))
        return logits


class TextGRU(nn.Module):
    """See `text_gru`."""

    def __init__(self, num_tokens: int, num_classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, EMBEDDING, padding_idx=PADDING)
        self.gru = nn.GRU(EMBEDDING, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.5)
        self.classes = nn.Linear(2 * hidden, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of texts ``(batch, length)``, int64."""
        # A text without any token is read as one padding token: a sequence cannot be empty.
        lengths = (tokens != PADDING).sum(dim=1).clamp(min=1)
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        outputs, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        mean = outputs.sum(dim=1) / lengths.unsqueeze(1)
        logits: Tensor = self.classes(self.dropout(mean))
        return logits


def _around(embedded: Tensor, width: int) -> Tensor:
    """Return the embeddings with so many zeros around that a convolution keeps their number."""
    return nn.functional.pad(embedded, ((width - 1) // 2, width // 2))


def _check_tokens(name: str, input_shape: Shape, num_tokens: int) -> None:
    if len(input_shape) != 1 or num_tokens < 1:
        raise ModelError(
            "the model takes texts as tokens",
            where="model",
            got=f"{name} for inputs {tuple(input_shape)} and {num_tokens} tokens",
            expected="inputs (length,), and their number of tokens",
            hint="A data set or contract of one's own says it as num_tokens or num-tokens",
        )
