"""Checks of the claims on a site's card; a false claim excludes the site, not the run."""

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

Its table ``[examples]`` gives the least and greatest number of training examples per site.
"""


def with_card_checks(admission: Admission, num_sites: int, kit: str = "") -> Admission:
    """Return a rule that also rejects admitted nodes whose card makes false claims.

    Parameters
    ----------
    admission
        The rule for version, code and name.
    num_sites
        Sites of the run; 0 if the sites report the number, as in a simulation.
    kit
        Path of the coordinator's ``kit.toml``; empty for no limits. It is read again for each
        node, because sites can be added during a run.
    """

    def judge(node: int, card: SiteCard) -> str | None:
        return (
            admission.judge(node, card)
            or _unfit_partitions(card, num_sites)
            or _unfit_count(card, _bounds(kit).get(card.name))
        )

    return replace(admission, judge=judge)


def coordinator_kit() -> str:
    """Return the path of the coordinator's kit from the environment; empty if there is none."""
    return os.environ.get(EXAMPLES, "")


def _unfit_partitions(card: SiteCard, num_sites: int) -> str | None:
    if card.simulated or not num_sites or card.num_partitions in (0, num_sites):
        return None
    return (
        f"it claims to have one of {card.num_partitions} parts of a data set, but the run has "
        f"{num_sites} sites. Remove partition-id and num-partitions from its config"
    )


def _unfit_count(card: SiteCard, bounds: tuple[int, int] | None) -> str | None:
    if bounds is None:
        return None
    fewest, most = bounds
    agreed = f"{fewest} or more" + (f", and at most {most}" if most else "")
    if not card.num_examples:
        return f"it does not report its number of training examples; the agreed number is {agreed}"
    if card.num_examples < fewest or (most and card.num_examples > most):
        return f"it has {card.num_examples} training examples; the agreed number is {agreed}"
    return None


def _bounds(kit: str) -> dict[str, tuple[int, int]]:
    limits: Mapping[str, Any] = read_toml(Path(kit)).get("examples", {}) if kit else {}
    return {site: (fewest, most) for site, (fewest, most) in limits.items()}
