"""A small federation to provision, and what lies in its folder of kits."""

import base64
import stat
import zipfile
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
)

from mdc_flower.deployment.kits.certificates import Credential, belong_together, is_signed_by
from mdc_flower.deployment.kits.provision import provision
from mdc_flower.deployment.kits.spec import read_federation
from strategies.common.errors import ConfigError

NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)

HEAD = """
name = "lungs"
host = "coordinator.example.org"
hosts = ["10.0.0.5"]
"""
CONTRACT = """
[contract]
type = "uint8"
shape = [1, 8, 8]
classes = ["ill", "well"]
"""
BERLIN = """
[[site]]
name = "berlin"
contact = "Ada <ada@example.org>"
data = "image-folder:/srv/images"
"""
LISBON = """
[[site]]
name = "lisbon"
"""
OSLO = """
[[site]]
name = "oslo"
device = "cuda:1"
"""
TWO_SITES = HEAD + CONTRACT + BERLIN + LISBON


Files = dict[str, tuple[int, bytes]]


class Federation:
    """A ``federation.toml`` and the folder of kits made from it."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "federation.toml"
        self.kits = folder / "kits"

    def provision(
        self,
        text: str | None = None,
        renew: Collection[str] = (),
        revoke: Collection[str] = (),
        days_later: float = 0,
    ) -> list[str]:
        """Write the file if there is a text, and provision it."""
        if text is not None:
            self.source.write_text(text, encoding="utf-8")
        now = NOW + timedelta(days=days_later)
        spec = read_federation(self.source)
        return provision(spec, self.source, self.kits, renew, revoke, now)

    def files(self, below: str = "") -> Files:
        """Return mode and content of every file and folder, by its path in the folder of kits."""
        return {
            str(path.relative_to(self.kits)): (
                stat.S_IMODE(path.stat().st_mode),
                path.read_bytes() if path.is_file() else b"",
            )
            for path in sorted((self.kits / below).rglob("*"))
        }

    def read(self, name: str) -> str:
        """Return the text of a file in the folder of kits."""
        return (self.kits / name).read_text(encoding="utf-8")


def public_key(federation: Federation, site: str) -> str:
    return federation.read(f"{site}/site.pub")


def certificate(federation: Federation) -> bytes:
    return federation.files()["coordinator/coordinator.pem"][1]


def assert_certificate_is_sound(federation: Federation) -> None:
    files = federation.files()
    pair = Credential(files["coordinator/coordinator.key"][1], certificate(federation))
    assert belong_together(pair)
    assert is_signed_by(pair.certificate, files["authority/ca.pem"][1])


def changed(before: Files, after: Files) -> set[str]:
    """Return the paths that came, went or differ."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def refusal(act: Callable[[], Any], federation: Federation) -> ConfigError:
    """Return the error of an act that must change nothing."""
    before = federation.files()
    with pytest.raises(ConfigError) as caught:
        act()
    assert federation.files() == before
    return caught.value


def secrets(federation: Federation) -> dict[str, list[bytes]]:
    """Return each private key in every form in which it might be found, by its only home."""
    found = {}
    for path, (_, content) in federation.files().items():
        if path.endswith(".key"):
            is_site = path.endswith("site.key")
            load = load_ssh_private_key if is_site else load_pem_private_key
            key: Any = load(content, None)
            raw = key.private_numbers().private_value.to_bytes(48, "big")
            lines = content.splitlines()
            # The first lines of the body are the same for all keys of a kind.
            body = [line for line in lines if not line.startswith(b"-----")][2:-1]
            found[path] = [content, raw, raw.hex().encode(), base64.b64encode(raw), *body]
    return found


def contents(federation: Federation) -> dict[str, bytes]:
    """Return every file, and every file of every archive."""
    everything = {path: content for path, (_, content) in federation.files().items()}
    for path in sorted(federation.kits.rglob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                everything[f"{path.name}!{name}"] = archive.read(name)
    return everything
