"""`Provisioning`: the present state of a folder of kits, and the checks before it changes."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

from mdc_flower.common.config_files import read_toml
from mdc_flower.deployment.kits.certificates import (
    expiry,
    fingerprint,
    public_key_of,
    short_id,
)
from mdc_flower.deployment.kits.kits import CA, KIT, REVOKED, SITE_KEY, SITES
from mdc_flower.deployment.kits.private_files import read_file
from mdc_flower.deployment.kits.spec import AUTHORITY, COORDINATOR, FederationSpec
from strategies.common.errors import ConfigError

SOURCE = "federation.toml"
RENEW_WITHIN = timedelta(days=30)
"""Remaining validity below which a certificate is renewed, or the authority's causes a warning."""


@dataclass(frozen=True)
class Provisioning:
    """A folder of kits in its present state, and the changes to make.

    Attributes
    ----------
    spec : FederationSpec
        The federation.
    output : Path
        The folder of kits.
    renew, revoke : frozenset of str
        Names of sites; ``renew`` may also contain ``coordinator``.
    now : datetime
        The current time, with time zone.
    """

    spec: FederationSpec
    output: Path
    renew: frozenset[str]
    revoke: frozenset[str]
    now: datetime

    @property
    def authority(self) -> Path:
        """Return the authority's folder."""
        return self.output / AUTHORITY

    @property
    def coordinator(self) -> Path:
        """Return the folder of the coordinator's kit."""
        return self.output / COORDINATOR

    @cached_property
    def ca(self) -> bytes:
        """Return the authority's certificate, PEM; it must exist."""
        return read_file(self.authority / CA)

    def public_key_file(self, name: str) -> Path:
        """Return the path of the public key that admits a site."""
        return self.coordinator / SITES / f"{name}.pub"

    def archive(self, name: str) -> Path:
        """Return the path of the archive of a site's kit."""
        return self.output / f"{name}.zip"

    def checksum(self, name: str) -> Path:
        """Return the path of the archive's checksum."""
        return self.output / f"{name}.zip.sha256"

    def key_of(self, name: str) -> bytes | None:
        """Return a site's private key; None if it is not in the folder."""
        path = self.output / name / SITE_KEY
        return read_file(path) if path.is_file() else None

    def existing_sites(self) -> set[str]:
        """Return the sites that have a kit or an accepted public key."""
        folders = {
            path.parent.name
            for path in self.output.glob(f"*/{KIT}")
            if path.parent.name != COORDINATOR and not path.parent.name.startswith(".")
        }
        return folders | set(self._public_keys(SITES))

    def revoked_sites(self) -> set[str]:
        """Return the sites that have no key since theirs was revoked.

        A key that was only replaced is in ``revoked/`` too, as ``NAME-`` and its short id.
        """
        stems = {name for name, key in self._revoked() if not name.endswith(f"-{short_id(key)}")}
        return stems - self.existing_sites()

    def revoked_keys(self) -> set[str]:
        """Return the fingerprints of the keys that were revoked or replaced."""
        return {fingerprint(key) for _, key in self._revoked()}

    def _revoked(self) -> Iterator[tuple[str, str]]:
        """Yield file stem and text of each key in ``revoked/``."""
        for name, path in self._public_keys(REVOKED).items():
            yield name, read_file(path).decode("utf-8", "replace")

    def _public_keys(self, folder: str) -> dict[str, Path]:
        return {
            path.name.removesuffix(".pub"): path
            for path in (self.coordinator / folder).glob("*.pub")
            if not path.name.startswith(".")
        }


def check(kits: Provisioning) -> None:
    """Check that the changes are allowed, before any is made.

    Raises
    ------
    ConfigError
        See `mdc_flower.deployment.kits.provision.provision`.
    """
    _check_folder(kits)
    _check_names(kits)
    _check_keys(kits)
    if kits.authority.exists() and expiry(kits.ca) <= kits.now:
        raise ConfigError(
            f"the authority's certificate expired on {day(expiry(kits.ca))}",
            where=str(kits.authority / CA),
            hint="It cannot be renewed in place: provision the federation into a new folder, "
            "and hand out new kits to all operators",
        )


def _check_folder(kits: Provisioning) -> None:
    if not kits.output.exists():
        return
    if not kits.output.is_dir():
        raise ConfigError("not a folder", where=str(kits.output))
    visible = sorted(path.name for path in kits.output.iterdir() if not path.name.startswith("."))
    if visible and AUTHORITY not in visible:
        raise ConfigError(
            "the folder holds other files, and no authority",
            where=str(kits.output),
            got=visible[:5],
            expected=f"a new or empty folder, or one with {AUTHORITY}/",
        )
    if visible:
        _check_federation(kits)
    if kits.existing_sites() and not kits.coordinator.is_dir():
        raise ConfigError(
            "the coordinator's kit is missing, with the public and the revoked keys",
            where=str(kits.coordinator),
            hint="Move it back, or restore it from a backup",
        )


def _check_federation(kits: Provisioning) -> None:
    path = kits.authority / SOURCE
    name = read_toml(path).get("name")
    if name != kits.spec.name:
        raise ConfigError(
            f"the folder belongs to another federation than {kits.spec.name!r}",
            where=str(kits.output),
            got=name,
            hint="Give another --output; a federation cannot change its name",
        )


def _check_names(kits: Provisioning) -> None:
    listed = {site.name for site in kits.spec.site}
    for name in sorted(kits.revoke):
        if name in listed:
            raise ConfigError(
                "the site to revoke is still in the file, so it would get a new key next time",
                where="--revoke",
                got=name,
                hint="Remove its [[site]] first",
            )
        if name not in kits.existing_sites() | kits.revoked_sites():
            raise ConfigError(
                "there is no such site to revoke",
                where="--revoke",
                got=name,
                expected=_one_of(kits.existing_sites() - listed),
            )
    for name in sorted(kits.renew - listed - {COORDINATOR}):
        raise ConfigError(
            "there is no such site to renew",
            where="--renew",
            got=name,
            expected=_one_of({*listed, COORDINATOR}),
        )
    for name in sorted(kits.existing_sites() - listed - kits.revoke):
        raise ConfigError(
            f"site {name!r} has a kit, but is no longer in the file",
            where=str(kits.output),
            hint=f"Exclude it with --revoke {name}, or put its [[site]] back",
        )


def _check_keys(kits: Provisioning) -> None:
    revoked = kits.revoked_keys()
    for site in kits.spec.site:
        key = kits.key_of(site.name) if site.name not in kits.renew else None
        if key is not None and fingerprint(public_key_of(key, site.name)) in revoked:
            raise ConfigError(
                f"the key of site {site.name!r} was revoked",
                where=str(kits.output / site.name / SITE_KEY),
                hint=f"Create a new key with --renew {site.name}",
            )


def warnings(kits: Provisioning) -> Iterator[str]:
    """Yield warnings for the organizer that do not prevent provisioning."""
    here = kits.output.resolve()
    for folder in (here, *here.parents):
        if (folder / ".git").exists():
            yield f"warning: {kits.output} is inside a git work tree; never commit its keys"
            break
    if kits.authority.exists() and expiry(kits.ca) - kits.now < RENEW_WITHIN:
        yield (
            f"warning: the authority's certificate expires on {day(expiry(kits.ca))} and cannot be "
            "renewed in place; provision into a new folder and hand out new kits before that date"
        )


def day(moment: datetime) -> str:
    """Return a date as YYYY-MM-DD."""
    return moment.strftime("%Y-%m-%d")


def _one_of(names: Collection[str]) -> str:
    return "one of: " + ", ".join(sorted(names)) if names else "no name: no site qualifies"
