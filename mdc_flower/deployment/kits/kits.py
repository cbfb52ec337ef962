"""A kit: the folder for one operator, with all files that the operator's commands read.

::

    kits/
      authority/         ca.key, ca.pem, federation.toml as provisioned
      coordinator/       kit.toml, ca.pem, coordinator.pem, coordinator.key, sites/NAME.pub,
                         revoked/NAME.pub, state/, README and service files
      NAME/              kit.toml, ca.pem, site.key, site.pub, state/, README and service files
      NAME.zip           the site's kit as an archive to hand out
      NAME.zip.sha256    the archive's checksum

The authority's folder stays with the organizer; only ``mdc provision`` reads it.
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
from mdc_flower.config import check_with_command
from mdc_flower.data.contract import Contract
from mdc_flower.deployment.kits.spec import (
    COORDINATOR,
    Base,
    Exchange,
    FederationName,
    Host,
    Job,
    KitMetrics,
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
    """Settings that the kits of coordinator and sites share.

    Attributes
    ----------
    federation : str
        Name of the federation.
    host, port : str, int
        Address at which the sites reach the coordinator.
    version : str
        Version of mdc-flower that the federation agreed on.
    contract : Contract or None
        Contract of the data of a classification.
    job : str
        The sites' job, ``module:function``, in place of a classification.
    exchange, keep, base : str
        The arrays that are exchanged, those that sites keep, and the SHA-256 of all others; see
        `FederationSpec`.
    folder : Path
        The kit's folder, absolute; not a key of ``kit.toml``.
    """

    FILES: ClassVar[tuple[str, ...]] = (CA,)

    federation: FederationName
    host: Host
    port: Port
    version: Line
    contract: Contract | None = None
    job: Job = ""
    exchange: Exchange = "all"
    keep: Line = ""
    base: Base = ""
    folder: Path = Field(default=Path(), exclude=True)

    @classmethod
    def keys(cls) -> list[str]:
        """Return all keys of ``kit.toml``."""
        keys = super().keys()
        return [key for key in keys if key != "folder"]

    @property
    def address(self) -> str:
        """Return the address at which the sites reach the coordinator, as ``host:port``."""
        return join_address(self.host, self.port)

    @property
    def ca(self) -> Path:
        """Return the path of the authority's certificate, PEM."""
        return self.folder / CA

    @property
    def state(self) -> Path:
        """Return the folder for the files of the running software."""
        return self.folder / STATE

    @classmethod
    def _open(cls, folder: Path) -> Self:
        folder = folder.expanduser().absolute()
        if not folder.is_dir():
            raise ConfigError(
                "not a folder" if folder.exists() else "there is no such folder",
                where=str(folder),
                hint=f"Give the kit's folder, which contains {KIT}",
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
    """The coordinator's kit, as its commands read it.

    Attributes
    ----------
    data, data_root, max_site_weight
        As in the run config.
    examples : dict
        Agreed minimum and maximum number of training examples, for each site that has such limits.
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
        """Return the path of the coordinator's certificate, PEM."""
        return self.folder / COORDINATOR_CERTIFICATE

    @property
    def key(self) -> Path:
        """Return the path of the coordinator's private key, PEM."""
        return self.folder / COORDINATOR_KEY

    @property
    def sites(self) -> dict[str, str]:
        """Return the public keys of the sites that may take part, by site name, sorted.

        Each access reads the folder, so a running coordinator notices added and revoked sites.
        """
        return _public_keys(self.folder / SITES)

    @property
    def revoked(self) -> dict[str, str]:
        """Return the public keys that were revoked or replaced, by file stem.

        The stem is the site's name, or ``NAME-`` and 8 hex digits of the key's fingerprint if the
        site has had another key since.
        """
        return _public_keys(self.folder / REVOKED)


class SiteKit(Kit, SiteSettings):
    """A site's kit, as its commands read it."""

    FILES: ClassVar[tuple[str, ...]] = (CA, SITE_KEY, SITE_PUBLIC_KEY)

    kind: Literal["site"] = "site"
    site: SiteName
    metrics: KitMetrics = ()

    @property
    def key(self) -> Path:
        """Return the path of the site's private key, in OpenSSH's format."""
        return self.folder / SITE_KEY

    @property
    def public_key(self) -> Path:
        """Return the path of the site's public key, in OpenSSH's format."""
        return self.folder / SITE_PUBLIC_KEY

    @property
    def vocabulary_path(self) -> str:
        """Return the absolute path of the vocabulary file, or "" if none is named."""
        return str(self.folder / self.vocabulary) if self.vocabulary else ""

    def with_data(self, data: str, data_root: str, command: str = "") -> Self:
        """Return the kit with another data set, root or command; empty values keep the kit's.

        Raises
        ------
        ConfigError
            If there is both a command and a data set.
        """
        named = {
            "data": data or self.data,
            "data_root": data_root or self.data_root,
            "command": command or self.command,
        }
        kit = self.model_copy(update=named)
        try:
            if kit.command:
                check_with_command(kit)
        except ValueError as error:
            raise ConfigError(str(error), where=f"the kit of {self.site}") from None
        return kit


def read_coordinator_kit(folder: Path) -> CoordinatorKit:
    """Return the coordinator's kit.

    Raises
    ------
    ConfigError
        If the folder is missing or holds a site's kit, a file is missing, a key or value of
        ``kit.toml`` is not usable, or other users than the owner may access the private key.
    """
    return CoordinatorKit._open(folder)


def read_site_kit(folder: Path) -> SiteKit:
    """Return a site's kit.

    Raises
    ------
    ConfigError
        If the folder is missing or holds a coordinator's kit, a file is missing, a key or value
        of ``kit.toml`` is not usable, or other users than the owner may access the private key.
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
            hint=f"Commands for this kit begin with {commands[got]!r}" if got in commands else "",
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
            "other users than the owner may read or change the private key",
            where=str(path),
            got=f"mode {mode:04o}",
            expected="mode 0600",
            hint=f"chmod 600 {quote(str(path))}",
        )


def _public_keys(folder: Path) -> dict[str, str]:
    keys = {}
    for path in sorted(folder.glob("*.pub")):
        if path.name.startswith("."):  # still being written
            continue
        with suppress(FileNotFoundError):  # revoked after the folder was listed
            keys[path.name.removesuffix(".pub")] = path.read_text("utf-8", "replace")
    return dict(sorted(keys.items()))
