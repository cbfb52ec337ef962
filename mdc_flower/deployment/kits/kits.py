"""A kit: the folder that one operator gets, with everything its commands read.

::

    kits/
      authority/         ca.key, ca.pem, federation.toml as it was provisioned
      coordinator/       kit.toml, ca.pem, coordinator.pem, coordinator.key, sites/NAME.pub,
                         revoked/NAME.pub, state/, and the files for people and machines
      NAME/              kit.toml, ca.pem, site.key, site.pub, state/, and the same
      NAME.zip           the site's kit as it is handed out, and its checksum beside it
      NAME.zip.sha256

The authority's folder stays with the organizer; no command but ``mdc provision`` reads it.
"""

import ipaddress
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from mdc_flower.common.config_files import read_toml
from mdc_flower.common.config_model import ConfigModel
from mdc_flower.data.contract import Contract
from mdc_flower.deployment.kits.spec import (
    COORDINATOR,
    FederationName,
    Host,
    Line,
    Port,
    Share,
    SiteName,
    SiteSettings,
)
from strategies.common.errors import ConfigError

KIT, CA = "kit.toml", "ca.pem"
COORDINATOR_CERTIFICATE, COORDINATOR_KEY = "coordinator.pem", "coordinator.key"
SITE_KEY, SITE_PUBLIC_KEY = "site.key", "site.pub"
CA_KEY = "ca.key"
SITES, REVOKED, STATE = "sites", "revoked", "state"
PRIVATE_FILES = frozenset({CA_KEY, COORDINATOR_KEY, SITE_KEY})
"""Names of the files that only their owner may read."""


class Kit(ConfigModel):
    """What the kits of coordinator and sites have in common.

    Attributes
    ----------
    federation : str
        Name of the federation.
    host, port : str, int
        Where the sites reach the coordinator.
    version : str
        Version of mdc-flower that the federation agreed on.
    contract : Contract
        What an example is.
    folder : Path
        The kit's own folder, absolute; not in its file.
    """

    FILES: ClassVar[tuple[str, ...]] = (CA,)

    federation: FederationName
    host: Host
    port: Port
    version: Line
    contract: Contract
    folder: Path = Field(default=Path(), exclude=True)

    @classmethod
    def keys(cls) -> list[str]:
        """Return every key of ``kit.toml``."""
        keys = super().keys()
        return [key for key in keys if key != "folder"]

    @property
    def address(self) -> str:
        """Return where the sites reach the coordinator, as ``host:port``."""
        return join_address(self.host, self.port)

    @property
    def ca(self) -> Path:
        """Return the file of the authority's certificate, PEM."""
        return self.folder / CA

    @property
    def state(self) -> Path:
        """Return the folder in which the running software keeps its own files."""
        return self.folder / STATE

    @classmethod
    def _open(cls, folder: Path) -> Self:
        folder = folder.expanduser().absolute()
        if not folder.is_dir():
            raise ConfigError(
                "not a folder" if folder.exists() else "there is no such folder",
                where=str(folder),
                hint=f"Give the kit's folder, in which {KIT} is",
            )
        values = read_toml(folder / KIT)
        _check_kind(values, str(cls.model_fields["kind"].default), folder / KIT)
        if isinstance(values.get("contract"), Mapping):
            home = f"{folder / KIT}, [contract]"
            values["contract"] = Contract.read(values["contract"], home)
        kit = cls.read(values, str(folder / KIT)).model_copy(update={"folder": folder})
        for name in cls.FILES:
            _check_file(folder / name)
        return kit


class CoordinatorKit(Kit):
    """What the coordinator's commands read.

    Attributes
    ----------
    data, data_root, max_site_weight
        As in the run config.
    examples : dict
        Fewest and most training examples of each site for which they were agreed on.
    """

    FILES: ClassVar[tuple[str, ...]] = (CA, COORDINATOR_CERTIFICATE, COORDINATOR_KEY)

    kind: Literal["coordinator"] = "coordinator"
    listen: Host
    data: Line = ""
    data_root: Line = ""
    max_site_weight: Share = 1.0
    examples: dict[SiteName, tuple[int, int]] = Field(default_factory=dict)

    @property
    def certificate(self) -> Path:
        """Return the file of the coordinator's certificate, PEM."""
        return self.folder / COORDINATOR_CERTIFICATE

    @property
    def key(self) -> Path:
        """Return the file of the coordinator's private key, PEM."""
        return self.folder / COORDINATOR_KEY

    @property
    def sites(self) -> dict[str, str]:
        """Return the public key of every site that may take part, by the site's name, sorted.

        It is read from the folder each time, so that a running coordinator sees who was added
        and who was revoked.
        """
        return _public_keys(self.folder / SITES)

    @property
    def revoked(self) -> dict[str, str]:
        """Return every public key that was once accepted and is not any more, by its file's stem.

        The stem is the site's name, or, if that site has another key by now, ``NAME-`` and 8 hex
        digits of the key's fingerprint.
        """
        return _public_keys(self.folder / REVOKED)


class SiteKit(Kit, SiteSettings):
    """What a site's commands read."""

    FILES: ClassVar[tuple[str, ...]] = (CA, SITE_KEY, SITE_PUBLIC_KEY)

    kind: Literal["site"] = "site"
    site: SiteName

    @property
    def key(self) -> Path:
        """Return the file of the site's private key, in OpenSSH's format."""
        return self.folder / SITE_KEY

    @property
    def public_key(self) -> Path:
        """Return the file of the site's public key, in OpenSSH's format."""
        return self.folder / SITE_PUBLIC_KEY

    @property
    def vocabulary_path(self) -> str:
        """Return the absolute path of the vocabulary's file, or "" if none is named."""
        return str(self.folder / self.vocabulary) if self.vocabulary else ""

    def with_data(self, data: str, data_root: str) -> Self:
        """Return the kit with another data set and root; the kit's own where they are empty."""
        named = {"data": data or self.data, "data_root": data_root or self.data_root}
        return self.model_copy(update=named)


def read_coordinator_kit(folder: Path) -> CoordinatorKit:
    """Return the coordinator's kit.

    Raises
    ------
    ConfigError
        If the folder is missing or the kit of a site, a file is missing, a key or value of
        ``kit.toml`` is not usable, or others than its owner may read the private key.
    """
    return CoordinatorKit._open(folder)


def read_site_kit(folder: Path) -> SiteKit:
    """Return a site's kit.

    Raises
    ------
    ConfigError
        If the folder is missing or the kit of a coordinator, a file is missing, a key or value
        of ``kit.toml`` is not usable, or others than its owner may read the private key.
    """
    return SiteKit._open(folder)


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, with an IPv6 address in brackets."""
    try:
        is_ipv6 = ipaddress.ip_address(host).version == 6
    except ValueError:
        is_ipv6 = False
    return f"[{host}]:{port}" if is_ipv6 else f"{host}:{port}"


def _check_kind(values: Mapping[str, Any], kind: str, path: Path) -> None:
    got = values.get("kind")
    if got != kind:
        commands = {COORDINATOR: "mdc coordinator", "site": "mdc site"}
        raise ConfigError(
            "this is another kind of kit",
            where=str(path),
            got=got,
            expected=repr(kind),
            hint=f"Its commands begin with {commands[got]!r}" if got in commands else "",
        )


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(
            "a file of the kit is missing",
            where=str(path),
            hint="Unpack the kit again, or ask the federation's organizer for a new one",
        )
    mode = stat.S_IMODE(path.stat().st_mode)
    if path.name in PRIVATE_FILES and mode & 0o077:
        raise ConfigError(
            "others than its owner may read or change the private key",
            where=str(path),
            got=f"mode {mode:04o}",
            expected="mode 0600",
            hint=f"chmod 600 {quote(str(path))}",
        )


def _public_keys(folder: Path) -> dict[str, str]:
    keys = {}
    for path in sorted(folder.glob("*.pub")):
        if path.name.startswith("."):  # is being written
            continue
        with suppress(FileNotFoundError):  # was revoked since the folder was listed
            keys[path.name.removesuffix(".pub")] = path.read_text("utf-8", "replace")
    return dict(sorted(keys.items()))
