"""Admission of nodes: they must have the right version, the right code and their own name."""

import json
from collections.abc import Mapping
from pathlib import Path

from mdc_flower import __version__
from mdc_flower.data.identity import differences
from strategies.common.errors import ConfigError
from strategies.exchange.membership import Admission
from strategies.exchange.messages import SiteCard

NO_CODE: Mapping[str, str] = {}

REGISTER = "MDC_REGISTER"
"""Environment variable of the SuperLink, and so of every run, with the path of its register.

It is not a key of the run config, because other people write that, and every site receives it.
"""


def admission(register: str, code: Mapping[str, str] = NO_CODE, data_form: str = "") -> Admission:
    """Return the rule for admitting nodes; without a register, it trusts every node's name.

    Parameters
    ----------
    register
        Path of a JSON file that maps site names to node ids, as text. It is read again for each
        node, because sites come and go during a run. Flower binds node ids to keys: a node
        cannot use the id of another node.
    code
        Digests of the run's modules at the coordinator; see `mdc_flower.site.card.code_digests`.
    data_form
        What the coordinator knows that all data must have in common; see
        `mdc_flower.data.identity.form_of`. Empty if it knows nothing.

    Raises
    ------
    ConfigError
        If the register cannot be read, because then no site could be admitted. If that happens
        later, ``judge`` raises the error, and the node is judged again after a while.
    """
    if register:
        read_register(Path(register))

    def judge(node: int, card: SiteCard) -> str | None:
        if card.version != __version__:
            return (
                f"it runs mdc-flower {card.version}, the coordinator runs {__version__}. "
                "Install the same version at both"
            )
        if reason := _other_code(card, code) or _other_form(card, data_form):
            return reason
        if not register:
            return None
        registered = _names(register).get(node)
        if registered is None:
            return "its key is not registered for any site"
        if registered != card.name:
            return f"it claims this name, but its key is registered for {registered!r}"
        return None

    def name_of(node: int) -> str:
        return (_names(register) if register else {}).get(node, f"node {node}")

    return Admission(judge, name_of)


def _other_code(card: SiteCard, own: Mapping[str, str]) -> str | None:
    """Return how a site's code differs from the coordinator's; None if equal or unknown."""
    reports = {"model": card.model_code, "dataset": card.dataset_code, "job": card.job_code}
    for key, reported in reports.items():
        if reported and own.get(key) and reported != own[key]:
            return (
                f"its code for the run's {key!r} differs from the coordinator's: its SHA-256 "
                f"starts with {reported[:12]}, the coordinator's with {own[key][:12]}. "
                "Install the same code at both"
            )
    return None


def _other_form(card: SiteCard, own: str) -> str | None:
    """Return in what a site's data differ from the coordinator's; None if equal or unknown."""
    if differing := differences(card.data_form, own):
        return (
            f"its data differ from the coordinator's in: {', '.join(differing)}. A contract says "
            "what they must have in common"
        )
    return None


def registered_sites(register: str) -> frozenset[str]:
    """Return the names of the sites that may take part; empty without a register."""
    return frozenset(_names(register).values() if register else ())


def _names(register: str) -> dict[int, str]:
    return {node: name for name, node in read_register(Path(register)).items()}


def read_register(path: Path) -> dict[str, int]:
    """Return the node id of each registered site.

    Raises
    ------
    ConfigError
        If the register cannot be read.
    """
    try:
        return {name: int(node) for name, node in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the register of sites cannot be read: {error}",
            where=str(path),
            hint="Remove it: `mdc coordinator start` then registers the sites' keys again",
        ) from None
