"""Provision a federation: make and keep the authority, the coordinator's kit and the sites' kits.

The folder of kits is a function of ``federation.toml`` and of the keys that are already in it: what
a kit should hold is derived, and only what differs is written. So running it twice changes nothing,
and running it again after it was stopped goes on where it stopped. Every private key is made here
once and stands in one kit only.
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
    """Bring the folder of kits to what a federation's spec says, and return what was done.

    Parameters
    ----------
    spec
        The federation.
    source
        The file that it was read from, of which a copy is kept with the authority.
    output
        The folder of kits; created if it is missing.
    renew
        Sites that get a new key, and ``coordinator`` for a new certificate.
    revoke
        Sites that are shut out: their public keys leave the coordinator's kit, a record of them
        stays there, and their kits are removed.
    now
        The time, with its time zone; the clock's if it is not given.

    Returns
    -------
    list of str
        One line for each kit, and warnings before them.

    Raises
    ------
    ConfigError
        If the folder holds another federation or something else, a site is left out of the file
        without being revoked or is revoked without being left out, a name to renew or revoke is
        unknown, a kit has a revoked key, the authority has expired, or its key is needed and not
        here. Nothing is changed then.
    StorageError
        If a file cannot be written. Running it again goes on where it stopped.
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
        # The key first: a certificate without its key is seen, and made again, next time.
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
    """Return why the coordinator needs another certificate; empty if it does not."""
    key = kits.coordinator / COORDINATOR_KEY
    path = kits.coordinator / COORDINATOR_CERTIFICATE
    if not (key.is_file() and path.is_file()):
        return "there was none"
    credential = Credential(read_file(key), read_file(path))
    certificate = credential.certificate
    if not (belong_together(credential) and is_signed_by(certificate, kits.ca)):
        return "the old one did not fit its key or the authority"
    if COORDINATOR in kits.renew:
        return "as asked for"
    names = normal_names(kits.spec.certificate_names)
    if names_in(certificate) != names:
        return f"for {', '.join(names)}"
    end = expiry(certificate)
    # Without the authority's key this can wait for as long as the old one lasts.
    if _ends_soon(kits, certificate) and (_can_sign(kits) or end <= kits.now):
        return f"the old one ends on {day(end)}"
    return ""


def _ends_soon(kits: Provisioning, certificate: bytes) -> bool:
    start, end = validity(certificate)
    # A certificate of a few weeks, or one cut short by the authority's end, is not made again at
    # every provisioning.
    soon = end - kits.now < min(RENEW_WITHIN, (end - start) / 3)
    new_end = min(kits.now + timedelta(days=kits.spec.certificate_days), expiry(kits.ca))
    return soon and new_end > end


def _can_sign(kits: Provisioning) -> bool:
    key = kits.authority / CA_KEY
    return key.is_file() and belong_together(Credential(read_file(key), kits.ca))


def _check_signing(kits: Provisioning) -> list[str]:
    """Refuse to begin what needs the authority's key if that is not here; return warnings."""
    if not kits.authority.exists() or _can_sign(kits):
        return []
    path, reason = kits.authority / CA_KEY, _why_new_certificate(kits)
    if reason:
        raise ConfigError(
            "the authority's key is not here to sign the coordinator's new certificate",
            where=str(path),
            hint=f"Put it back for as long as this takes. Why a new one: {reason}",
        )
    certificate = read_file(kits.coordinator / COORDINATOR_CERTIFICATE)
    if _ends_soon(kits, certificate):
        return [
            f"warning: the coordinator's certificate ends on {day(expiry(certificate))}; put "
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
        # It was handed out and removed here, which is good; a new key would shut the site out.
        return f"{name}: its key is not here any more; --renew {name} would make a new one"
    key = key or new_node_key()
    public_key = public_key_of(key, name)
    files = site_files(kits.spec, site, kits.ca, key, public_key)
    is_changed = _write_site(kits, folder, files)
    is_new_key = _accept(kits, name, public_key)
    is_packed = _write_archive(kits, name, files)
    if not was_accepted:
        return f"{name}: new kit"
    if is_new_key:
        return f"{name}: new key, hand its kit out again"
    if is_changed:
        return f"{name}: settings changed, hand its kit out again"
    return f"{name}: unchanged" + (", its archive written again" if is_packed else "")


def _write_site(kits: Provisioning, folder: Path, files: Mapping[str, bytes]) -> bool:
    """Write a site's kit where it differs, and return whether it did."""
    if not _changes(folder, files):
        make_folder(folder / STATE)
        return False
    # If this is stopped half-way, there must be no archive of the old kit to hand out.
    _remove_archive(kits, folder.name)
    if not folder.exists():
        write_folder(folder, files, (STATE,))
        return True
    make_folder(folder / STATE)
    return _update(folder, files)


def _write_archive(kits: Provisioning, name: str, files: Mapping[str, bytes]) -> bool:
    """Write a kit's archive and its checksum where they differ, and return whether they did."""
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
    """Let the coordinator accept this key of a site and no other; return whether it is another."""
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
    remove_folder(kits.output / name)  # last: as long as it is there, this can be repeated
    return f"{name}: revoked" if existed else f"{name}: was revoked already"


def _record(kits: Provisioning, name: str, public_key: bytes) -> None:
    """Keep a key that is not accepted any more, as ``revoked/NAME.pub``."""
    path = kits.coordinator / REVOKED / f"{name}.pub"
    if differs(path, public_key, PUBLIC):
        _move_record(kits, name)
        make_folder(path.parent)
        write_file(path, public_key, PUBLIC)


def _move_record(kits: Provisioning, name: str) -> None:
    """Give a site's last revoked key the name ``NAME-<8 hex digits>.pub``, if it has one."""
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
    """Write the files that differ, and return whether there were any."""
    changes = _changes(folder, files)
    for name, content in changes.items():
        write_file(folder / name, content, mode_of(name))
    return bool(changes)
