"""The summary of several comparisons: one row each, with the differences of one arm from others."""

from collections.abc import Mapping, Sequence

from mdc_flower.common.shown_metrics import ShownMetric
from simulations.results.committed import same_metric
from simulations.results.result_files import Results
from simulations.results.rows import (
    Row,
    difference,
    difference_unit,
    finals,
    scale_of,
    table_rows,
)
from simulations.results.tables import lines, number, share
from strategies.common.errors import DataError

STUDIED = ("annealed-co-learning", "co-learning")
"""Keys of the arm under study: the first that all comparisons have."""

OTHERS = (
    "centralized",
    "centralized-equal-steps",
    "centralized-equal-time",
    "fedavg",
    "one-site",
)
"""Keys of the arms that the arm under study is compared with, if all comparisons have them."""


def summary_table(comparisons: Sequence[Results]) -> str:
    """Return a Markdown table, one row per comparison.

    Raises
    ------
    DataError
        If not all comparisons have one of the arms under study and one to compare it with, or they
        have different metrics.
    """
    metric = same_metric(comparisons)
    rows = [_by_key(results) for results in comparisons]
    studied, others = _arms(comparisons, [set(each) for each in rows])
    heads = [
        "data",
        "seeds",
        rows[0][others[0]].arm,
        rows[0][studied].arm,
        *(f"minus {rows[0][other].arm}" for other in others),
        "exchanges",
        "share of per-step bytes, %",
    ]
    cells = [
        [results.facts.name, str(len(results.facts.seeds)), *_cells(results, row, studied, others)]
        for results, row in zip(comparisons, rows, strict=True)
    ]
    note = _note(comparisons, metric, rows[0][studied].arm)
    return f"{lines(heads, cells)}\n\n{note}\n"


def summary_tables(comparisons: Sequence[Results]) -> str:
    """Return a `summary_table` of the comparisons of each metric."""
    by_metric: dict[ShownMetric, list[Results]] = {}
    for results in comparisons:
        by_metric.setdefault(results.facts.metric, []).append(results)
    return "\n".join(map(summary_table, by_metric.values()))


def _arms(comparisons: Sequence[Results], keys: Sequence[set[str]]) -> tuple[str, list[str]]:
    """Return the arm under study, and those to compare it with."""
    shared = set.intersection(*keys)
    studied = next((key for key in STUDIED if key in shared), None)
    others = [key for key in OTHERS if key in shared]
    if studied is None or not others:
        raise DataError(
            "a summary needs two arms that all comparisons have",
            where=", ".join(results.facts.name for results in comparisons),
            got=", ".join(sorted(shared)) or "none",
            expected=f"one of {', '.join(STUDIED)}, and one of {', '.join(OTHERS)}",
        )
    return studied, others


def _by_key(results: Results) -> dict[str, Row]:
    return dict(zip([arm.key for arm in results.facts.arms], table_rows(results), strict=True))


def _cells(
    results: Results, rows: Mapping[str, Row], studied: str, others: Sequence[str]
) -> list[str]:
    scale = scale_of(results.facts, list(rows.values()))
    reached = finals(results, studied)
    differences = [difference(reached, finals(results, other)) for other in others]
    return [
        rows[others[0]].score.text(scale),
        rows[studied].score.text(scale),
        *(one.text(scale, sign=True) for one in differences),
        number(rows[studied].exchanges),
        share(rows[studied].per_step),
    ]


def _note(comparisons: Sequence[Results], metric: ShownMetric, studied: str) -> str:
    unit = "percent" if metric.unit == "%" else metric.unit
    split = comparisons[0].facts.split.capitalize()
    what = f"{split} {metric.words}{unit and f' in {unit}'}{metric.direction}"
    points = difference_unit(metric)
    below = ", below 0 is better" if metric.better == "min" else ""
    differences = (
        f"differences are {studied} minus the other arm{points and f', in {points}'}{below}"
    )
    num_seeds = [len(results.facts.seeds) for results in comparisons]
    if max(num_seeds) == 1:
        return f"{what}; {differences}; one seed, so no intervals."
    alone = "" if min(num_seeds) > 1 else "; no interval for a single seed"
    return (
        f"{what}: mean over the seeds ± half-width of the 95% interval (Student's t); "
        f"{differences}, paired by seed{alone}."
    )
