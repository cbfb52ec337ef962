"""Provision a federation: create and update the authority and the kits of coordinator and sites.

The folder of kits is a function of ``federation.toml`` and of the keys that are already in the
folder. Provisioning derives the files of each kit and writes only those that differ. So a second
run changes nothing, and a run after an interruption continues where it stopped. Each private key is
generated here once and is in one kit only.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mdc_flower.deployment.kits.certificates import (
    Credential,
    belong_together,
    expiry,
    is_signed_by,
    names_in,
    new_authority,
    new_node_key,
    new_server_certificate,
    normal_names,
    public_key_of,
    short_id,
    validity,
)
from mdc_flower.deployment.kits.kit_files import coordinator_files, site_files
from mdc_flower.deployment.kits.kits import (
    CA,
    CA_KEY,
    COORDINATOR_CERTIFICATE,
    COORDINATOR_KEY,
    REVOKED,
    SITE_PUBLIC_KEY,
    SITES,
    STATE,
)
from mdc_flower.deployment.kits.private_files import (
    PRIVATE,
    PUBLIC,
    checksum_line,
    differs,
    make_folder,
    mode_of,
    pack,
    read_file,
    remove_file,
    remove_folder,
    remove_leftovers,
    write_file,
    write_folder,
)
from mdc_flower.deployment.kits.provisioning import (
    RENEW_WITHIN,
    SOURCE,
    Provisioning,
    check,
    day,
    warnings,
)
from mdc_flower.deployment.kits.spec import COORDINATOR, FederationSpec, SiteSpec
from strategies.common.errors import ConfigError


def provision(
    spec: FederationSpec,
    source: Path,
    output: Path,
    renew: Collection[str] = (),
    revoke: Collection[str] = (),
    now: datetime | None = None,
) -> list[str]:
    """Update the folder of kits to match a federation's spec, and return what was done.

    Parameters
    ----------
    spec
        The federation.
    source
        The file that the spec was read from; a copy is kept with the authority.
    output
        The folder of kits; created if it is missing.
    renew
        Sites that get a new key, and ``coordinator`` for a new certificate.
    revoke
        Sites to exclude: their public keys move to the coordinator's record of revoked keys, and
        their kits are removed.
    now
        The current time, with time zone; read from the clock by default.

    Returns
    -------
    list of str
        Warnings, then one line for each kit.

    Raises
    ------
    ConfigError
        If the folder holds another federation or other files, a site is missing in the file but not
        revoked or is revoked but still in the file, a name to renew or revoke is unknown, a kit has
        a revoked key, the authority has expired, or its key is needed but missing. Nothing is
        changed then.
    StorageError
        If a file cannot be written. A repeated call continues where this one stopped.
    """
    kits = Provisioning(spec, output, frozenset(renew), frozenset(revoke), now or datetime.now(UTC))
    content = read_file(source)
    check(kits)
    notes = [*warnings(kits), *_check_signing(kits)]
    make_folder(output)
    remove_leftovers(output)
    lines = _make_authority(kits, content)
    lines += [_revoke(kits, name) for name in sorted(kits.revoke)]
    lines.append(_make_coordinator(kits))
    lines += [_make_site(kits, site) for site in spec.site]
    _update(kits.authority, {SOURCE: content})
    return notes + lines


def _make_authority(kits: Provisioning, source: bytes) -> list[str]:
    if kits.authority.exists():
        return []
    key, certificate = new_authority(kits.spec.name, kits.spec.ca_days, kits.now)
    write_folder(kits.authority, {CA_KEY: key, CA: certificate, SOURCE: source}, ())
    return [f"authority: new, valid until {day(expiry(certificate))}; keep {CA_KEY} offline"]


def _make_coordinator(kits: Provisioning) -> str:
    reason = _why_new_certificate(kits)
    files = coordinator_files(kits.spec, kits.ca)
    if reason:
        key, certificate = _issue(kits)
        # Write the key first: a certificate that does not match its key is replaced next time.
        files = {COORDINATOR_KEY: key, COORDINATOR_CERTIFICATE: certificate, **files}
    if not kits.coordinator.exists():
        write_folder(kits.coordinator, files, (SITES, REVOKED, STATE))
        return "coordinator: new kit"
    for name in (SITES, REVOKED, STATE):
        make_folder(kits.coordinator / name)
    changed = _update(kits.coordinator, files)
    if reason:
        return f"coordinator: new certificate, {reason}"
    return "coordinator: settings changed" if changed else "coordinator: unchanged"


def _why_new_certificate(kits: Provisioning) -> str:
    """Return why the coordinator needs a new certificate; empty if it does not."""
    key = kits.coordinator / COORDINATOR_KEY
    path = kits.coordinator / COORDINATOR_CERTIFICATE
    if not (key.is_file() and path.is_file()):
        return "there was none"
    credential = Credential(read_file(key), read_file(path))
    certificate = credential.certificate
    if not (belong_together(credential) and is_signed_by(certificate, kits.ca)):
        return "the old one did not match its key or the authority"
    if COORDINATOR in kits.renew:
        return "as requested"
    names = normal_names(kits.spec.certificate_names)
    if names_in(certificate) != names:
        return f"for {', '.join(names)}"
    end = expiry(certificate)
    # Without the authority's key, keep the old certificate until it expires.
    if _ends_soon(kits, certificate) and (_can_sign(kits) or end <= kits.now):
        return f"the old one expires on {day(end)}"
    return ""


def _ends_soon(kits: Provisioning, certificate: bytes) -> bool:
    start, end = validity(certificate)
    # Do not renew a certificate at every provisioning if it is valid for a few weeks only, or if
    # the authority's end limits it.
    soon = end - kits.now < min(RENEW_WITHIN, (end - start) / 3)
    new_end = min(kits.now + timedelta(days=kits.spec.certificate_days), expiry(kits.ca))
    return soon and new_end > end


def _can_sign(kits: Provisioning) -> bool:
    key = kits.authority / CA_KEY
    return key.is_file() and belong_together(Credential(read_file(key), kits.ca))


def _check_signing(kits: Provisioning) -> list[str]:
    """Raise if the authority's key is needed but missing; return warnings."""
    if not kits.authority.exists() or _can_sign(kits):
        return []
    path, reason = kits.authority / CA_KEY, _why_new_certificate(kits)
    if reason:
        raise ConfigError(
            "the authority's key is missing; it must sign a new certificate for the coordinator",
            where=str(path),
            hint=f"Put it back for this command. Reason for the new certificate: {reason}",
        )
    certificate = read_file(kits.coordinator / COORDINATOR_CERTIFICATE)
    if _ends_soon(kits, certificate):
        return [
            f"warning: the coordinator's certificate expires on {day(expiry(certificate))}; put "
            f"{path} back and provision again"
        ]
    return []


def _issue(kits: Provisioning) -> Credential:
    authority = Credential(read_file(kits.authority / CA_KEY), kits.ca)
    spec = kits.spec
    return new_server_certificate(
        authority, spec.name, spec.certificate_names, spec.certificate_days, kits.now
    )


def _make_site(kits: Provisioning, site: SiteSpec) -> str:
    name, folder = site.name, kits.output / site.name
    key = None if site.name in kits.renew else kits.key_of(name)
    was_accepted = kits.public_key_file(name).is_file()
    if key is None and was_accepted and name not in kits.renew:
        # The kit was handed out and removed here, which is fine. A new key would exclude the site.
        return f"{name}: its private key is no longer here; --renew {name} creates a new one"
    key = key or new_node_key()
    public_key = public_key_of(key, name)
    files = site_files(kits.spec, site, kits.ca, key, public_key)
    is_changed = _write_site(kits, folder, files)
    is_new_key = _accept(kits, name, public_key)
    is_packed = _write_archive(kits, name, files)
    if not was_accepted:
        return f"{name}: new kit"
    if is_new_key:
        return f"{name}: new key, hand out its kit again"
    if is_changed:
        return f"{name}: settings changed, hand out its kit again"
    return f"{name}: unchanged" + (", archive rewritten" if is_packed else "")


def _write_site(kits: Provisioning, folder: Path, files: Mapping[str, bytes]) -> bool:
    """Write the files of a site's kit that differ; return whether any did."""
    if not _changes(folder, files):
        make_folder(folder / STATE)
        return False
    # Remove the archive first: after an interruption, the old kit must not be handed out.
    _remove_archive(kits, folder.name)
    if not folder.exists():
        write_folder(folder, files, (STATE,))
        return True
    make_folder(folder / STATE)
    return _update(folder, files)


def _write_archive(kits: Provisioning, name: str, files: Mapping[str, bytes]) -> bool:
    """Write a kit's archive and checksum if they differ; return whether the archive did."""
    content = pack(name, files, (STATE,))
    checksum = checksum_line(f"{name}.zip", content)
    is_changed = differs(kits.archive(name), content, PRIVATE)
    if is_changed:
        write_file(kits.archive(name), content, PRIVATE)
    if differs(kits.checksum(name), checksum, PUBLIC):
        write_file(kits.checksum(name), checksum, PUBLIC)
    return is_changed


def _remove_archive(kits: Provisioning, name: str) -> None:
    remove_file(kits.checksum(name))
    remove_file(kits.archive(name))


def _accept(kits: Provisioning, name: str, public_key: str) -> bool:
    """Make this the only accepted key of a site; return whether it is a new one."""
    path = kits.public_key_file(name)
    content = public_key.encode("ascii")
    if not differs(path, content, PUBLIC):
        return False
    if path.is_file():
        _record(kits, name, read_file(path))
    _move_record(kits, name)
    write_file(path, content, PUBLIC)
    return True


def _revoke(kits: Provisioning, name: str) -> str:
    public, own = kits.public_key_file(name), kits.output / name / SITE_PUBLIC_KEY
    keys = {read_file(path) for path in (own, public) if path.is_file()}
    for key in sorted(keys):
        _record(kits, name, key)
    remove_file(public)
    _remove_archive(kits, name)
    existed = bool(keys) or (kits.output / name).exists()
    remove_folder(kits.output / name)  # last, so that an interrupted call can be repeated
    return f"{name}: revoked" if existed else f"{name}: already revoked"


def _record(kits: Provisioning, name: str, public_key: bytes) -> None:
    """Record a key that is no longer accepted, as ``revoked/NAME.pub``."""
    path = kits.coordinator / REVOKED / f"{name}.pub"
    if differs(path, public_key, PUBLIC):
        _move_record(kits, name)
        make_folder(path.parent)
        write_file(path, public_key, PUBLIC)


def _move_record(kits: Provisioning, name: str) -> None:
    """Rename a site's last revoked key, if any, to ``NAME-<8 hex digits>.pub``."""
    path = kits.coordinator / REVOKED / f"{name}.pub"
    if path.is_file():
        content = read_file(path)
        write_file(
            path.with_name(f"{name}-{short_id(content.decode('ascii'))}.pub"), content, PUBLIC
        )
        remove_file(path)


def _changes(folder: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {
        name: content
        for name, content in files.items()
        if differs(folder / name, content, mode_of(name))
    }


def _update(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Write the files that differ; return whether any did."""
    changes = _changes(folder, files)
    for name, content in changes.items():
        write_file(folder / name, content, mode_of(name))
    return bool(changes)
