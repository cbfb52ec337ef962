"""How the launchers of a site's machines notice that one of them has ended.

torch's launcher with a static rendezvous sees only the processes of its own machine, and lets a
machine that was restarted join processes that wait for the dead one. So each launcher joins a
rendezvous once, shows there that it is alive, and ends when another one no longer does.
"""

import os
import signal
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

LOOK_S = 1.0
"""Seconds between two signs of life."""

SILENT_S = 10.0
"""Seconds without a sign of life after which a machine is considered dead."""

CONNECT = timedelta(minutes=15)
"""Longest wait for the first machine."""

ENDED = "ended"


class Machines:
    """The machines of a site, as seen from one of them.

    Parameters
    ----------
    address : str
        ``host:port`` of the rendezvous.
    node_rank, nodes : int
        The number of this machine, and how many there are.

    Attributes
    ----------
    lost : str
        Why this machine must end; empty while all others are alive.
    """

    def __init__(self, address: str, node_rank: int, nodes: int) -> None:
        self._address = address
        self._node_rank = node_rank
        self._others = [node for node in range(nodes) if node != node_rank]
        self._store: Store | None = None
        self.lost = ""

    def join(self) -> None:
        """Wait for a rendezvous in which this machine has not been yet; not for the first one."""
        while True:
            store = self._connected()
            if store.add(f"joined/{self._node_rank}", 1) == 1:
                return
            with suppress(RuntimeError):  # it ends when the first machine has noticed
                while True:
                    time.sleep(LOOK_S)
                    store.check([ENDED])

    def watch(self) -> None:
        """End this process, by SIGTERM, when another machine has ended."""

        def look() -> None:
            try:
                self._look(self._store or self._connected())
            except RuntimeError:
                self.lost = "the first machine has ended"
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=look, daemon=True).start()

    def leave(self) -> None:
        """Tell the others that this machine ends."""
        if self._store is not None:
            with suppress(RuntimeError):
                self._store.set(ENDED, str(self._node_rank))

    def _look(self, store: "Store") -> None:
        seen: dict[int, tuple[int, float]] = {}
        while not self.lost:
            store.add(f"alive/{self._node_rank}", 1)
            if store.check([ENDED]):
                self.lost = f"machine {store.get(ENDED).decode()} has ended"
            for node in self._others:
                now, count = time.monotonic(), store.add(f"alive/{node}", 0)
                if seen.get(node, (0, now))[0] != count:
                    seen[node] = count, now
                elif count and now - seen[node][1] > SILENT_S:
                    self.lost = f"machine {node} is silent"
            time.sleep(LOOK_S)

    def _connected(self) -> "Store":
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        host, _, port = self._address.rpartition(":")
        store = TCPStore(host, int(port), is_master=False, timeout=CONNECT)
        self._store = PrefixStore("machines", store)
        return self._store
