"""A SuperLink's register of nodes, as `registry.flwr` and `coordinator.flwr` ask for it."""

from pathlib import Path
from typing import Any

from strategies.common.errors import RunError


class FakeSuperLink:
    """Answers the commands of Flower that are used, from a register in memory.

    Attributes
    ----------
    nodes : dict
        Status and key by node id, those that were put out included.
    fail_at : str or None
        The command, ``register`` or ``unregister``, at which it stops answering.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, dict[str, str]] = {}
        self.runs: list[dict[str, Any]] = []
        self.calls: list[tuple[str, ...]] = []
        self.fail_at: str | None = None

    def __call__(self, home: Path, *arguments: str) -> dict[str, Any]:
        self.calls.append(arguments)
        if self.fail_at in arguments:
            raise RunError("the SuperLink does not answer", where="flwr")
        match arguments:
            case ("supernode", "list"):
                return {"nodes": [{"node-id": str(n), **node} for n, node in self.nodes.items()]}
            case ("supernode", "register", path):
                return {"node-id": str(self._register(Path(path).read_text()))}
            case ("supernode", "unregister", node):
                self.nodes[int(node)]["status"] = "unregistered"
                return {}
            case ("list",):
                return {"runs": self.runs}
            case ("stop", run):
                next(r for r in self.runs if r["run-id"] == run)["status"] = "finished:stopped"
                return {}
        raise AssertionError(f"not a command that is used: {arguments}")

    def _register(self, key: str) -> int:
        if not key.startswith("ecdsa-"):
            raise RunError("the key cannot be read", where="flwr supernode")
        if key in self.keys.values():
            raise RunError("the public key is in use already", where="flwr supernode")
        node = 101 + len(self.nodes)
        self.nodes[node] = {
            "status": "registered", "online-at": "N/A", "offline-at": "N/A", "key": key,
        }  # fmt: skip
        return node

    @property
    def keys(self) -> dict[int, str]:
        """Return the keys that count, by node id."""
        return {
            n: node["key"] for n, node in self.nodes.items() if node["status"] != "unregistered"
        }
