"""The addresses of a coordinator's SuperLink: for the sites, and for the coordinator's commands."""

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
"""File in ``state`` with the address of Flower's own port, on the loopback interface."""


def check_address(kit: CoordinatorKit) -> None:
    """Check, before anything starts, that the sites' address can be bound.

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
            hint="Stop the program that uses the port, or change port or listen in federation.toml",
        ) from None


def check_sites_listener(kit: CoordinatorKit) -> None:
    """Check that the sites' listener is that of `mdc_flower.deployment.coordinator.superlink`.

    Raises
    ------
    RunError
        If it is not: another listener might let anyone start runs.
    """
    reason = ""
    for _ in range(3):  # one request may fail when the SuperLink is busy
        try:
            about = json.loads(get_local(f"{sites_address(kit)}{ABOUT}", kit.ca))
            if about["federation"] == kit.federation:
                return
            reason = f"it belongs to federation {about['federation']!r}"
        except (OSError, ValueError, KeyError, TypeError, HTTPException) as error:
            reason = str(error)
    raise RunError(
        f"the SuperLink does not restrict its commands to this machine ({reason})",
        where=sites_address(kit),
        hint="If no other SuperLink runs here, this version of flwr is incompatible",
    )


def write_control_address(kit: CoordinatorKit, port: int) -> None:
    """Record the address at which the coordinator's own commands reach the SuperLink."""
    write_atomically(kit.state / CONTROL, local_address(LOOPBACK, port).encode())


@contextmanager
def client(kit: CoordinatorKit) -> Iterator[Path]:
    """Yield a temporary FLWR_HOME that points to the coordinator's SuperLink.

    Raises
    ------
    RunError
        If the coordinator does not run.
    """
    if not answers(kit):
        raise RunError(
            "the coordinator is not running",
            where=sites_address(kit),
            hint=f"Start it: mdc coordinator start {quote(str(kit.folder))}",
        )
    with temporary_home() as home:
        connect(home, _control(kit), kit.ca)
        yield home


def answers(kit: CoordinatorKit) -> bool:
    """Return whether the SuperLink answers; retry, because it may be busy."""
    address = _control(kit)
    return bool(address) and any(is_healthy(address, kit.ca) for _ in range(3))


def sites_address(kit: CoordinatorKit) -> str:
    """Return the address at which this machine reaches the listener for sites."""
    return local_address(kit.listen, kit.port)


def _control(kit: CoordinatorKit) -> str:
    path = kit.state / CONTROL
    return path.read_text() if path.is_file() else ""
