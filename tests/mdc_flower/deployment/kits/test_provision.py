"""Provisioning: what is made, what the archives hold, and what stays as it is."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from mdc_flower.deployment.coordinator.coordinator import run_defaults
from mdc_flower.deployment.kits.certificates import (
    expiry,
    fingerprint,
)
from mdc_flower.deployment.kits.kits import Kit, read_coordinator_kit, read_site_kit
from mdc_flower.deployment.site.node_config import node_config
from tests.mdc_flower.deployment.federations import (
    OSLO,
    TWO_SITES,
    Federation,
    changed,
    contents,
    public_key,
    secrets,
)


def test_a_new_federation_gets_everything_and_says_so(tmp_path: Path) -> None:
    assert Federation(tmp_path).provision(TWO_SITES) == [
        "authority: new, valid until 2040-04-28; keep ca.key offline",
        "coordinator: new kit",
        "berlin: new kit",
        "lisbon: new kit",
    ]


def test_the_layout_is_complete(federation: Federation) -> None:
    machines = {"README.md", "compose.yaml", "Dockerfile", ".dockerignore", "kit.toml", "ca.pem"}
    site = machines | {"site.key", "site.pub", "state", "mdc-site.service"}
    coordinator = machines | {
        *("coordinator.pem", "coordinator.key", "mdc-coordinator.service"),
        *("sites", "sites/berlin.pub", "sites/lisbon.pub", "revoked", "state"),
    }
    assert set(federation.files()) == {
        *("authority", "authority/ca.key", "authority/ca.pem", "authority/federation.toml"),
        *("coordinator", "berlin", "lisbon"),
        *(f"coordinator/{name}" for name in coordinator),
        *(f"{kit}/{name}" for kit in ("berlin", "lisbon") for name in site),
        *("berlin.zip", "berlin.zip.sha256", "lisbon.zip", "lisbon.zip.sha256"),
    }
    assert federation.read("authority/federation.toml") == TWO_SITES


def test_keys_archives_and_their_folders_are_for_their_owner_only(federation: Federation) -> None:
    modes = {path: mode for path, (mode, _) in federation.files().items()}
    private = {path for path in modes if path.endswith((".key", ".zip"))}
    assert len(private) == 6
    assert {modes[path] for path in private} == {0o600}
    folders = [path for path in modes if (federation.kits / path).is_dir()]
    assert {modes[path] for path in folders} == {0o700}
    assert federation.kits.stat().st_mode & 0o777 == 0o700
    assert modes["berlin/README.md"] == 0o644


def test_a_private_file_is_never_open_to_others_not_even_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = os.fsync

    def look(descriptor: int) -> None:
        status = os.fstat(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").resolve().name
        seen.append((name, status.st_mode & 0o777))
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the system does not tell the name of an open file")
    monkeypatch.setattr(os, "fsync", look)
    Federation(tmp_path).provision(TWO_SITES)
    private = [(name, mode) for name, mode in seen if ".key" in name or name.endswith("zip.tmp")]
    assert len(private) == 6
    assert {mode for _, mode in private} == {0o600}


def test_every_private_key_stands_in_one_kit_only(federation: Federation) -> None:
    keys = secrets(federation)
    assert set(keys) == {
        *("authority/ca.key", "coordinator/coordinator.key"),
        *("berlin/site.key", "lisbon/site.key"),
    }
    everything = contents(federation)
    for home, forms in keys.items():
        holders = {
            path for path, content in everything.items() if any(form in content for form in forms)
        }
        site = home.removesuffix("/site.key")
        archived = {f"{site}.zip", f"{site}.zip!{home}"} if home.endswith("site.key") else set()
        assert holders == {home, *archived}


def test_the_coordinator_accepts_exactly_the_keys_of_the_sites(federation: Federation) -> None:
    accepted = read_coordinator_kit(federation.kits / "coordinator").sites
    assert accepted == {site: public_key(federation, site) for site in ("berlin", "lisbon")}
    assert fingerprint(accepted["berlin"]) != fingerprint(accepted["lisbon"])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("kit", ["berlin", "coordinator"])
def test_openssl_trusts_the_coordinator_by_each_kit(federation: Federation, kit: str) -> None:
    when = str(int(expiry(federation.files()["coordinator/coordinator.pem"][1]).timestamp()) - 60)
    result = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-attime", when),
            *("-verify_hostname", "coordinator.example.org"),
            *("-CAfile", f"{kit}/ca.pem", "coordinator/coordinator.pem"),
        ],
        cwd=federation.kits,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "coordinator/coordinator.pem: OK\n")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_ssh_keygen_reads_a_site_key_and_finds_the_public_key_beside_it(
    federation: Federation,
) -> None:
    result = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(federation.kits / "berlin" / "site.key")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split()[:2] == public_key(federation, "berlin").split()[:2]


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_an_unpacked_archive_is_the_kit_with_its_permissions(
    federation: Federation, tmp_path: Path
) -> None:
    target = tmp_path / "elsewhere"
    archive = federation.kits / "berlin.zip"
    subprocess.run(["unzip", "-q", str(archive), "-d", str(target)], check=True)
    unpacked = Federation(tmp_path)
    unpacked.kits = target
    assert unpacked.files("berlin") == federation.files("berlin")
    assert (target / "berlin").stat().st_mode & 0o777 == 0o700
    assert read_site_kit(target / "berlin").site == "berlin"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_checks_an_archive(federation: Federation) -> None:
    def check() -> int:
        command = ["sha256sum", "--check", "--strict", "berlin.zip.sha256"]
        return subprocess.run(
            command, cwd=federation.kits, capture_output=True, check=False
        ).returncode

    assert check() == 0
    archive = federation.kits / "berlin.zip"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    assert check() == 1


def test_an_archive_holds_neither_times_nor_what_the_site_has_left_there(
    federation: Federation,
) -> None:
    before = federation.files()["berlin.zip"]
    (federation.kits / "berlin" / "state" / "log").write_text("a run")
    (federation.kits / "berlin.zip").unlink()
    assert "berlin: unchanged, archive rewritten" in federation.provision()
    assert federation.files()["berlin.zip"] == before
    assert (federation.kits / "berlin" / "state" / "log").read_text() == "a run"
    with zipfile.ZipFile(federation.kits / "berlin.zip") as archive:
        entries = archive.infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    names = [entry.filename for entry in entries if not entry.is_dir()]
    assert names == sorted(names)
    assert all(entry.filename.startswith("berlin/") for entry in entries)


def test_the_same_again_changes_no_byte(federation: Federation) -> None:
    before = federation.files()
    inodes = {path: path.stat().st_ino for path in federation.kits.rglob("*")}
    assert federation.provision(days_later=1) == [
        "coordinator: unchanged",
        "berlin: unchanged",
        "lisbon: unchanged",
    ]
    assert federation.files() == before
    assert {path: path.stat().st_ino for path in federation.kits.rglob("*")} == inodes


def test_a_new_site_is_added_beside_the_others(federation: Federation) -> None:
    before = federation.files()
    lines = federation.provision(TWO_SITES + OSLO)
    assert lines[-3:] == ["berlin: unchanged", "lisbon: unchanged", "oslo: new kit"]
    touched = {path for path in changed(before, federation.files()) if not path.startswith("oslo")}
    assert touched == {"coordinator/sites/oslo.pub", "authority/federation.toml"}
    assert read_site_kit(federation.kits / "oslo").device == "cuda:1"


def test_a_setting_of_one_site_changes_that_kit_and_keeps_its_key(federation: Federation) -> None:
    before = federation.files()
    lines = federation.provision(TWO_SITES.replace("/srv/images", "/srv/more"))
    assert "berlin: settings changed, hand out its kit again" in lines
    assert changed(before, federation.files()) == {
        *("berlin/kit.toml", "berlin/README.md", "berlin/compose.yaml"),
        *("berlin.zip", "berlin.zip.sha256", "authority/federation.toml"),
    }
    assert read_site_kit(federation.kits / "berlin").data == "image-folder:/srv/more"


def shape_of(kit: Kit) -> tuple[int, ...]:
    assert kit.contract is not None
    return kit.contract.shape


def test_a_job_reaches_every_kit_and_is_allowed_at_every_site(federation: Federation) -> None:
    before, sites = TWO_SITES.split("[contract]")[0], TWO_SITES[TWO_SITES.index("[[site]]") :]
    federation.provision(f'{before}\njob = "my_lab.jobs:job"\n{sites}')
    coordinator = read_coordinator_kit(federation.kits / "coordinator")
    assert (coordinator.job, coordinator.contract) == ("my_lab.jobs:job", None)
    assert run_defaults(coordinator)["job"] == "my_lab.jobs:job"
    berlin = read_site_kit(federation.kits / "berlin")
    assert berlin.job == "my_lab.jobs:job"
    assert "my_lab.jobs" in berlin.modules
    assert berlin.metrics == (), "the job says what leaves the site"
    assert node_config(berlin)["contract"] == ""
    readme = (federation.kits / "berlin" / "README.md").read_text()
    assert "Data for the job `my_lab.jobs:job`" in readme
    assert "every metric that the job `my_lab.jobs:job` lets leave a site" in readme


def test_a_part_of_the_model_is_agreed_with_the_job(federation: Federation) -> None:
    before, sites = TWO_SITES.split("[contract]")[0], TWO_SITES[TWO_SITES.index("[[site]]") :]
    agreed = f'exchange = "trainable"\nkeep = "head.*"\nbase = "{"0f" * 32}"\n'
    federation.provision(f'{before}\njob = "my_lab.jobs:job"\n{agreed}{sites}')
    coordinator = read_coordinator_kit(federation.kits / "coordinator")
    assert run_defaults(coordinator)["exchange"] == "trainable"
    berlin = read_site_kit(federation.kits / "berlin")
    assert run_defaults(coordinator)["keep"] == berlin.keep == "head.*"
    assert (berlin.exchange, berlin.base) == ("trainable", "0f" * 32)


def test_another_contract_reaches_every_kit_and_keeps_every_key(federation: Federation) -> None:
    keys = secrets(federation)
    lines = federation.provision(TWO_SITES.replace("[1, 8, 8]", "[3, 32, 32]"))
    assert "coordinator: settings changed" in lines
    for kit in ("berlin", "lisbon"):
        assert shape_of(read_site_kit(federation.kits / kit)) == (3, 32, 32)
    assert shape_of(read_coordinator_kit(federation.kits / "coordinator")) == (3, 32, 32)
    assert secrets(federation) == keys


def test_a_key_that_became_readable_for_others_is_closed_again(federation: Federation) -> None:
    before = federation.files()
    (federation.kits / "berlin" / "site.key").chmod(0o644)
    federation.provision()
    assert federation.files() == before
