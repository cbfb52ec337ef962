"""Make Markdown and CSV tables from results."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from simulations.results.outcome import Outcome
from simulations.results.result_files import ArmFacts, Results, Tuned, mean_validation
from strategies.common.errors import DataError


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the half-width of its 95% interval (Student's t); NaN for one seed."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Compute the interval of these values."""
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
    """One arm's row of the table; all fields but accuracy and difference are means over seeds.

    Attributes
    ----------
    arm : str
        Name of the arm.
    accuracy, difference : Interval
        Accuracy after the last round; difference from the first arm, paired by seed.
    exchanges : float
        Exchanges with all sites.
    sent_megabytes, received_megabytes : float
        Model bytes sent to and received from all sites, in units of 10^6.
    per_step : float
        Sent plus received bytes, as a fraction of what averaging after each step would exchange.
    seconds : float
        Wall time of a run on one core, with the sites trained one after the other.
    """

    arm: str
    accuracy: Interval
    difference: Interval
    exchanges: float
    sent_megabytes: float
    received_megabytes: float
    per_step: float
    seconds: float


def table_rows(results: Results) -> list[Row]:
    """Return one row per arm, with differences from the first arm, paired by seed."""
    split = results.facts.split
    reference = _finals(results.outcomes[results.facts.arms[0].key], split)
    return [_row(arm, results.outcomes[arm.key], reference, split) for arm in results.facts.arms]


def _row(
    arm: ArmFacts, by_seed: Mapping[int, Outcome], reference: Mapping[int, float], split: str
) -> Row:
    finals = _finals(by_seed, split)
    points = [outcome.final for outcome in by_seed.values()]
    sent = _mean([point.sent_bytes for point in points])
    received = _mean([point.received_bytes for point in points])
    return Row(
        arm.name,
        Interval.of(list(finals.values())),
        _difference(finals, reference),
        _mean([point.exchanges for point in points]),
        sent / 1e6,
        received / 1e6,
        (sent + received) / arm.per_step_bytes,
        _mean([point.seconds for point in points]),
    )


def _finals(by_seed: Mapping[int, Outcome], split: str) -> dict[int, float]:
    """Return the accuracy after the last round by seed, sorted by seed."""
    return {seed: getattr(by_seed[seed].final, split) for seed in sorted(by_seed)}


def _difference(finals: Mapping[int, float], reference: Mapping[int, float]) -> Interval:
    """Return the accuracy minus the reference, paired by seed."""
    return Interval.of([value - reference[seed] for seed, value in finals.items()])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def table_cells(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the headers and the formatted rows of the table."""
    rows = table_rows(results)
    heads = [
        "arm",
        f"{results.facts.split} accuracy, %",
        f"difference from {rows[0].arm}, points",
        "exchanges",
        "sent, MB",
        "received, MB",
        "share of per-step bytes",
        "seconds",
    ]
    return heads, [
        [
            row.arm,
            row.accuracy.percent(),
            row.difference.percent(sign=True) if index else "",
            f"{row.exchanges:.3g}",
            f"{row.sent_megabytes:.1f}",
            f"{row.received_megabytes:.1f}",
            _share(row.per_step),
            f"{row.seconds:.1f}",
        ]
        for index, row in enumerate(rows)
    ]


def table_note(results: Results) -> str:
    """Return the explanation of the table's columns."""
    return (
        f"{_over(len(results.facts.seeds))}Every arm makes the same number of passes over its "
        "data, starting from the same initial model. Sent, received: model bytes to and from all "
        "sites. Share of per-step bytes: their sum, divided by what averaging after each optimizer "
        "step would exchange. Seconds: wall time of a run on one core, one site after the other."
    )


def markdown_table(results: Results) -> str:
    """Return the table as Markdown, with title and explanation."""
    heads, rows = table_cells(results)
    return f"### {results.facts.name}\n\n{_lines(heads, rows)}\n\n{table_note(results)}\n"


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = "|---" + "|---:" * (len(heads) - 1) + "|"
    return "\n".join([_line(heads), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _share(share: float) -> str:
    return f"1/{1 / share:.0f}" if share else "0"


def _over(num_seeds: int) -> str:
    if num_seeds == 1:
        return "One seed, so no intervals. "
    return (
        f"Mean over {num_seeds} seeds ± half-width of the 95% interval (Student's t); differences "
        "are paired by seed. "
    )


def provenance_line(results: Results) -> str:
    """Return the provenance of the results as a Markdown paragraph."""
    facts = results.facts
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    tuned = ", including tuning" if facts.tuning else ""
    hours = facts.seconds / 3600
    # A short comparison has one digit that is not 0.
    effort = f"{hours:.1f}" if hours >= 0.1 else f"{hours:.1g}"
    seeds = ", ".join(map(str, facts.seeds))
    return (
        f"`{facts.command}`, {facts.date}, on {facts.hardware}; seeds {seeds}; "
        f"{effort} core hours in total{tuned}; {versions}.\n"
    )


SUMMARY_ARMS = ("centralized", "co-learning", "fedavg", "one-site")
"""Keys of the arms in a summary of several comparisons, if all comparisons have them: the
reference, the arm under study, the arm it should improve on, and one site alone."""


def summary_table(comparisons: Sequence[Results]) -> str:
    """Return a Markdown table, one row per comparison, of the `SUMMARY_ARMS` that all have.

    Raises
    ------
    DataError
        If the comparisons have fewer than two of these arms in common.
    """
    lines = [_by_key(results) for results in comparisons]
    keys = [key for key in SUMMARY_ARMS if all(key in line for line in lines)]
    if len(keys) < 2:
        raise DataError(
            "a summary needs at least two arms that all comparisons have",
            where=", ".join(results.facts.name for results in comparisons),
            got=", ".join(keys) or "none",
            expected="two or more of: " + ", ".join(SUMMARY_ARMS),
        )
    names = [lines[0][key].arm for key in keys]
    heads = [
        "data",
        "seeds",
        *names,
        *(f"{name} minus {other}, points" for name, other in _paired(names)),
        f"exchanges of {names[1]}",
        "share of per-step bytes",
    ]
    cells = [
        [results.facts.name, str(len(results.facts.seeds)), *_summary_cells(line, results, keys)]
        for results, line in zip(comparisons, lines, strict=True)
    ]
    split = comparisons[0].facts.split.capitalize()
    note = f"{split} accuracy in percent: {_summary_note(comparisons)}"
    return f"{_lines(heads, cells)}\n\n{note}\n"


def _paired(values: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of arms whose difference a summary shows: each minus the previous one."""
    return list(zip(values[1:3], values[:2], strict=False))


def _summary_note(comparisons: Sequence[Results]) -> str:
    num_seeds = [len(results.facts.seeds) for results in comparisons]
    if max(num_seeds) == 1:
        return "one seed, so no intervals."
    alone = "" if min(num_seeds) > 1 else "; no interval for a single seed"
    return (
        "mean over the seeds ± half-width of the 95% interval (Student's t); differences are "
        f"paired by seed{alone}."
    )


def _by_key(results: Results) -> dict[str, Row]:
    return dict(zip([arm.key for arm in results.facts.arms], table_rows(results), strict=True))


def _summary_cells(line: Mapping[str, Row], results: Results, keys: Sequence[str]) -> list[str]:
    rows = [line[key] for key in keys]
    finals = {key: _finals(results.outcomes[key], results.facts.split) for key in keys}
    return [
        *(row.accuracy.percent() for row in rows),
        *(_difference(finals[a], finals[b]).percent(sign=True) for a, b in _paired(keys)),
        f"{rows[1].exchanges:.3g}",
        _share(rows[1].per_step),
    ]


def tuning_table(results: Results) -> str:
    """Return each arm's candidates as Markdown, the chosen one in bold; empty without tuning.

    A note below names the arms whose best value is the lowest or highest that was tried, because a
    better value may lie beyond it.
    """
    tuning = results.facts.tuning
    if not tuning:
        return ""
    lines = ["| arm | candidates: validation accuracy, % |", "|---|---|"]
    for arm in results.facts.arms:
        lines.append(f"| {arm.name} | {_candidates(tuning[arm.key])} |")
    at_edge = [arm.name for arm in results.facts.arms if _is_at_edge(tuning[arm.key])]
    if at_edge:
        lines += [
            "",
            "The chosen value is the lowest or highest of three or more for: "
            f"{'; '.join(at_edge)}.",
        ]
    return "\n".join(lines) + "\n"


def _is_at_edge(tuned: Tuned) -> bool:
    for key, chosen in tuned.candidates[tuned.chosen].values.items():
        tried = {value for one in tuned.candidates if not isinstance(value := one.values[key], str)}
        if len(tried) >= 3 and chosen in (min(tried), max(tried)):
            return True
    return False


def _candidates(tuned: Tuned) -> str:
    cells = [f"{keys}: {reached}" for keys, reached in tuning_cells(tuned)]
    cells[tuned.chosen] = f"**{cells[tuned.chosen]}**"
    return "; ".join(cells)


def tuning_cells(tuned: Tuned) -> list[tuple[str, str]]:
    """Return the keys of each candidate, and its mean accuracy over the seeds in percent."""
    cells = []
    for one in tuned.candidates:
        mean = mean_validation(one.validation)
        keys = ", ".join(f"{key} {value}" for key, value in one.values.items())
        cells.append((keys, f"{100 * mean:.2f}" if math.isfinite(mean) else "diverged"))
    return cells


def csv_table(results: Results) -> str:
    """Return the table as CSV, with accuracies in [0, 1]."""
    lines = [
        {
            "arm": row.arm,
            "accuracy": row.accuracy.mean,
            "accuracy_ci95": row.accuracy.half_width,
            "difference": row.difference.mean,
            "difference_ci95": row.difference.half_width,
            "exchanges": row.exchanges,
            "sent_megabytes": row.sent_megabytes,
            "received_megabytes": row.received_megabytes,
            "share_of_per_step_bytes": row.per_step,
            "seconds": round(row.seconds, 3),
        }
        for row in table_rows(results)
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
