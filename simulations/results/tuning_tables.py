"""Make tables of the candidates that were tried for each arm."""

import math

from mdc_flower.common.shown_metrics import ShownMetric
from simulations.results.result_files import Results, Tuned, mean_validation


def tuning_table(results: Results) -> str:
    """Return each arm's candidates as Markdown, the chosen one in bold; empty without tuning.

    Notes below say with which other settings candidates were compared, and name the arms
    whose best value is the lowest or highest that was tried: a better value may lie beyond it.
    """
    tuning = results.facts.tuning
    if not tuning:
        return ""
    metric = results.facts.metric
    lines = [f"| arm | candidates: validation {metric.heading} |", "|---|---|"]
    for arm in results.facts.arms:
        lines.append(f"| {arm.name} | {_candidates(tuning[arm.key], metric)} |")
    if changed := tuned_with(results):
        lines += ["", f"Candidates were compared with {changed}."]
    at_edge = [arm.name for arm in results.facts.arms if _is_at_edge(tuning[arm.key])]
    if at_edge:
        lines += [
            "",
            "The chosen value is the lowest or highest of three or more for: "
            f"{'; '.join(at_edge)}.",
        ]
    return "\n".join(lines) + "\n"


def tuned_with(results: Results) -> str:
    """Return the keys that were different in tuning, in words; empty if there were none."""
    own = results.facts.tuning_config
    return ", ".join(f"{key} {value}" for key, value in own.items())


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
