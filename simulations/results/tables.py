"""Make Markdown tables from results."""

from collections.abc import Sequence

from mdc_flower.common.shown_metrics import ShownMetric
from simulations.results.intervals import Scale
from simulations.results.result_files import CENTRALIZED_STEPS, EQUAL_TIME, Results
from simulations.results.rows import (
    AVERAGING,
    Row,
    best_arm,
    difference_unit,
    scale_of,
    shown_others,
    table_rows,
)


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
            *(number(cost) for cost in (row.steps, row.examples) if _costs_known(rows)),
            number(row.exchanges),
            _megabytes(row.sent_megabytes + row.received_megabytes),
            share(row.per_step),
            f"{row.seconds:,.1f}",
        ]
        for index, row in enumerate(rows)
    ]


def _costs_known(rows: Sequence[Row]) -> bool:
    """Return whether all results have their time and work; earlier versions did not record it."""
    return all(row.steps is not None and row.examples is not None for row in rows)


def number(mean: float | None) -> str:
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


EXCEPTIONS = {
    EQUAL_TIME: "as many steps as a site",
    CENTRALIZED_STEPS: "each site as many steps as centralized training",
}
"""Protocols in which an arm does not make the passes of the others."""


def _budgets(results: Results) -> str:
    """Return what all arms have in common, and the exceptions."""
    arms = results.facts.arms
    if arms[0].counts_steps:
        text = "Every site takes the same number of optimizer steps in every arm"
        pooled = "training on the pooled data processes as many examples as all sites together"
        text += f"; {pooled}" if any(arm.kind == "centralized" for arm in arms) else ""
    else:
        text = "Every arm makes the same number of passes over its data"
    exceptions = [
        f"{arm.name} ({EXCEPTIONS[arm.protocol]})" for arm in arms if arm.protocol in EXCEPTIONS
    ]
    return f"{text}, except {', '.join(exceptions)}." if exceptions else f"{text}."


def markdown_table(results: Results) -> str:
    """Return the table as Markdown, with title and explanation."""
    heads, rows = table_cells(results)
    best = best_arm(results, table_rows(results))
    if best is not None:
        rows[best][1] = f"**{rows[best][1]}**"
    return f"### {results.facts.name}\n\n{lines(heads, rows)}\n\n{table_note(results)}\n"


def lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; all columns but the first are aligned to the right."""
    rule = "|---" + "|---:" * (len(heads) - 1) + "|"
    return "\n".join([_line(heads), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _megabytes(count: float) -> str:
    """Return a number of megabytes; those of a small model have two digits that are not 0."""
    return f"{count:.2g}" if 0 < count < 0.1 else f"{count:,.1f}"


def share(fraction: float) -> str:
    """Return a share in percent, with two decimals, or two significant digits below 0.1."""
    percent = 100 * fraction
    return f"{percent:.2f}" if percent >= 0.1 else f"{percent:.2g}"


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
