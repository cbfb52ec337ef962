"""The final models of a run, and their entries in the summary."""

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.serverapp import Grid

from mdc_flower.reports.series import in_steps, work_done
from mdc_flower.training.batch_norm import RECALIBRATED, STATISTICS_KEY
from strategies.aggregation.pooled_statistics import Layers
from strategies.exchange.messages import arrays_to_record
from strategies.pending_evaluation import EvaluateFn
from strategies.recalibration import Recalibration
from strategies.round_loop import RoundLoop
from strategies.storage.run_directory import (
    AVERAGED_MODEL,
    BEST_MODEL,
    GLOBAL_MODEL,
    RunDirectory,
    read_history,
)

ABOUT = {STATISTICS_KEY: RECALIBRATED}


def finish(
    grid: Grid,
    strategy: RoundLoop,
    record: RunDirectory,
    names: Sequence[str],
    evaluate: EvaluateFn,
    layers: Layers,
) -> dict[str, Any]:
    """Write the run's final models, and return the summary of rounds and models.

    Parameters
    ----------
    grid
        Flower's message transport.
    strategy
        The strategy, after its last round.
    record
        The run directory.
    names
        Names of the model's arrays, in their order.
    evaluate
        Evaluates a model at the coordinator.
    layers
        BatchNorm statistics to recompute; empty to leave them unchanged.
    """
    rounds = read_history(record.path)
    summary: dict[str, Any] = {
        "rounds": len(rounds),
        "epochs": 0 if in_steps(rounds) else sum(work_done(rounds)[-1:]),
        "steps": sum(line["plan"]["local_steps"] for line in rounds),
        "sent-bytes": sum(line["sent_bytes"] for line in rounds),
        "received-bytes": sum(line["received_bytes"] for line in rounds),
        # A coordinator without data has only the sites' evaluation of the last model.
        "final": (rounds[-1]["evaluation"] or rounds[-1]["site_evaluation"]) if rounds else {},
    }
    recalibration = None
    if layers and rounds:
        recalibration = strategy.recalibration(
            layers, record.open_statistics, record.recalibrations, record.event
        )
        _add(summary, _recalibrated(grid, recalibration, strategy, record, evaluate))
        metrics = summary["recalibration"]
        summary["final"] = metrics["evaluation"] or metrics["site_evaluation"]
    _add(summary, _averaged(grid, recalibration, record, names, evaluate))
    return summary


def _add(summary: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add a part to the summary, and the bytes of its recalibration to the run's bytes."""
    summary |= part
    recalibration = part.get("averaged", part).get("recalibration", {})
    summary["sent-bytes"] += recalibration.get("sent_bytes", 0)
    summary["received-bytes"] += recalibration.get("received_bytes", 0)


def _recalibrated(
    grid: Grid,
    recalibration: Recalibration,
    strategy: RoundLoop,
    record: RunDirectory,
    evaluate: EvaluateFn,
) -> dict[str, Any]:
    """Write the recalibrated global model, also as the best model if it beats all rounds."""
    arrays, metrics = recalibration.apply(grid, strategy.position.arrays, evaluate)
    record.write_model(GLOBAL_MODEL, arrays, **ABOUT)
    at_coordinator = strategy.score(metrics["evaluation"])
    at_sites = strategy.score(metrics["site_evaluation"])
    score = at_sites if at_coordinator is None else at_coordinator
    if score is not None and strategy.beats(score, strategy.position):
        record.write_model(BEST_MODEL, arrays, **ABOUT)
    return {"recalibration": metrics}


def _averaged(
    grid: Grid,
    recalibration: Recalibration | None,
    record: RunDirectory,
    names: Sequence[str],
    evaluate: EvaluateFn,
) -> dict[str, Any]:
    """Write the average of the last rounds' models, and return its entry in the summary."""
    rounds, mean = record.average_models(names)
    if not rounds:
        return {}
    if recalibration is None:
        evaluation = evaluate(rounds[-1], arrays_to_record(mean))
        return {"averaged": {"rounds": rounds, **(evaluation or {})}}
    arrays, metrics = recalibration.apply(grid, mean, evaluate)
    record.write_model(AVERAGED_MODEL, arrays, **ABOUT)
    return {"averaged": {"rounds": rounds, **metrics["evaluation"], "recalibration": metrics}}
