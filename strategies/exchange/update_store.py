"""The protocol for storing accepted replies, and a store in memory."""

from typing import Protocol

from strategies.aggregation.averaging import Update, in_site_order


class UpdateStore(Protocol):
    """Stores the accepted replies of the open exchange."""

    def open(self, plan_id: str) -> None:
        """Begin or continue the exchange of a plan; discard the replies to other plans."""
        ...

    def add(self, update: Update) -> None:
        """Store an accepted reply. It counts once this returns."""
        ...

    def sites(self) -> list[str]:
        """Return the sites whose replies are stored, in site order."""
        ...

    def updates(self) -> list[Update]:
        """Return the stored replies, in site order."""
        ...

    def close(self, round_number: int) -> None:
        """End the exchange, whose result is stored elsewhere."""
        ...


class MemoryUpdates:
    """Updates in memory, lost when the process ends."""

    def __init__(self) -> None:
        self._plan_id = ""
        self._updates: dict[str, Update] = {}

    def open(self, plan_id: str) -> None:
        """Begin or continue the exchange of a plan."""
        if plan_id != self._plan_id:
            self._updates = {}
        self._plan_id = plan_id

    def add(self, update: Update) -> None:
        """Store an update."""
        self._updates[update.site] = update

    def sites(self) -> list[str]:
        """Return the sites whose updates are stored."""
        return sorted(self._updates)

    def updates(self) -> list[Update]:
        """Return the stored updates, in site order."""
        return in_site_order(self._updates.values())

    def close(self, round_number: int) -> None:
        """Discard the updates."""
        self._updates = {}
