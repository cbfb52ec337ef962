"""What views need to know about a run's metrics: names, directions and units, from its records."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strategies.exchange.metrics import LOSS


@dataclass(frozen=True)
class ShownMetric:
    """A metric as tables and figures show it.

    Attributes
    ----------
    name : str
        Its name in records, without ``test-`` or ``validation-``.
    better : str
        ``max`` or ``min``.
    unit : str
        Unit of its values; ``%`` for a share, shown as a percentage.
    selects : bool
        Whether it selects the best model.
    leaves_site : bool
        Whether the sites send it.
    """

    name: str
    better: str = "max"
    unit: str = ""
    selects: bool = False
    leaves_site: bool = True

    @property
    def words(self) -> str:
        """Return the name in words."""
        return self.name.replace("-", " ")

    @property
    def label(self) -> str:
        """Return name and unit, for a column or an axis."""
        return f"{self.words}, {self.unit}" if self.unit else self.words

    @property
    def heading(self) -> str:
        """Return name, unit and direction for the head of a column."""
        return self.label + self.direction

    @property
    def axis(self) -> str:
        """Return name, unit and direction for an axis, which shows shares between 0 and 1."""
        return (self.words if self.unit == "%" else self.label) + self.direction

    @property
    def direction(self) -> str:
        """Return a note if lower values are better; that higher ones are is what readers expect."""
        return " (lower is better)" if self.better == "min" else ""

    def with_unit(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{self.cell(value)} {self.unit}".rstrip()

    def short(self, value: float) -> str:
        """Return a value for a line of text."""
        return f"{value:.4f}" if self.unit == "%" else f"{value:.4g}"

    def cell(self, value: float) -> str:
        """Return a value for a table."""
        return f"{100 * value:.2f}" if self.unit == "%" else f"{value:.4g}"


OF_A_CLASSIFICATION = (
    ShownMetric("loss", "min", "nats"),
    ShownMetric("accuracy", "max", "%", selects=True),
    ShownMetric("balanced-accuracy", "max", "%", leaves_site=False),
    ShownMetric("recall", "max", "%", leaves_site=False),
)
"""What runs of earlier versions had, which did not record it."""


def shown_metrics(recorded: Iterable[Mapping[str, Any]] | None) -> Sequence[ShownMetric]:
    """Return the metrics that a run's ``run-started`` event or its summary names."""
    if recorded is None:
        return OF_A_CLASSIFICATION
    fields = ShownMetric.__dataclass_fields__
    return [
        ShownMetric(**{f: one[f.replace("_", "-")] for f in fields if f.replace("_", "-") in one})
        for one in recorded
    ]


def selecting(metrics: Sequence[ShownMetric]) -> ShownMetric:
    """Return the metric that selects the best model: the one declared, or the loss."""
    default = next((one for one in metrics if one.name == LOSS.name), ShownMetric(LOSS.name, "min"))
    return next((one for one in metrics if one.selects), default)


def short_name(metric: ShownMetric, beside: ShownMetric) -> str:
    """Return a metric's name beside another: balanced accuracy beside accuracy is "balanced"."""
    return metric.words.removesuffix(f" {beside.words}")


def drawn(metrics: Sequence[ShownMetric]) -> list[ShownMetric]:
    """Return the metrics that have a figure: those of the sites, the loss last."""
    first = selecting(metrics)
    loss = [one for one in metrics if one.name == LOSS.name and one.name != first.name]
    return [first, *(one for one in others(metrics) if one.leaves_site), *loss]


def others(metrics: Sequence[ShownMetric]) -> list[ShownMetric]:
    """Return the metrics beside the one that selects the best model, without the loss."""
    first = selecting(metrics)
    return [one for one in metrics if one.name not in (first.name, LOSS.name)]
