"""Single-label classification of stored arrays: the default job."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdc_flower.training.batches import InputPipeline, Inputs, Tensors, shuffled, steps_per_epoch
from mdc_flower.training.job import Forward, Part, Pass, Spare
from mdc_flower.training.loop import TrainSettings, evaluating
from mdc_flower.training.optimizers import SGD, AdamW
from mdc_flower.training.transfer import Source, arriving, source_of
from strategies.exchange.metrics import ACCURACY, CLASSIFICATION, Metric

EVALUATION_BATCH = 256

FINGERPRINT_ROWS = 256
"""About how many inputs a fingerprint covers: reading all would take long."""

RECALL = "recall"

Batch = tuple[Tensor, Tensor]
"""Inputs and labels, on the device."""


def recalls(sums: list[float]) -> list[float]:
    """Return the recall of each class; NaN for a class without examples.

    Parameters
    ----------
    sums
        For each class the number of correct predictions, then for each class the number of
        examples.
    """
    half = len(sums) // 2
    pairs = zip(sums[:half], sums[half:], strict=True)
    return [right / count if count else math.nan for right, count in pairs]


def balanced(sums: list[float]) -> float:
    """Return the mean recall of the classes that have examples; NaN if there are none."""
    known = [value for value in recalls(sums) if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True)
class ClassificationJob:
    """Cross-entropy on a model's outputs, one for each class.

    Attributes
    ----------
    new_model : callable
        Returns a new model of the run's architecture.
    splits : Mapping[str, Tensors]
        The examples of each split.
    settings : TrainSettings
        Optimizer, batch size and label smoothing.
    pipeline : InputPipeline
        How stored inputs become model inputs.
    """

    new_model: Callable[[], nn.Module]
    splits: Mapping[str, Tensors]
    settings: TrainSettings
    pipeline: InputPipeline

    metrics = (
        *CLASSIFICATION,
        # If nearly all examples are of one class, accuracy hides that no other class is found. The
        # sums of these would tell how many examples of each class a site has.
        *(
            Metric(
                name,
                "max",
                finish,
                RECALL,
                low=0.0,
                high=1.0,
                unit="%",
                in_training=False,
                leaves_site=False,
            )
            for name, finish in (("balanced-accuracy", balanced), (RECALL, recalls))
        ),
    )

    def model(self) -> nn.Module:
        """Return a new model."""
        return self.new_model()

    def prepare(self, model: nn.Module) -> None:
        """Give the weights the memory layout of the inputs."""
        if self.pipeline.channels_last:
            model.to(memory_format=torch.channels_last)

    def batches(self, which: Pass) -> Iterator[Batch | Spare]:
        """Yield inputs and labels; without a generator, in larger batches."""
        source = source_of(self.splits[which.split].inputs, which.device)
        for part, (sent, labels, *moves) in arriving(self._drawn(which, source), which.device):
            yield part.of((self.pipeline.ready(source.inputs(sent), moves), labels))

    def _drawn(self, which: Pass, source: Source) -> Iterator[tuple[Part, tuple[Tensor, ...]]]:
        """Yield what must be sent to the device for each batch: inputs, labels, augmentation."""
        data = self.splits[which.split]
        augmenting = which.generator if which.augment else None
        example = data.inputs[0:1].shape[1:]
        if which.generator is None:
            order = _in_order(len(data))
        else:
            order = shuffled(len(data), self.settings.batch_size, which.generator)
        for number, rows in enumerate(order):
            labels = data.labels[rows]
            part = which.part(len(labels))
            own = _rows(rows, part.rows, len(data))
            # Drawn for the whole batch, so that it does not depend on how a batch is shared.
            moves = self.pipeline.draw((len(labels), *example), augmenting)
            if number < which.skip:
                continue
            yield part, (source.sent(own), *(of[part.rows] for of in (labels, *moves)))

    def size(self, split: str) -> int:
        """Return the number of examples of a split; 0 for a split that this job does not have."""
        return len(self.splits[split]) if split in self.splits else 0

    def fingerprint(self) -> str:
        """Return a digest of all labels, and of inputs spread over the training examples."""
        data = self.splits["train"]
        rows = torch.arange(0, len(data), max(1, len(data) // FINGERPRINT_ROWS))
        digest = hashlib.sha256(data.labels.numpy().tobytes())
        digest.update(data.inputs[rows].numpy().tobytes())
        return digest.hexdigest()

    def steps_per_epoch(self) -> int:
        """Return the number of batches in a pass over the training examples."""
        return steps_per_epoch(self.size("train"), self.settings.batch_size)

    def forward(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Forward:
        """Return the cross-entropy and the numbers of correct predictions."""
        inputs, labels = batch
        outputs = model(inputs)
        if torch.is_grad_enabled():
            loss = functional.cross_entropy(
                outputs, labels, label_smoothing=self.settings.label_smoothing
            )
            right = outputs.argmax(1) == labels
            return Forward(loss, len(labels), {ACCURACY.sums: _counts(right)})
        outputs = outputs.float()
        loss_sum = functional.cross_entropy(outputs, labels, reduction="sum")
        right = outputs.argmax(1) == labels
        # Not by `bincount`, for which the CPU must wait for a GPU.
        is_of = labels[:, None] == torch.arange(outputs.shape[1], device=labels.device)
        of_class = torch.cat([(is_of & right[:, None]).sum(0), is_of.sum(0)])
        sums = {ACCURACY.sums: _counts(right), RECALL: of_class.double()}
        return Forward(loss_sum / len(labels), len(labels), sums, loss_sum)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a new optimizer for the trainable parameters."""
        settings = self.settings
        parameters = [p for p in model.parameters() if p.requires_grad]
        if settings.optimizer == "adamw":
            return AdamW(parameters, lr=0.0, weight_decay=settings.weight_decay, fused=True)
        return SGD(
            parameters,
            lr=0.0,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
            weight_decay=settings.weight_decay,
            fused=True,
        )


def class_probabilities(
    model: nn.Module,
    inputs: Inputs,
    pipeline: InputPipeline,
    device: torch.device,
    autocast_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the softmax outputs, shape (examples, classes), float64, on the CPU."""
    with evaluating(model, device, autocast_dtype):
        outputs = [model(pipeline(inputs[rows], device)) for rows in _in_order(len(inputs))]
    return functional.softmax(torch.cat(outputs).double().cpu(), dim=1)


def _in_order(count: int) -> Iterator[Tensor | slice]:
    """Yield the rows of each batch of an evaluation, in the stored order."""
    for start in range(0, count, EVALUATION_BATCH):
        yield slice(start, start + EVALUATION_BATCH)


def _rows(batch: Tensor | slice, part: slice, count: int) -> Tensor | slice:
    """Return a part of a batch's rows; ``count`` is the number of examples in the data."""
    if isinstance(batch, Tensor):
        return batch[part]
    rows = range(count)[batch][part]
    return slice(rows.start, rows.stop, rows.step)


def _counts(right: Tensor) -> Tensor:
    """Return the number of correct predictions and of all, float64."""
    return torch.stack([right.sum().double(), right.new_full((), len(right), dtype=torch.float64)])
