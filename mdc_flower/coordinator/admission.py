"""Which nodes take part: of this version and code, under the name that their key stands for."""

import json
from collections.abc import Mapping
from pathlib import Path

from mdc_flower import __version__
from strategies.common.errors import ConfigError
from strategies.exchange.membership import Admission
from strategies.exchange.messages import SiteCard

NO_CODE: Mapping[str, str] = {}

REGISTER = "MDC_REGISTER"
"""Environment variable of the SuperLink, and so of every run, with the path of its register.

No key of the run config: that is another's to write, and goes to every site.
"""


def admission(register: str, code: Mapping[str, str] = NO_CODE) -> Admission:
    """Return who may take part; without a register every node is believed its name.

    Parameters
    ----------
    register
        Path of a JSON file that maps site names to node ids, as text. It is read anew for each
        node, because sites come and go while a run goes on. Flower's node ids are bound to keys:
        a node cannot speak under another's id.
    code
        Digests of the modules that the run names, as the coordinator has them; see
        `mdc_flower.site.card.run_code`.

    Raises
    ------
    ConfigError
        If the register cannot be read, at once: no site could be admitted. Where that happens
        later, the judge raises it, and the node is judged again after a while.
    """
    if register:
        read_register(Path(register))

    def judge(node: int, card: SiteCard) -> str | None:
        if card.version != __version__:
            return (
                f"it runs mdc-flower {card.version}, the coordinator {__version__}. "
                "Install the same version at both"
            )
        if reason := _other_code(card, code):
            return reason
        if not register:
            return None
        registered = _names(register).get(node)
        if registered is None:
            return "its key is not registered under any name"
        if registered != card.name:
            return f"it claims this name, but its key is that of {registered!r}"
        return None

    def name_of(node: int) -> str:
        return (_names(register) if register else {}).get(node, f"node {node}")

    return Admission(judge, name_of)


def _other_code(card: SiteCard, own: Mapping[str, str]) -> str | None:
    """Return why a site's code is not the coordinator's; None where it is, or one is not known."""
    for key, told in (("model", card.model_code), ("dataset", card.dataset_code)):
        if told and own.get(key) and told != own[key]:
            return (
                f"the module that the run names as {key!r} is not the same file there: its SHA-256 "
                f"begins with {told[:12]}, the coordinator's with {own[key][:12]}. "
                "Install the same code at both"
            )
    return None


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
            hint="Remove it, and `mdc coordinator start` registers the sites' keys anew",
        ) from None
