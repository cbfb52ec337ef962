"""Start the processes (ranks) of a site's worker, and end all of them when one ends.

torch's elastic launcher watches the ranks. It restarts none: `mdc site start` starts the whole
group again, as it does with a worker of one process. `Launch.command` is how
it is started.
"""

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from mdc_flower.common.launch import Launch
from mdc_flower.console.site_log import site_event
from mdc_flower.site.machines import Machines

LOOK_S = 0.5
"""Seconds between two looks whether the process that started this one is still there."""


def end_with(parent: int) -> None:
    """End this process when its parent has ended, by SIGTERM, so that it ends its own children."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def start(launch: Launch, node_rank: int, folder: Path) -> int:
    """Run the ranks of this machine until they end, and return an exit status."""
    import torch

    ranks = launch.on_machine(torch.cuda.device_count())
    if ranks == launch.nodes == 1:
        from mdc_flower.site.worker import serve

        serve(folder)
        return 0
    return _watched(launch, ranks, node_rank, folder)


def _watched(launch: Launch, ranks: int, node_rank: int, folder: Path) -> int:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from mdc_flower.site.worker import ABANDONED

    _only_errors()
    config = LaunchConfig(
        min_nodes=launch.nodes,
        max_nodes=launch.nodes,
        nproc_per_node=ranks,
        run_id="mdc",
        rdzv_backend="static",
        rdzv_endpoint=launch.rendezvous or f"127.0.0.1:{_free_port()}",
        rdzv_configs={"rank": node_rank, "timeout": 900},
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        local_addr="127.0.0.1" if launch.nodes == 1 else None,
    )
    machines = Machines(launch.rendezvous, node_rank, launch.nodes)
    if launch.nodes == 1:
        _stay_on_this_machine()
    elif node_rank:
        machines.join()
    if launch.nodes > 1:
        machines.watch()
    rank = ["-m", "mdc_flower.site.rank", str(folder), str(int(launch.shard)), str(os.getpid())]
    try:
        elastic_launch(config, sys.executable)(*rank)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode == ABANDONED:
            return ABANDONED  # rank 0 has said so itself
        how = _ending(failure.exitcode)
        site_event("rank-ended", rank=number, how=how)
        print(f"rank {number} ended ({how})", file=sys.stderr)
        return max(1, failure.exitcode)
    except SignalException as error:
        if not machines.lost:
            return 128 + error.sigval
        site_event("machine-lost", why=machines.lost)
        print(machines.lost, file=sys.stderr)
        return ABANDONED
    finally:
        machines.leave()
    return 0


def _only_errors() -> None:
    """Silence what torch's launcher says of an end as planned; each of its loggers has a level."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _stay_on_this_machine() -> None:
    """Let gloo use the loopback interface, unless the operator has chosen one."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "")
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def main(folder: Path, parent: int, node_rank: int, launch: Launch) -> int:
    """Run the ranks of this machine, as long as the process that started this one lives."""
    end_with(parent)
    return start(launch, node_rank, folder)


if __name__ == "__main__":
    where, started_by, node, how = sys.argv[1:]
    sys.exit(main(Path(where), int(started_by), int(node), Launch(**json.loads(how))))
