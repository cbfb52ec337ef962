"""The tables on a run's page: incidents, rounds, recall and config."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mdc_flower.common.shown_metrics import (
    OF_A_CLASSIFICATION,
    ShownMetric,
    others,
    selecting,
    short_name,
)
from mdc_flower.config import RunConfig
from mdc_flower.reports.page import Listing, Section, Table
from mdc_flower.reports.participation import incidents
from mdc_flower.reports.run_figures import plan_of
from mdc_flower.reports.series import History, completed, unit, work
from mdc_flower.reports.units import byte_scale, format_number
from strategies.exchange.metrics import LOSS

DEFAULTS = RunConfig().to_flower()


def incident_tables(history: History) -> list[Table]:
    """Return tables of incidents and of error messages from sites."""
    found = incidents(history)
    tables = []
    if found:
        rows = [[str(one.round), one.site or "whole round", one.what, one.reason] for one in found]
        tables.append(Table("What went wrong", ["round", "site", "what", "reason"], rows))
    errors = [
        [str(line["round"]), site, text]
        for line in completed(history)
        for site, text in line["errors"].items()
    ]
    if errors:
        tables.append(Table("Errors at the sites", ["round", "site", "error"], errors))
    return tables


def round_tables(
    history: History, sites: Sequence[str], metrics: Sequence[ShownMetric] = OF_A_CLASSIFICATION
) -> list[Table]:
    """Return a table with one row per round; columns without any value are left out."""
    lines = completed(history)
    if not lines:
        return []
    largest = max(max(line["sent_bytes"], line["received_bytes"]) for line in lines)
    scale, byte_unit = byte_scale(largest)
    columns: dict[str, list[str]] = {
        "round": [f"{line['round']}{' (failed)' if line['failed'] else ''}" for line in lines],
        unit(history): [str(work(line)) for line in lines],
        "learning rate": [_rates(line) for line in lines],
        f"sites, of {len(sites)}": [str(len(line["participants"])) for line in lines],
        **_score_columns(lines, metrics),
        "relative change": [format_number(line["relative_change"]) for line in lines],
        f"sent, {byte_unit}": [f"{line['sent_bytes'] / scale:.1f}" for line in lines],
        f"received, {byte_unit}": [f"{line['received_bytes'] / scale:.1f}" for line in lines],
        "seconds": [f"{line['seconds']:.1f}" for line in lines],
    }
    known = {name: cells for name, cells in columns.items() if any(cells)}
    rows = list(zip(*known.values(), strict=True))
    notes = {
        ", balanced": "Balanced: mean recall over the classes.",
        "at the sites": f"At the sites: {selecting(metrics).words} on their validation examples, "
        "before and after the round.",
    }
    note = " ".join(text for key, text in notes.items() if any(key in name for name in known))
    return [Table("Rounds", list(known), rows, numeric=True, note=note)]


def _score_columns(lines: History, metrics: Sequence[ShownMetric]) -> dict[str, list[str]]:
    """Return the columns of the models' scores: the selecting metric first, the loss last."""
    first, loss = selecting(metrics), LOSS.name
    columns: dict[str, list[str]] = {}
    for split in ("test", "validation"):
        columns[f"{split} {first.heading}"] = _cells(lines, "evaluation", split, first)
        for one in others(metrics):
            name = f"{split}, {short_name(one, first)}" + (f", {one.unit}" if one.unit else "")
            columns[name] = _cells(lines, "evaluation", split, one)
    unit = f", {first.unit}" if first.unit else ""
    columns[f"at the sites, before{unit}"] = _cells(lines, "start_evaluation", "validation", first)
    columns[f"at the sites, after{unit}"] = _cells(lines, "site_evaluation", "validation", first)
    if first.name != loss:
        columns["test loss"] = [
            format_number(line["evaluation"].get(f"test-{loss}"), 4) for line in lines
        ]
    return columns


def recall_tables(history: History, class_names: Sequence[str]) -> list[Table]:
    """Return the newest model's recall of each class, lowest first.

    Parameters
    ----------
    history
        The rounds.
    class_names
        Class names, in order; without them, classes are shown by number.
    """
    evaluated = [line["evaluation"] for line in completed(history) if line["evaluation"]]
    newest = evaluated[-1] if evaluated else {}
    recalls = {
        split: newest[f"{split}-recall"]
        for split in ("test", "validation")
        if isinstance(newest.get(f"{split}-recall"), list)
    }
    if not recalls:
        return []
    count = len(next(iter(recalls.values())))
    names = class_names if len(class_names) == count else [str(label) for label in range(count)]
    cells = {
        f"{split} recall, %": ["" if value is None else f"{100 * value:.2f}" for value in values]
        for split, values in recalls.items()
    }
    first = next(iter(recalls.values()))
    order = sorted(range(count), key=lambda label: (first[label] is None, first[label] or 0.0))
    rows = [[names[label], *(column[label] for column in cells.values())] for label in order]
    note = "Share of a class's examples that the newest model classifies correctly, lowest first."
    return [Table("Recall of each class", ["class", *cells], rows, numeric=True, note=note)]


def _rates(line: Mapping[str, Any]) -> str:
    """Return the learning rates at the start and the end of a round."""
    plan = plan_of(line)
    if plan is None:
        return ""
    first, last = (f"{plan.lr_at(progress):.3g}" for progress in (0, 1))
    return first if first == last else f"{first} to {last}"


def _cells(lines: History, place: str, split: str, metric: ShownMetric) -> list[str]:
    """Return a metric's value in each round; empty where it is unknown or no number."""
    values = [line[place].get(f"{split}-{metric.name}") for line in lines]
    return [metric.cell(value) if isinstance(value, float | int) else "" for value in values]


def config_section(config: Mapping[str, Any]) -> Section:
    """Return the section on the config: first the changed keys, then the defaults."""
    changed = [key for key, value in config.items() if DEFAULTS.get(key) != value]
    rows = [[key, _value(config[key]), _value(DEFAULTS.get(key))] for key in changed]
    rest = [(key, _value(config[key])) for key in config if key not in changed]
    return Section(
        "Config",
        tables=[Table("Set for this run", ["key", "value", "default"], rows)] if rows else [],
        listing=Listing("All other keys have their defaults", rest) if rest else None,
    )


def _value(value: object) -> str:
    if value is None:
        return "unknown in this version"
    return json.dumps(value) if isinstance(value, str | bool) else str(value)
