"""Lines of a history, as a run writes them, with every number known."""

from typing import Any

from tests.mdc_flower.examples import plan


def line(number: int, accuracy: float | None = 0.5, **orders: Any) -> dict[str, Any]:
    """Return a line of history; of a failed round without an accuracy."""
    one = plan(round=number, lr_max=0.1, lr_min=0.05, shape="cosine", **orders)
    failed = accuracy is None
    return {
        "round": number,
        "plan": one.model_dump() | {"plan_id": one.plan_id},
        "participants": {} if failed else {"site-0": {"train-accuracy": 0.4}},
        "relative_change": None if failed else 0.1,
        "failed": failed,
        "evaluation": {}
        if failed
        else {"validation-accuracy": accuracy, "test-accuracy": accuracy},
    }


def by_sites(before: float | None = None, after: float | None = None) -> dict[str, Any]:
    """Return what a line has of a round that only the sites have evaluated."""
    metrics = [{} if x is None else {"validation-accuracy": x} for x in (before, after)]
    return {"evaluation": {}, "start_evaluation": metrics[0], "site_evaluation": metrics[1]}
