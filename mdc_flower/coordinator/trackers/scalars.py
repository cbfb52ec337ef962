"""What trackers show of a round: named numbers from its record and its plan."""

import math
from collections.abc import Mapping
from typing import Any

from strategies.exchange.metrics import numbers
from strategies.method.round_plan import RoundPlan, epochs_of
from strategies.storage.round_record import RoundRecord


def round_scalars(record: RoundRecord) -> dict[str, float]:
    """Return the scalars of a round by tag, without those that are unknown or not finite.

    Each metric that is a number has tags ``METRIC/test``, ``METRIC/validation`` and these three:
    ``sites-training`` has its value over all sites' training; ``sites-before`` has the sites' score
    of the model from which the round started; ``sites-after`` has their score of the round's own
    model, after the last round only. The metrics that a site has sent are under ``site/NAME/``.
    """
    scalars: dict[str, float | None] = {
        "relative-change": record.relative_change,
        "bytes/sent": record.sent_bytes,
        "bytes/received": record.received_bytes,
        "sites/took-part": len(record.participants),
        "sites/dropped": len(record.dropped),
        "sites/missing": len(record.missing),
        "work/local-epochs": epochs_of(record.plan) or None,
        "work/local-steps": record.plan["local_steps"] or None,
        "seconds": None if record.failed else record.seconds,  # a failed round has no end
    }
    for place, metrics in (
        ("{split}", record.evaluation),
        ("sites-training", record.training),
        ("sites-before", record.start_evaluation),
        ("sites-after", record.site_evaluation),
    ):
        for name, value in numbers(metrics).items():
            split, _, metric = name.partition("-")
            if split in ("test", "validation", "train") and metric != "seconds":
                scalars[f"{metric}/{place.format(split=split)}"] = value
    for site, metrics in record.participants.items():
        scalars |= {f"site/{site}/{name}": value for name, value in numbers(metrics).items()}
    return {
        tag: value for tag, value in scalars.items() if value is not None and math.isfinite(value)
    }


def learning_rates(plan: Mapping[str, Any], done: int) -> list[tuple[int, dict[str, float]]]:
    """Return the learning rate at both ends of each local epoch, with the work done by then.

    A round that is counted in steps or in parts of an epoch has one point, at its end, because the
    number of steps per epoch differs between sites.
    """
    valid = RoundPlan.recorded(plan)
    parts = valid.local_epochs or 1
    return [
        (
            done + part * (valid.local_steps or valid.local_parts or 1),
            {
                "learning-rate/start": valid.lr_at((part - 1) / parts),
                "learning-rate/end": valid.lr_at(part / parts),
            },
        )
        for part in range(1, parts + 1)
    ]
