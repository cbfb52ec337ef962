"""Small networks for texts as token numbers (length,), trained from scratch.

0 is padding. It follows the text, and its length does not change the outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mdc_flower.models.small import Shape
from strategies.common.errors import ModelError

PADDING = 0
EMBEDDING = 64
"""Embedding size. With 20,000 tokens, the embedding is 5 MB of a model's 5 to 6 MB."""


def text_cnn(input_shape: Shape, num_classes: int, num_tokens: int = 0) -> nn.Module:
    """Return convolutions over 3, 4 and 5 tokens with max pooling, dropout, and a linear layer.

    This is CNN-rand of Kim, "Convolutional neural networks for sentence classification", EMNLP
    2014, with embeddings of size 64 instead of 300, 64 instead of 100 maps of each width, and no
    limit on the norm of the last layer's weights.

    Raises
    ------
    ModelError
        If the inputs are not tokens, or the number of tokens is unknown.
    """
    _check_tokens("text-cnn", input_shape, num_tokens)
    return TextCNN(num_tokens, num_classes)


def text_gru(input_shape: Shape, num_classes: int, num_tokens: int = 0) -> nn.Module:
    """Return a bidirectional GRU whose outputs are averaged, dropout, and a linear layer.

    The GRU is that of Cho et al., EMNLP 2014, section 2.3, in torch's variant, with 64 units in
    each direction.

    Raises
    ------
    ModelError
        If the inputs are not tokens, or the number of tokens is unknown.
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
        # ReLU outputs are at least 0, so zeros at padding never exceed the maximum of the tokens.
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
        # A text without tokens is read as one padding token, because a sequence cannot be empty.
        lengths = (tokens != PADDING).sum(dim=1).clamp(min=1)
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        outputs, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        mean = outputs.sum(dim=1) / lengths.unsqueeze(1)
        logits: Tensor = self.classes(self.dropout(mean))
        return logits


def _around(embedded: Tensor, width: int) -> Tensor:
    """Pad the embeddings with zeros so that a convolution keeps their number."""
    return nn.functional.pad(embedded, ((width - 1) // 2, width // 2))


def _check_tokens(name: str, input_shape: Shape, num_tokens: int) -> None:
    if len(input_shape) != 1 or num_tokens < 1:
        raise ModelError(
            "the model needs texts as tokens",
            where="model",
            got=f"{name} for inputs {tuple(input_shape)} and {num_tokens} tokens",
            expected="inputs of shape (length,) and the number of tokens",
            hint="Set num_tokens in your own data set, or num-tokens in your contract",
        )
