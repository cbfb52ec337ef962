"""Results that nobody computed, for tests of tables, pictures and files."""

from collections.abc import Mapping, Sequence
from typing import Any

from simulations.results.outcome import Outcome, Point
from simulations.results.result_files import ArmFacts, Candidate, Facts, Results, Tuned

MEGABYTE = 1_000_000


def point(epochs: float, accuracy: float, **changes: Any) -> Point:
    values: dict[str, Any] = {
        "round": 0,
        "exchanges": 0,
        "epochs": epochs,
        "local_epochs": 1,
        "lr_max": 0.05,
        "relative_change": None,
        "validation": {"loss": 1.25, "accuracy": accuracy - 0.1},
        "test": {"loss": 1.5, "accuracy": accuracy},
        "sent_bytes": 0,
        "received_bytes": 0,
        "seconds": 1.5,
    }
    return Point(**{**values, **changes})


def error_point(epochs: float, rmse: float, **changes: Any) -> Point:
    """Return a point of a regression whose errors are in metres."""
    metrics = {"loss": rmse**2, "rmse": rmse, "mae": rmse / 2}
    return point(epochs, 0.0, **{"validation": metrics, "test": metrics, **changes})


ERRORS = [
    {"name": "loss", "better": "min", "unit": "", "selects": False, "leaves-site": True},
    {"name": "rmse", "better": "min", "unit": "m", "selects": True, "leaves-site": True},
    {"name": "mae", "better": "min", "unit": "m", "selects": False, "leaves-site": True},
]
"""The metrics of such a regression, as a comparison's file describes them."""


def outcome(*points: tuple[int, float], **changes: Any) -> Outcome:
    """Return a curve through (epochs, accuracy); what is changed is changed in each point."""
    return Outcome([point(*one, **changes) for one in points])


def results(
    outcomes: Mapping[str, Mapping[int, Outcome]],
    names: Sequence[str] = (),
    tuning: Mapping[str, Tuned] | None = None,
    **changes: Any,
) -> Results:
    """Return results of arms that are named as their keys are, or by ``names``.

    The budget of each is what its first seed has used.
    """
    budgets = {key: next(iter(by_seed.values())).final.epochs for key, by_seed in outcomes.items()}
    arms = [
        ArmFacts(
            key=key,
            name=name,
            kind="federated",
            config={"lr-max": 0.05, "epoch-budget": budgets[key]},
            per_step_bytes=1000 * MEGABYTE,
        )
        for key, name in zip(outcomes, names or outcomes, strict=True)
    ]
    values: dict[str, Any] = {
        "name": "title",
        "split": "test",
        "command": "mdc compare file.toml",
        "date": "2026-01-02",
        "hardware": "2 cores",
        "versions": {"python": "3.11"},
        "seconds": 12.5,
        "seeds": sorted(next(iter(outcomes.values()))),
        "num_sites": 2,
        "arms": arms,
        "tuning": tuning,
    }
    return Results(facts=Facts(**{**values, **changes}), outcomes=outcomes)


def tuned(*accuracies: float, chosen: int) -> Tuned:
    """Return learning rates 0.1, 0.2 and so on with these validation accuracies, on two seeds."""
    candidates = [
        Candidate(values={"lr-max": round(0.1 * number, 1)}, validation={101: value, 102: value})
        for number, value in enumerate(accuracies, 1)
    ]
    return Tuned(candidates=candidates, chosen=chosen)
