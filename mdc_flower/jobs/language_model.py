"""Causal language model: predict each token from those before it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from mdc_flower.jobs.metrics import NOT_NEGATIVE
from mdc_flower.jobs.torch_job import TorchJob, torch_job
from strategies.exchange.metrics import LOSS, Metric, ratio

IGNORED = -100
"""Label of a token that does not count, as in Hugging Face's models."""

LARGEST_EXPONENT = 700.0
"""A loss above this has a perplexity that float64 cannot hold."""


def causal_language_model(
    model: Callable[[], nn.Module], ignored: int = IGNORED, **options: Any
) -> TorchJob:
    """Return a job with cross-entropy per token; the best model has the smallest perplexity.

    A batch is a tensor of tokens, int64 (examples, length), or a mapping with ``input_ids`` and
    whatever else the model takes, such as ``attention_mask``. Its ``labels``, by default the input
    tokens, are shifted here: position i is predicted from those before it. Loss and perplexity are
    means over tokens, whatever the lengths of a site's texts.

    Parameters
    ----------
    model
        Builds a model of tokens that returns logits (examples, length, vocabulary), or an object
        or dictionary with ``logits``.
    ignored
        Label of tokens that do not count.
    options
        Data, optimizer and everything else; see `torch_job`.
    """

    def loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        losses = functional.cross_entropy(logits, labels, ignore_index=ignored, reduction="none")
        # Summed in float64, so that it does not matter how the examples are divided into batches.
        return losses.double().sum(), (labels != ignored).sum()

    def units(batch: Any) -> Tensor:
        return (_labels(batch)[:, 1:] != ignored).sum(1)

    # A forward pass of the user's may make other labels, which only the loss then counts.
    usual = {} if "forward" in options else {"forward": _logits_and_labels, "units": units}
    return torch_job(
        model=model,
        loss=loss,
        metrics=(
            Metric(
                "perplexity",
                "min",
                _perplexity,
                LOSS.sums,
                2,
                low=1.0,
                per_example=NOT_NEGATIVE,
                selects=True,
            ),
        ),
        loss_metric=Metric(LOSS.name, "min", ratio, LOSS.sums, 2, unit="nats per token"),
        **{**usual, **options},
    )  # fmt: skip


def _logits_and_labels(model: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, Mapping):
        return _logits(model(batch)), batch
    inputs = {key: of for key, of in batch.items() if key != "labels"}
    return _logits(model(**inputs)), _labels(batch)


def _labels(batch: Any) -> Tensor:
    labels: Tensor = (
        batch.get("labels", batch["input_ids"]) if isinstance(batch, Mapping) else batch
    )
    return labels


def _logits(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits


def _perplexity(sums: list[float]) -> float:
    """Return the exponential of the mean loss; infinity if it is too large."""
    loss = ratio(sums)
    return math.exp(loss) if not loss > LARGEST_EXPONENT else math.inf
