"""Where a coordinator's SuperLink listens, and how the coordinator's own commands reach it."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from shlex import quote

from mdc_flower.deployment.coordinator.superlink import ABOUT
from mdc_flower.deployment.kits.kits import CoordinatorKit, join_address
from mdc_flower.engines.flower_processes import (
    LOOPBACK,
    connect,
    get_local,
    is_healthy,
    local_address,
)
from mdc_flower.engines.guardian import temporary_home
from strategies.common.errors import RunError
from strategies.common.files import write_atomically

CONTROL = "control-address"
"""File in ``state`` with the address of the SuperLink's own port, on the loopback interface."""


def check_address(kit: CoordinatorKit) -> None:
    """Refuse an address that cannot be bound, before anything is started for it.

    Raises
    ------
    RunError
        If it cannot be bound, with the operating system's reason.
    """
    try:
        found = socket.getaddrinfo(kit.listen, kit.port, type=socket.SOCK_STREAM)
        for family, _, _, _, address in found:
            socket.create_server(address, family=family).close()
    except OSError as error:
        raise RunError(
            f"the coordinator cannot listen there: {error.strerror}",
            where=join_address(kit.listen, kit.port),
            hint="Stop what listens there, or set another port or listen in federation.toml",
        ) from None


def check_door(kit: CoordinatorKit) -> None:
    """Refuse to go on with a SuperLink whose listener for sites is not ours.

    Raises
    ------
    RunError
        If it is not: it might let everybody start runs.
    """
    reason = ""
    for _ in range(3):  # one look may fail when it is busy
        try:
            about = json.loads(get_local(f"{sites_address(kit)}{ABOUT}", kit.ca))
            if about["federation"] == kit.federation:
                return
            reason = f"it is of {about['federation']!r}"
        except (OSError, ValueError, KeyError, TypeError, HTTPException) as error:
            reason = str(error)
    raise RunError(
        f"the SuperLink does not keep its commands to this machine ({reason})",
        where=sites_address(kit),
        hint="If no other one runs here, this version of flwr does not go with mdc-flower",
    )


def note_control(kit: CoordinatorKit, port: int) -> None:
    """Write down at which port the coordinator's own commands reach the SuperLink."""
    write_atomically(kit.state / CONTROL, local_address(LOOPBACK, port).encode())


@contextmanager
def client(kit: CoordinatorKit) -> Iterator[Path]:
    """Yield a FLWR_HOME of one's own that leads to the coordinator's SuperLink.

    Raises
    ------
    RunError
        If the coordinator does not run.
    """
    if not answers(kit):
        raise RunError(
            "the coordinator does not run",
            where=sites_address(kit),
            hint=f"Start it: mdc coordinator start {quote(str(kit.folder))}",
        )
    with temporary_home() as home:
        connect(home, _control(kit), kit.ca)
        yield home


def answers(kit: CoordinatorKit) -> bool:
    """Return whether the SuperLink answers; one look may fail when it is busy."""
    address = _control(kit)
    return bool(address) and any(is_healthy(address, kit.ca) for _ in range(3))


def sites_address(kit: CoordinatorKit) -> str:
    """Return where this machine reaches the listener for sites."""
    return local_address(kit.listen, kit.port)


def _control(kit: CoordinatorKit) -> str:
    path = kit.state / CONTROL
    return path.read_text() if path.is_file() else ""
