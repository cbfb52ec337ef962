"""Register the public keys in the coordinator's kit with the SuperLink.

Flower identifies nodes by id. It draws a key's id when the key is registered; the id then stays.
The register maps each site's name to its id. A run's coordinator admits nodes by this register.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mdc_flower.coordinator.admission import read_register
from mdc_flower.deployment.kits.kits import CoordinatorKit
from mdc_flower.engines.flower_processes import flwr
from strategies.common.errors import RunError
from strategies.common.files import write_atomically

REGISTER, REGISTERED = "register.json", "registered"


@dataclass(frozen=True)
class Node:
    """The SuperLink's information on one site.

    Attributes
    ----------
    name : str
        The site's name.
    status : str
        ``online``, ``offline``, or ``registered`` if the site was never online.
    since : str
        Time of the last change, ISO 8601 in UTC; empty if there was none.
    """

    name: str
    status: str
    since: str


def register_path(kit: CoordinatorKit) -> Path:
    """Return the file that maps site names to node ids."""
    return kit.state / REGISTER


class Changes(NamedTuple):
    """Result of `synchronize`: messages on what it did, and on keys it could not register."""

    done: list[str]
    refused: dict[str, str]


def synchronize(kit: CoordinatorKit, sites: Mapping[str, str], home: Path) -> Changes:
    """Register the keys of the kit's sites, unregister all others, and return what was done.

    A refused key, such as an incompletely copied file, does not affect other sites. If the call
    is stopped at any point, the next call completes it: keys that are not recorded as registered
    are unregistered, then registered again.

    Parameters
    ----------
    kit
        The coordinator's kit.
    sites
        The sites to accept: public keys by site name.
    home
        FLWR_HOME whose connection points to the SuperLink.

    Raises
    ------
    RunError
        If the SuperLink does not answer, or a key cannot be unregistered.
    """
    known, done, refused = _known(kit), list[str](), dict[str, str]()
    listed = {int(node["node-id"]) for node in _listed(home)}
    current = {
        name: node
        for name, node in known.items()
        if node in listed and name in sites and _registered_key(kit, name) == sites[name]
    }
    for node in sorted(listed - set(current.values())):
        flwr(home, "supernode", "unregister", str(node))
        names = [name for name, known_node in known.items() if known_node == node]
        done.append(f"{names[0] if names else f'node {node}'}: its key is no longer accepted")
    for name in sorted(set(sites) - set(current)):
        path = kit.state / REGISTERED / f"{name}.pub"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, sites[name].encode())
        try:
            answer = flwr(home, "supernode", "register", str(path))
        except RunError as error:
            refused[name] = f"{name}: its key could not be registered: {error}"
            continue
        current[name] = int(answer["node-id"])
        done.append(f"{name}: registered")
        _write(kit, current)
    _write(kit, current)
    return Changes(done, refused)


def nodes(kit: CoordinatorKit, home: Path) -> list[Node]:
    """Return the state of every registered site, in site order.

    Raises
    ------
    RunError
        If the SuperLink does not answer.
    """
    listed = {int(node["node-id"]): node for node in _listed(home)}
    return [
        _node(name, listed[node]) for name, node in sorted(_known(kit).items()) if node in listed
    ]


def _node(name: str, info: dict[str, Any]) -> Node:
    status = str(info["status"])
    since = info["online-at"] if status == "online" else info["offline-at"]
    return Node(name, status, "" if since in (None, "N/A") else str(since))


def _listed(home: Path) -> list[dict[str, Any]]:
    known = flwr(home, "supernode", "list")["nodes"]
    return [node for node in known if node["status"] not in ("unregistered", "deleted")]


def _known(kit: CoordinatorKit) -> dict[str, int]:
    path = register_path(kit)
    return read_register(path) if path.is_file() else {}


def _registered_key(kit: CoordinatorKit, name: str) -> str:
    path = kit.state / REGISTERED / f"{name}.pub"
    return path.read_text() if path.is_file() else ""


def _write(kit: CoordinatorKit, known: dict[str, int]) -> None:
    texts = {name: str(node) for name, node in sorted(known.items())}
    write_atomically(register_path(kit), (json.dumps(texts, indent=1) + "\n").encode())
    folder = kit.state / REGISTERED
    if folder.is_dir():
        for path in folder.glob("*.pub"):
            if path.stem not in known:
                path.unlink()
