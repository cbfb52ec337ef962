"""The picture of one run: accuracy, learning rate and relative change over local epochs."""

import io
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from strategies.messages import VALIDATION_ACCURACY
from strategies.round_plan import RoundPlan

History = Sequence[Mapping[str, Any]]

POINTS_PER_CYCLE = 40


def draw_run(history: History) -> bytes:
    """Return a PNG of a run's history; failed rounds are drawn as gaps."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    accuracy, rate, change = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    ends = work_done(history)
    _draw_accuracy(accuracy, history, ends)
    _draw_learning_rate(rate, history, ends)
    changes = [line["relative_change"] for line in history]
    # On the logarithmic axis there is no place for 0: a round that changed nothing is a gap too.
    change.semilogy(ends, [c or np.nan for c in changes], "o-", color="0.2")
    change.set(ylabel="relative change", xlabel=_unit(history))
    for axes in (accuracy, rate, change):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def work_done(history: History) -> list[int]:
    """Return the local epochs (or steps) behind the global model after each round."""
    plans = [line["plan"] for line in history]
    return list(accumulate(plan["local_steps"] or plan["local_epochs"] for plan in plans))


def site_scores(history: History) -> dict[int, float]:
    """Return the global model's accuracy on the sites' validation examples, by work done.

    A round brings that of the model it started from, the last round also that of its own.
    """
    scores: dict[int, float] = {}
    ends = work_done(history)
    for start, end, line in zip([0, *ends], ends, history, strict=False):
        for done, key in ((start, "start_evaluation"), (end, "site_evaluation")):
            # What an earlier version wrote has not all of it.
            if VALIDATION_ACCURACY in (metrics := line.get(key, {})):
                scores[done] = metrics[VALIDATION_ACCURACY]
    return scores


def _unit(history: History) -> str:
    in_steps = bool(history) and history[0]["plan"]["local_steps"]
    return "local steps" if in_steps else "local epochs"


def _draw_accuracy(axes: Axes, history: History, ends: list[int]) -> None:
    for name, style in (("test", "o-"), ("validation", "s--")):
        values = [line["evaluation"].get(f"{name}-accuracy", np.nan) for line in history]
        if not np.isnan(values).all():
            axes.plot(ends, values, style, color="0.0" if name == "test" else "0.5", label=name)
    if scores := site_scores(history):
        axes.plot(
            list(scores), list(scores.values()), "d-.", color="0.5", label="sites, validation"
        )
    trained = [_mean_train_accuracy(line) for line in history]
    if not np.isnan(trained).all():
        axes.plot(ends, trained, ":", color="0.3", label="sites, training")
    axes.set(ylabel="accuracy", title="Global model after each round")
    if axes.lines:
        axes.legend(frameon=False)


def _mean_train_accuracy(line: Mapping[str, Any]) -> float:
    """Return the mean over the sites that share it."""
    shared = [m["train-accuracy"] for m in line["participants"].values() if "train-accuracy" in m]
    return float(np.mean(shared)) if shared else float("nan")


def _draw_learning_rate(axes: Axes, history: History, ends: list[int]) -> None:
    for start, end, line in zip([0, *ends], ends, history, strict=False):
        plan = RoundPlan.model_validate({k: v for k, v in line["plan"].items() if k != "plan_id"})
        progress = np.linspace(0, 1, POINTS_PER_CYCLE)
        axes.plot(
            start + progress * (end - start),
            [plan.lr_at(float(p)) for p in progress],
            color="0.0",
        )
    axes.set(ylabel="learning rate", ylim=(0, None))
