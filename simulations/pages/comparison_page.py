"""The HTML page of a comparison, made from its two result files only."""

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdc_flower.common.config_model import Scalar
from mdc_flower.config import RunConfig
from mdc_flower.reports.page import Listing, Page, Picture, Section, Table
from mdc_flower.reports.units import format_bytes, format_seconds
from simulations.figures.curves import plot_curves
from simulations.figures.exchanges import plot_exchanges
from simulations.results.result_files import EQUAL_PASSES, ArmFacts, Results
from simulations.results.rows import best_arm, scale_of, table_rows
from simulations.results.tables import table_cells, table_note
from simulations.results.tuning_tables import tuned_with, tuning_cells

DEFAULTS = RunConfig().to_flower()
SIZE = (6.8, 4.4)
"""Width and height of a picture, in inches."""


def comparison_page(results: Results) -> Page:
    """Build the page of a comparison."""
    facts = results.facts
    arms, seeds = len(facts.arms), len(facts.seeds)
    return Page(
        title=facts.name,
        subtitle=f"Comparison of {arms} arms at equal budgets, by {facts.metric.words} on the "
        f"{facts.split} split{facts.metric.direction}",
        highlights=[
            ("arms", str(arms)),
            ("seeds", str(seeds)),
            ("sites", str(facts.num_sites)),
            ("all runs, on one core", format_seconds(facts.seconds)),
        ],
        facts=[
            ("command", facts.command),
            ("date", facts.date),
            ("hardware", facts.hardware),
            ("versions", ", ".join(f"{name} {one}" for name, one in facts.versions.items())),
            ("seeds", ", ".join(map(str, facts.seeds))),
        ],
        sections=[
            Section("Results", pictures=_pictures(results), tables=[_table(results)]),
            _tuning(results),
            _arms(results),
        ],
    )


def _pictures(results: Results) -> list[Picture]:
    rows, metric = table_rows(results), results.facts.metric
    scale = scale_of(results.facts, rows)
    finals = "; ".join(f"{row.arm} {row.score.text(scale)} {metric.unit}".rstrip() for row in rows)
    name = metric.words.capitalize()
    costs = "; ".join(
        f"{row.arm} {row.exchanges:g}, "
        f"{format_bytes(1e6 * (row.sent_megabytes + row.received_megabytes))}"
        for row in rows
    )
    return [
        Picture(
            "exchanges",
            f"{name} against exchanges",
            _drawn(plot_exchanges, results),
            f"Exchanges: {costs}.",
            "Points and lines: means over the seeds; bars and bands: lowest to highest seed. "
            "Horizontal lines: arms without averaging.",
        ),
        Picture(
            "curves",
            f"{name} over passes",
            _drawn(plot_curves, results),
            f"Final {metric.words}: {finals}.",
            "Lines: means over the seeds; bands: lowest to highest seed."
            + (" Thin lines have no band." if _has_others(results) else ""),
        ),
    ]


def _has_others(results: Results) -> bool:
    named = results.facts.highlight
    return bool(named) and any(arm.key not in named for arm in results.facts.arms)


def _drawn(plot: Callable[[Axes, Results], None], results: Results) -> Figure:
    figure = Figure(figsize=SIZE, layout="constrained")
    plot(figure.subplots(), results)
    return figure


def _table(results: Results) -> Table:
    heads, rows = table_cells(results)
    best = best_arm(results, table_rows(results))
    strong = frozenset() if best is None else frozenset({best})
    return Table("Arms", heads, rows, numeric=True, note=table_note(results), strong=strong)


def _tuning(results: Results) -> Section:
    """Return a section with every candidate of every arm, the chosen ones emphasized."""
    tuning, metric = results.facts.tuning or {}, results.facts.metric
    rows: list[list[str]] = []
    chosen: list[int] = []
    for arm in results.facts.arms:
        if arm.key not in tuning:
            continue
        chosen.append(len(rows) + tuning[arm.key].chosen)
        rows += [[arm.name, *cells] for cells in tuning_cells(tuning[arm.key], metric)]
    # Mark the choice by a word as well as by font weight, for screen readers.
    rows = [[*row, "chosen" if index in chosen else ""] for index, row in enumerate(rows)]
    heads = ["arm", "candidate", f"validation {metric.heading}", ""]
    seeds = sorted(
        {seed for one in tuning.values() for each in one.candidates for seed in each.validation}
    )
    text = (
        f"The keys of each arm were chosen by the mean validation {metric.words} after the last "
        f"round, over the seeds {', '.join(map(str, seeds))}; the test set was not used."
    )
    if changed := tuned_with(results):
        text += f" Candidates were compared with {changed}."
    table = Table("Candidates", heads, rows, strong=frozenset(chosen))
    return Section("Tuning", text=text if rows else "", tables=[table] if rows else [])


def _arms(results: Results) -> Section:
    """Return a section with the keys of each arm, and those that all arms share."""
    arms = results.facts.arms
    shared = {
        key: value
        for key, value in arms[0].config.items()
        if all(arm.config.get(key) == value for arm in arms)
    }
    rows = [[arm.name, _kind(arm), _own_keys(arm, shared)] for arm in arms]
    set_for_all = [(key, str(value)) for key, value in shared.items() if DEFAULTS.get(key) != value]
    return Section(
        "Configuration of the arms",
        tables=[
            Table(
                "Keys of each arm",
                ["arm", "kind", "keys"],
                rows,
                note="Keys in which the arms differ, except those at their defaults.",
            )
        ],
        listing=Listing("Keys that all arms share, except those at their defaults", set_for_all)
        if set_for_all
        else None,
    )


def _kind(arm: ArmFacts) -> str:
    return arm.kind if arm.protocol == EQUAL_PASSES else f"{arm.kind}, {arm.protocol}"


def _own_keys(arm: ArmFacts, shared: Mapping[str, Scalar]) -> str:
    own = [
        f"{key} {value}"
        for key, value in arm.config.items()
        if key not in shared and DEFAULTS.get(key) != value
    ]
    return ", ".join(own) or "defaults only"
