"""Make Markdown and CSV tables from results."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

from mdc_flower.common.shown_metrics import ShownMetric
from simulations.results.committed import same_metric
from simulations.results.intervals import Interval, Scale
from simulations.results.result_files import Results, Tuned, mean_validation
from simulations.results.rows import (
    Row,
    difference,
    difference_unit,
    finals,
    scale_of,
    shown_others,
    table_rows,
)
from strategies.common.errors import DataError


def table_cells(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the headers and the formatted rows of the table."""
    rows, facts, more = table_rows(results), results.facts, shown_others(results)
    scale = scale_of(facts, rows)
    scales = {one.name: Scale.of(one, [row.others[one.name].mean for row in rows]) for one in more}
    heads = [
        "arm",
        f"{facts.split} {facts.metric.heading}",
        _difference_heading(f"difference from {rows[0].arm}", facts.metric),
        *(one.heading for one in more),
        "exchanges",
        "sent, MB",
        "received, MB",
        "share of per-step bytes",
        "seconds",
    ]
    return heads, [
        [
            row.arm,
            row.score.text(scale),
            row.difference.text(scale, sign=True) if index else "",
            *(row.others[name].text(scales[name]) for name in scales),
            f"{row.exchanges:.3g}",
            _megabytes(row.sent_megabytes),
            _megabytes(row.received_megabytes),
            _share(row.per_step),
            f"{row.seconds:.1f}",
        ]
        for index, row in enumerate(rows)
    ]


def _difference_heading(what: str, metric: ShownMetric) -> str:
    """Return the head of a column of differences."""
    unit = difference_unit(metric)
    note = " (below 0 is better)" if metric.better == "min" else ""
    return (f"{what}, {unit}" if unit else what) + note


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


def _megabytes(count: float) -> str:
    """Return a number of megabytes; those of a small model have two digits that are not 0."""
    return f"{count:.2g}" if 0 < count < 0.1 else f"{count:.1f}"


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
        If the comparisons have fewer than two of these arms in common, or different metrics.
    """
    metric = same_metric(comparisons)
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
        *(_difference_heading(f"{name} minus {other}", metric) for name, other in _paired(names)),
        f"exchanges of {names[1]}",
        "share of per-step bytes",
    ]
    cells = [
        [results.facts.name, str(len(results.facts.seeds)), *_summary_cells(line, results, keys)]
        for results, line in zip(comparisons, lines, strict=True)
    ]
    split = comparisons[0].facts.split.capitalize()
    unit = "percent" if metric.unit == "%" else metric.unit
    measured = f"{metric.words} in {unit}" if unit else metric.words
    note = f"{split} {measured}{metric.direction}: {_summary_note(comparisons)}"
    return f"{_lines(heads, cells)}\n\n{note}\n"


def summary_tables(comparisons: Sequence[Results]) -> str:
    """Return a `summary_table` of the comparisons of each metric."""
    by_metric: dict[ShownMetric, list[Results]] = {}
    for results in comparisons:
        by_metric.setdefault(results.facts.metric, []).append(results)
    return "\n".join(map(summary_table, by_metric.values()))


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
    scale = scale_of(results.facts, rows)
    scores = {key: finals(results, key) for key in keys}
    return [
        *(row.score.text(scale) for row in rows),
        *(difference(scores[a], scores[b]).text(scale, sign=True) for a, b in _paired(keys)),
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
    metric = results.facts.metric
    lines = [f"| arm | candidates: validation {metric.heading} |", "|---|---|"]
    for arm in results.facts.arms:
        lines.append(f"| {arm.name} | {_candidates(tuning[arm.key], metric)} |")
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


def _candidates(tuned: Tuned, metric: ShownMetric) -> str:
    cells = [f"{keys}: {reached}" for keys, reached in tuning_cells(tuned, metric)]
    cells[tuned.chosen] = f"**{cells[tuned.chosen]}**"
    return "; ".join(cells)


def tuning_cells(tuned: Tuned, metric: ShownMetric) -> list[tuple[str, str]]:
    """Return the keys of each candidate, and the mean of the metric over the seeds."""
    cells = []
    for one in tuned.candidates:
        mean = mean_validation(one.validation)
        keys = ", ".join(f"{key} {value}" for key, value in one.values.items())
        cells.append((keys, metric.cell(mean) if math.isfinite(mean) else "diverged"))
    return cells


def csv_table(results: Results) -> str:
    """Return the table as CSV, with metrics as the job computes them: shares are in [0, 1]."""
    name = results.facts.metric.name
    lines = [
        {
            "arm": row.arm,
            **_csv_cells({name: row.score, "difference": row.difference, **row.others}),
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


def _csv_cells(intervals: Mapping[str, Interval]) -> dict[str, float]:
    cells: dict[str, float] = {}
    for name, interval in intervals.items():
        column = name.replace("-", "_")
        cells |= {column: interval.mean, f"{column}_ci95": interval.half_width}
    return cells
