"""What a site's card may claim: it is judged for that site alone, and can stop no run."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdc_flower.common.config_files import read_toml
from strategies.exchange.membership import Admission
from strategies.exchange.messages import SiteCard

EXAMPLES = "MDC_SITE_EXAMPLES"
"""Environment variable of the SuperLink, and so of every run, with the path of a ``kit.toml``.

Its table ``[examples]`` has the fewest and the most training examples that each site may have.
"""


def claims_judged(admission: Admission, num_sites: int, kit: str = "") -> Admission:
    """Return who may take part: who is admitted, and claims nothing that cannot be.

    Parameters
    ----------
    admission
        Judges version and name.
    num_sites
        Sites of the run; 0 where the sites themselves say it, as in a simulation.
    kit
        Path of the coordinator's ``kit.toml``, which is read anew for each node, because sites are
        added while a run goes on; empty for no bounds.
    """

    def judge(node: int, card: SiteCard) -> str | None:
        return (
            admission.judge(node, card)
            or _unfit_partitions(card, num_sites)
            or _unfit_count(card, _bounds(kit).get(card.name))
        )

    return replace(admission, judge=judge)


def kit_of_coordinator() -> str:
    """Return the path that the environment names; empty for none."""
    return os.environ.get(EXAMPLES, "")


def _unfit_partitions(card: SiteCard, num_sites: int) -> str | None:
    if card.simulated or not num_sites or card.num_partitions in (0, num_sites):
        return None
    return (
        f"it claims to hold one of {card.num_partitions} parts of a data set, and the run has "
        f"{num_sites} sites. Remove partition-id and num-partitions from its config"
    )


def _unfit_count(card: SiteCard, bounds: tuple[int, int] | None) -> str | None:
    if bounds is None:
        return None
    fewest, most = bounds
    agreed = f"{fewest} or more" + (f", and at most {most}" if most else "")
    if not card.num_examples:
        return f"it does not say how many training examples it has; agreed are {agreed}"
    if card.num_examples < fewest or (most and card.num_examples > most):
        return f"it has {card.num_examples} training examples; agreed are {agreed}"
    return None


def _bounds(kit: str) -> dict[str, tuple[int, int]]:
    told: Mapping[str, Any] = read_toml(Path(kit)).get("examples", {}) if kit else {}
    return {site: (fewest, most) for site, (fewest, most) in told.items()}
