"""Make Markdown tables from results."""

from collections.abc import Mapping, Sequence

from mdc_flower.common.shown_metrics import ShownMetric
from simulations.results.committed import same_metric
from simulations.results.intervals import Scale
from simulations.results.result_files import EQUAL_TIME, Results
from simulations.results.rows import (
    AVERAGING,
    Row,
    best_arm,
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
        *(["time, steps", "work, examples"] if _costs_known(rows) else []),
        "exchanges",
        "exchanged, MB",
        "share of per-step bytes, %",
        "seconds",
    ]
    return heads, [
        [
            row.arm,
            row.score.text(scale),
            row.difference.text(scale, sign=True) if index else "",
            *(row.others[name].text(scales[name]) for name in scales),
            *(_number(cost) for cost in (row.steps, row.examples) if _costs_known(rows)),
            _number(row.exchanges),
            _megabytes(row.sent_megabytes + row.received_megabytes),
            _share(row.per_step),
            f"{row.seconds:,.1f}",
        ]
        for index, row in enumerate(rows)
    ]


def _costs_known(rows: Sequence[Row]) -> bool:
    """Return whether all results have their time and work; earlier versions did not record it."""
    return all(row.steps is not None and row.examples is not None for row in rows)


def _number(mean: float | None) -> str:
    """Return a mean of whole numbers; with a decimal place if it is not whole."""
    if mean is None:
        return ""
    return f"{mean:,.0f}" if mean == round(mean) else f"{mean:,.1f}"


def _difference_heading(what: str, metric: ShownMetric) -> str:
    """Return the head of a column of differences."""
    unit = difference_unit(metric)
    note = " (below 0 is better)" if metric.better == "min" else ""
    return (f"{what}, {unit}" if unit else what) + note


def table_note(results: Results) -> str:
    """Return the explanation of the table's columns."""
    facts, rows = results.facts, table_rows(results)
    best = best_arm(results, rows)
    marked = "" if best is None else f"Bold: {_best_of(facts.arms[best].kind)}. "
    costs = (
        "Time: optimizer steps one after the other. Work: examples trained on, at all sites. "
        if _costs_known(rows)
        else ""
    )
    return (
        f"{_over(len(facts.seeds))}{marked}{_budgets(results)} All start from the same initial "
        f"model. {costs}Exchanged: model bytes to and from all sites; the share is of what "
        "averaging after each optimizer step would exchange. Seconds: wall time of a run on one "
        "core, one site after the other."
    )


def _best_of(kind: str) -> str:
    return "the best arm that averages" if kind in AVERAGING else "the best arm"


def _budgets(results: Results) -> str:
    """Return what all arms have in common, and the exceptions."""
    arms = results.facts.arms
    if arms[0].counts_steps:
        text = "Every site takes the same number of optimizer steps in every arm"
        pooled = "training on the pooled data processes as many examples as all sites together"
        text += f"; {pooled}" if any(arm.kind == "centralized" for arm in arms) else ""
    else:
        text = "Every arm makes the same number of passes over its data"
    timed = [arm.name for arm in arms if arm.protocol == EQUAL_TIME]
    return f"{text}, except {', '.join(timed)}: as many steps as a site." if timed else f"{text}."


def markdown_table(results: Results) -> str:
    """Return the table as Markdown, with title and explanation."""
    heads, rows = table_cells(results)
    best = best_arm(results, table_rows(results))
    if best is not None:
        rows[best][1] = f"**{rows[best][1]}**"
    return f"### {results.facts.name}\n\n{_lines(heads, rows)}\n\n{table_note(results)}\n"


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; all columns but the first are aligned to the right."""
    rule = "|---" + "|---:" * (len(heads) - 1) + "|"
    return "\n".join([_line(heads), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _megabytes(count: float) -> str:
    """Return a number of megabytes; those of a small model have two digits that are not 0."""
    return f"{count:.2g}" if 0 < count < 0.1 else f"{count:,.1f}"


def _share(share: float) -> str:
    """Return a share in percent, with three significant digits."""
    return f"{100 * share:.3g}"


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
        "share of per-step bytes, %",
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
    """Return the pairs of arms whose difference a summary shows: the second minus each other.

    So all differences have one sign: above 0, the arm under study has the higher value.
    """
    return [(values[1], other) for other in (values[0], *values[2:3])]


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
        _number(rows[1].exchanges),
        _share(rows[1].per_step),
    ]
