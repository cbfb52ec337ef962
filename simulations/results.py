"""From outcomes to what people read: a table, a picture, and the lines they are made of."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from simulations.arm import Arm
from simulations.baselines import Outcome

Outcomes = Mapping[str, Mapping[int, Outcome]]

STYLES = ("-", "-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("", "o", "s", "^", "v", "D")


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and half the width of its 95% interval (Student's t); NaN for one seed."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return the interval of these values."""
        array = np.asarray(values, dtype=np.float64)
        if len(array) < 2:
            return cls(float(array.mean()), float("nan"))
        t = float(stats.t.ppf(0.975, len(array) - 1))
        return cls(float(array.mean()), t * float(array.std(ddof=1)) / len(array) ** 0.5)

    def percent(self, sign: bool = False) -> str:
        """Return the interval in percent, such as ``98.70 ± 0.35``."""
        text = f"{100 * self.mean:+.2f}" if sign else f"{100 * self.mean:.2f}"
        return text if np.isnan(self.half_width) else f"{text} ± {100 * self.half_width:.2f}"


@dataclass(frozen=True)
class Row:
    """One arm's line of the table; seconds and megabytes are means over seeds."""

    arm: str
    accuracy: Interval
    difference: Interval
    rounds: float
    megabytes: float
    seconds: float


def table_rows(arms: Sequence[Arm], outcomes: Outcomes, split: str) -> list[Row]:
    """Return a row for each arm; differences are paired by seed, to the first arm.

    Parameters
    ----------
    split
        ``test``, or ``validation`` for tuning: whose accuracy after the last round counts.
    """
    reference = outcomes[arms[0].key]
    rows = []
    for arm in arms:
        by_seed = outcomes[arm.key]
        final = {seed: getattr(outcome.points[-1], split) for seed, outcome in by_seed.items()}
        base = {seed: getattr(reference[seed].points[-1], split) for seed in by_seed}
        rows.append(
            Row(
                arm.name,
                Interval.of([final[seed] for seed in sorted(final)]),
                Interval.of([final[seed] - base[seed] for seed in sorted(final)]),
                _mean([outcome.rounds for outcome in by_seed.values()]),
                _mean([outcome.exchanged_bytes for outcome in by_seed.values()]) / 1e6,
                _mean([outcome.seconds for outcome in by_seed.values()]),
            )
        )
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def markdown_table(title: str, rows: Sequence[Row], split: str, num_seeds: int) -> str:
    """Return the table as Markdown, with what its figures mean."""
    lines = [
        f"### {title}",
        "",
        f"| arm | {split} accuracy, % | difference to {rows[0].arm}, points | rounds "
        "| exchanged, MB | seconds |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {row.arm} | {row.accuracy.percent()} "
            f"| {row.difference.percent(sign=True) if index else ''} "
            f"| {row.rounds:g} | {row.megabytes:.1f} | {row.seconds:.1f} |"
            for index, row in enumerate(rows)
        ),
        "",
        f"{_over(num_seeds)}Every arm makes the same number of passes over its data from the same "
        "initial model. Exchanged: model bytes to and from all sites. Seconds: wall time of a "
        "run on one core, sites one after the other.",
    ]
    return "\n".join(lines) + "\n"


def _over(num_seeds: int) -> str:
    if num_seeds == 1:
        return "One seed, so there are no intervals. "
    return (
        f"Mean over {num_seeds} seeds ± half the 95% interval (Student's t); differences are "
        "paired by seed. "
    )


def csv_table(rows: Sequence[Row]) -> str:
    """Return the table as CSV, accuracies in [0, 1]."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "arm",
            "accuracy",
            "accuracy_ci95",
            "difference",
            "difference_ci95",
            "rounds",
            "exchanged_megabytes",
            "seconds",
        ]
    )
    for row in rows:
        accuracy, difference = row.accuracy, row.difference
        writer.writerow(
            [
                row.arm,
                accuracy.mean,
                accuracy.half_width,
                difference.mean,
                difference.half_width,
                row.rounds,
                row.megabytes,
                round(row.seconds, 3),
            ]
        )
    return buffer.getvalue()


def json_lines(arms: Sequence[Arm], outcomes: Outcomes) -> str:
    """Return one line for each arm, seed and point: all that table and picture need."""
    return "".join(
        json.dumps({"arm": arm.name, "seed": seed, **asdict(point)}) + "\n"
        for arm in arms
        for seed, outcome in sorted(outcomes[arm.key].items())
        for point in outcome.points
    )


def draw_curves(title: str, arms: Sequence[Arm], outcomes: Outcomes, split: str) -> bytes:
    """Return a PNG: accuracy over passes, mean of the seeds, band from lowest to highest.

    Lines differ in dash and marker, not only in colour, and are named at their ends.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    ends: list[tuple[float, float, str, str]] = []
    for index, arm in enumerate(arms):
        x, curves = _curves(outcomes[arm.key], split)
        color = f"C{index}"
        mean = curves.mean(axis=0)
        axes.plot(
            x,
            mean,
            linestyle=STYLES[index % len(STYLES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            color=color,
        )
        axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15)
        ends.append((float(x[-1]), float(mean[-1]), arm.name, color))
    finals = [y for _, y, _, _ in ends]
    low = min(finals) - max(0.05, 1.5 * (max(finals) - min(finals)))
    axes.set_ylim(max(0.0, low), min(1.005, max(finals) + 0.1))
    _label_ends(axes, ends)
    axes.set(xlabel="passes over the data (local epochs)", ylabel=f"{split} accuracy", title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _curves(by_seed: Mapping[int, Outcome], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return passes, and accuracy by seed (rows), at the points that the seeds share.

    Seeds that share none, because rounds failed, are drawn by where they ended.
    """
    series = [
        {point.epochs: getattr(point, split) for point in outcome.points}
        for _, outcome in sorted(by_seed.items())
    ]
    shared = sorted(set.intersection(*(set(one) for one in series)))
    if not shared:
        ends = np.array([[one[max(one)]] for one in series])
        return np.array([max(max(one) for one in series)]), ends
    return np.array(shared), np.array([[one[epochs] for epochs in shared] for one in series])


def pushed_apart(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Return ascending heights moved up until they are a gap apart; down from the top if needed."""
    apart: list[float] = []
    for height in heights:
        apart.append(max(height, apart[-1] + gap) if apart else height)
    for index in reversed(range(len(apart))):
        apart[index] = min(apart[index], top - (len(apart) - 1 - index) * gap)
    return apart


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name at its end, pushed apart where lines end close together."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    heights = pushed_apart([end[1] for end in ends], (high - low) * 0.045, high)
    for (x, y, name, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            f" {name}", (x, y), (x, height), color=color, va="center", annotation_clip=False
        )
    axes.margins(x=0.02)
