"""Figures of schedules: the learning rate over the passes, and the growth of the local epochs.

Learning rates are computed by `RoundPlan.lr_at`, as at the sites.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mdc_flower.reports.plotting import DARK, GREEN, MIDDLE, finish, finish_log
from mdc_flower.reports.run_figures import plot_plans
from simulations.figures.panels import panel_grid
from simulations.results.outcome import Outcome
from simulations.results.result_files import ArmFacts, Results
from simulations.results.rows import AVERAGING
from strategies.common.errors import ConfigError
from strategies.method.local_work import Fixed, Horizon, WorkState, count_round
from strategies.method.recipes import LrSchedule, Recipe
from strategies.method.round_plan import CycleShape, RoundPlan, epochs_of, parts_in

SEED_STYLES = (
    ("-", DARK),
    ("--", MIDDLE),
    (":", "0.3"),
    ("-.", GREEN),
    ((0, (5, 1, 1, 1)), "0.6"),
)
"""Line style and colour of each seed."""

PASSES = "passes over the data (local epochs)"


def cycle_plans(shape: CycleShape, lr_max: float, num_rounds: int, epochs: int) -> list[RoundPlan]:
    """Return the plans of a run with this cycle shape and rounds of equal length."""
    recipe = Recipe(LrSchedule(lr_max, shape=shape), Fixed(epochs), Horizon(num_rounds, None))
    state, plans = WorkState(epochs), []
    while not recipe.horizon.finished(state):
        plans.append(recipe.plan(state, seed=1))
        state = count_round(state, epochs)
    return plans


def outcome_plans(arm: ArmFacts, outcome: Outcome) -> list[RoundPlan]:
    """Return the round plans of a run in a comparison; a single plan if nothing is exchanged.

    Raises
    ------
    ConfigError
        If the arm counts its rounds in optimizer steps: results contain only epochs.
    """
    if arm.config["local-steps"]:
        raise ConfigError("the rounds are counted in steps", where=arm.key, got="local-steps")
    budget, plans = outcome.final.epochs, []
    rounds = outcome.points if arm.kind in AVERAGING else [outcome.final]
    for number, point in enumerate(rounds, 1):
        plans.append(
            RoundPlan(
                round=number,
                **_length(point.local_epochs),
                lr_max=point.lr_max,
                lr_min=point.lr_max * float(arm.config["lr-min-fraction"]),
                shape=arm.config["lr-shape"],  # type: ignore[arg-type]
                run_start=(point.epochs - point.local_epochs) / budget,
                run_end=point.epochs / budget,
                seed=1,
            )
        )
    return plans


def _length(epochs: float) -> dict[str, int]:
    """Return the field of a plan for a length in epochs."""
    if epochs == int(epochs):
        return {"local_epochs": int(epochs)}
    return {"local_parts": parts_in(epochs)}


def draw_cycles(
    shapes: Sequence[CycleShape], lr_max: float, num_rounds: int, epochs: int
) -> Figure:
    """Draw the learning rate of a short run, with one panel per cycle shape."""
    figure, panels = panel_grid(len(shapes), 3, (10 / 3, 2.3), (0, 0.5), sharex=True, sharey=True)
    for axes, shape in zip(panels, shapes, strict=True):
        _plot_plans(axes, cycle_plans(shape, lr_max, num_rounds, epochs))
        axes.set_title(shape, loc="left", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel(f"{PASSES}; dotted lines: exchanges", fontsize=10)
    figure.supylabel("learning rate", fontsize=10)
    return figure


def draw_learning_rates(results: Results, arms: Sequence[str], seed: int) -> Figure:
    """Draw the learning rate of those arms that there are with one seed, with one row per arm."""
    facts = {arm.key: arm for arm in results.facts.arms}
    arms = [key for key in arms if key in facts]
    figure = Figure(figsize=(9, 1.25 * len(arms) + 0.9), layout="constrained")
    panels = figure.subplots(len(arms), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    highest = 0.0
    for axes, key in zip(panels, arms, strict=True):
        plans = outcome_plans(facts[key], results.outcomes[key][seed])
        highest = max(highest, *(plan.lr_max for plan in plans))
        _plot_plans(axes, plans)
        axes.set_title(_cycles_in_words(facts[key].name, plans), loc="left", fontsize=10)
    panels[0].set_ylim(0, 1.05 * highest)
    panels[-1].set_xlabel(f"{PASSES}; dotted lines: exchanges")
    figure.supylabel("learning rate", fontsize=10)
    return figure


def _plot_plans(axes: Axes, plans: Sequence[RoundPlan]) -> None:
    lengths = _lengths_of(plans)
    plot_plans(axes, plans, lengths)
    axes.set_xlim(0, sum(lengths))


def _cycles_in_words(name: str, plans: Sequence[RoundPlan]) -> str:
    lengths = _lengths_of(plans)
    if len(plans) == 1:
        return f"{name}: no exchange"
    span = (
        f"{min(lengths):g}"
        if min(lengths) == max(lengths)
        else f"{min(lengths):g} to {max(lengths):g}"
    )
    return f"{name}: {len(plans)} rounds of {span} epochs"


def _lengths_of(plans: Sequence[RoundPlan]) -> list[float]:
    """Return the epochs of each plan."""
    return [epochs_of(plan.model_dump()) for plan in plans]


def draw_settling(comparisons: Sequence[Results], arm: str = "co-learning") -> Figure:
    """Draw the relative change and the local epochs of each round, one column per comparison.

    There is one line per seed. A filled marker is a round after which the global model had settled.
    Comparisons without the arm are left out.
    """
    comparisons = [one for one in comparisons if arm in one.outcomes]
    figure = Figure(figsize=(3.1 * len(comparisons) + 0.4, 4.8), layout="constrained")
    grid = figure.subplots(2, len(comparisons), sharex="col", squeeze=False, height_ratios=(2, 1))
    for column, results in enumerate(comparisons):
        (facts,) = [one for one in results.facts.arms if one.key == arm]
        threshold = float(facts.config["ile-epsilon"])
        change, epochs = grid[:, column]
        for index, (_, outcome) in enumerate(sorted(results.outcomes[arm].items())):
            line, color = SEED_STYLES[index % len(SEED_STYLES)]
            _plot_changes(change, outcome, threshold, line, color)
            _plot_epochs(epochs, outcome, line, color, lift=0.02 * index)
        _mark_threshold(change, threshold)
        change.set_title(results.facts.name.replace(", ", ",\n", 1), loc="left", fontsize=10)
        epochs.set_ylim(0, None)
        epochs.set_yticks(sorted(_lengths(results.outcomes[arm].values())))
        finish(epochs)
    grid[0, 0].set_ylabel("relative change of the global model\n(log scale)")
    grid[1, 0].set_ylabel("local epochs per round")
    figure.supxlabel(PASSES, fontsize=10)
    figure.align_ylabels(grid[:, 0])
    return figure


def _lengths(outcomes: Iterable[Outcome]) -> set[float]:
    return {point.local_epochs for outcome in outcomes for point in outcome.points}


def _plot_changes(axes: Axes, outcome: Outcome, threshold: float, line: object, color: str) -> None:
    known = [(p.epochs, p.relative_change) for p in outcome.points if p.relative_change]
    x, y = (np.array(values, dtype=float) for values in zip(*known, strict=True))
    axes.semilogy(x, y, color=color, linestyle=line, linewidth=1, zorder=2)
    settled = y <= threshold
    for which, fill in ((settled, color), (~settled, "white")):
        axes.plot(
            x[which], y[which], "o", markersize=4.5, color=color, markerfacecolor=fill, zorder=3
        )


def _plot_epochs(axes: Axes, outcome: Outcome, line: object, color: str, lift: float) -> None:
    """Plot the local epochs of each round, shifted by ``lift`` to separate equal seeds."""
    points = outcome.points
    edges = [points[0].epochs - points[0].local_epochs, *(p.epochs for p in points)]
    values = np.array([p.local_epochs for p in points]) * (1 + lift)
    axes.stairs(values, edges, baseline=None, color=color, linestyle=line, linewidth=1.4)


def _mark_threshold(axes: Axes, threshold: float) -> None:
    """Shade the range in which a model has settled."""
    low, high = axes.get_ylim()
    low = min(low, threshold / 1.5)
    axes.set_ylim(low, high)
    axes.axhspan(low, threshold, color="0.92", linewidth=0, zorder=0)
    axes.annotate(
        f"settled: {threshold:g} or less", (0.02, 0.03), xycoords="axes fraction", fontsize=8
    )
    finish_log(axes)
