"""Certificates and keys that are renewed, and sites that are revoked and come back."""

import shutil
import zipfile
from pathlib import Path

import pytest

from mdc_flower.deployment.kits.certificates import (
    expiry,
    fingerprint,
    names_in,
    short_id,
)
from mdc_flower.deployment.kits.kits import read_coordinator_kit, read_site_kit
from tests.mdc_flower.deployment.federations import (
    BERLIN,
    CONTRACT,
    HEAD,
    LISBON,
    OSLO,
    TWO_SITES,
    Federation,
    assert_certificate_is_sound,
    certificate,
    changed,
    contents,
    public_key,
    refusal,
    secrets,
)


def test_another_host_gives_another_certificate_of_the_same_authority(
    federation: Federation,
) -> None:
    ca = federation.files()["authority/ca.pem"]
    lines = federation.provision(TWO_SITES.replace("coordinator.example", "lead.example"))
    (line,) = [line for line in lines if line.startswith("coordinator")]
    assert line.startswith("coordinator: new certificate, for ")
    assert "lead.example.org" in names_in(certificate(federation))
    assert "coordinator.example.org" not in names_in(certificate(federation))
    assert federation.files()["authority/ca.pem"] == ca
    assert read_site_kit(federation.kits / "lisbon").host == "lead.example.org"
    assert_certificate_is_sound(federation)


def test_more_hosts_give_another_certificate_and_leave_the_sites_alone(
    federation: Federation,
) -> None:
    before = federation.files()
    federation.provision(TWO_SITES.replace('"10.0.0.5"', '"10.0.0.5", "inside.example.org"'))
    assert "inside.example.org" in names_in(certificate(federation))
    assert changed(before, federation.files()) == {
        *("coordinator/coordinator.pem", "coordinator/coordinator.key"),
        *("coordinator/README.md", "authority/federation.toml"),
    }


def test_a_certificate_is_renewed_in_its_last_30_days(federation: Federation) -> None:
    before = certificate(federation)
    assert "coordinator: unchanged" in federation.provision(days_later=335)
    assert certificate(federation) == before
    lines = federation.provision(days_later=336)
    assert "coordinator: new certificate, the old one expires on 2031-05-01" in lines
    assert expiry(certificate(federation)) > expiry(before)
    assert_certificate_is_sound(federation)
    assert "coordinator: unchanged" in federation.provision(days_later=336)


def test_a_certificate_is_renewed_when_asked_for(federation: Federation) -> None:
    before = federation.files()
    lines = federation.provision(renew=["coordinator"])
    assert "coordinator: new certificate, as requested" in lines
    assert changed(before, federation.files()) == {
        "coordinator/coordinator.pem",
        "coordinator/coordinator.key",
    }
    assert_certificate_is_sound(federation)


def test_a_certificate_of_a_few_days_is_not_renewed_each_time(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.provision("certificate-days = 9\n" + TWO_SITES)
    assert "coordinator: unchanged" in federation.provision(days_later=5)
    assert any("new certificate" in line for line in federation.provision(days_later=7))


def test_a_certificate_that_ends_with_its_authority_is_not_renewed_each_time(
    tmp_path: Path,
) -> None:
    federation = Federation(tmp_path)
    federation.provision("ca-days = 100\n" + TWO_SITES)
    lines = federation.provision(days_later=90)
    assert "coordinator: unchanged" in lines
    assert lines[0].startswith("warning: the authority's certificate expires on 2030-08-09")


@pytest.mark.parametrize("name", ["coordinator.key", "coordinator.pem"])
@pytest.mark.parametrize("content", [None, b"damaged"])
def test_a_lost_or_damaged_certificate_is_made_again(
    federation: Federation, name: str, content: bytes | None
) -> None:
    path = federation.kits / "coordinator" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert any("coordinator: new certificate" in line for line in federation.provision())
    assert_certificate_is_sound(federation)


def test_sites_come_and_go_without_the_authoritys_key(federation: Federation) -> None:
    (federation.kits / "authority" / "ca.key").unlink()
    lines = federation.provision(HEAD + CONTRACT + BERLIN + OSLO, revoke=["lisbon"])
    assert lines == [
        "lisbon: revoked",
        "coordinator: unchanged",
        "berlin: unchanged",
        "oslo: new kit",
    ]


def test_a_new_certificate_needs_the_authoritys_key(federation: Federation) -> None:
    key = federation.kits / "authority" / "ca.key"
    content = key.read_bytes()
    key.unlink()
    lead = TWO_SITES.replace("coordinator.example", "lead.example").replace(LISBON, "")
    error = refusal(lambda: federation.provision(lead, revoke=["lisbon"]), federation)
    assert "the authority's key is missing" in str(error)
    assert error.where == str(key)
    key.write_bytes(content[::-1])
    refusal(lambda: federation.provision(renew=["coordinator"], revoke=["lisbon"]), federation)


def test_a_certificate_that_ends_soon_waits_for_the_authoritys_key(federation: Federation) -> None:
    (federation.kits / "authority" / "ca.key").unlink()
    lines = federation.provision(days_later=350)
    assert lines[0].startswith("warning: the coordinator's certificate expires on 2031-05-01")
    assert "coordinator: unchanged" in lines
    error = refusal(lambda: federation.provision(days_later=370), federation)
    assert "the authority's key is missing" in str(error)


def test_a_renewed_site_has_another_key_and_the_old_one_is_recorded(
    federation: Federation,
) -> None:
    old, other = public_key(federation, "berlin"), federation.files("lisbon")
    lines = federation.provision(renew=["berlin"])
    assert "berlin: new key, hand out its kit again" in lines
    new = public_key(federation, "berlin")
    assert fingerprint(new) != fingerprint(old)
    kit = read_coordinator_kit(federation.kits / "coordinator")
    assert kit.sites["berlin"] == new
    assert kit.revoked == {f"berlin-{short_id(old)}": old}
    assert federation.files("lisbon") == other
    with zipfile.ZipFile(federation.kits / "berlin.zip") as archive:
        assert archive.read("berlin/site.pub").decode() == new
    before = federation.files()
    federation.provision()
    assert federation.files() == before


def test_a_replaced_key_is_no_revoked_site(federation: Federation) -> None:
    old = public_key(federation, "berlin")
    federation.provision(renew=["berlin"])
    stem = f"berlin-{short_id(old)}"
    error = refusal(lambda: federation.provision(revoke=[stem]), federation)
    assert "there is no such site to revoke" in str(error)
    # Once its key is revoked, the site is one.
    federation.provision(HEAD + CONTRACT + LISBON, revoke=["berlin"])
    assert "berlin: already revoked" in federation.provision(revoke=["berlin"])


def test_a_revoked_site_is_shut_out_and_its_key_is_gone(federation: Federation) -> None:
    old, key = public_key(federation, "lisbon"), secrets(federation)["lisbon/site.key"]
    lines = federation.provision(HEAD + CONTRACT + BERLIN, revoke=["lisbon"])
    assert "lisbon: revoked" in lines
    kit = read_coordinator_kit(federation.kits / "coordinator")
    assert list(kit.sites) == ["berlin"]
    assert kit.revoked == {"lisbon": old}
    assert not [path for path in federation.kits.rglob("*lisbon*") if path.suffix != ".pub"]
    everything = contents(federation).values()
    assert not any(form in content for content in everything for form in key)
    before = federation.files()
    assert "lisbon: already revoked" in federation.provision(revoke=["lisbon"])
    assert federation.files() == before


def test_a_site_that_comes_back_has_another_key_and_every_old_one_stays_recorded(
    federation: Federation,
) -> None:
    one_site = HEAD + CONTRACT + BERLIN
    first = public_key(federation, "lisbon")
    federation.provision(one_site, revoke=["lisbon"])
    assert "lisbon: new kit" in federation.provision(TWO_SITES)
    second = public_key(federation, "lisbon")
    kit = read_coordinator_kit(federation.kits / "coordinator")
    assert kit.sites["lisbon"] == second != first
    assert kit.revoked == {f"lisbon-{short_id(first)}": first}
    federation.provision(one_site, revoke=["lisbon"])
    assert kit.revoked == {f"lisbon-{short_id(first)}": first, "lisbon": second}


def test_a_revoked_key_does_not_come_back_from_a_backup(
    federation: Federation, tmp_path: Path
) -> None:
    shutil.copytree(federation.kits / "lisbon", tmp_path / "backup")
    federation.provision(HEAD + CONTRACT + BERLIN, revoke=["lisbon"])
    shutil.copytree(tmp_path / "backup", federation.kits / "lisbon")
    error = refusal(lambda: federation.provision(TWO_SITES), federation)
    assert "the key of site 'lisbon' was revoked" in str(error)
    assert "--renew lisbon" in error.hint
    old = public_key(federation, "lisbon")
    federation.provision(renew=["lisbon"])
    kit = read_coordinator_kit(federation.kits / "coordinator")
    assert old in kit.revoked.values()
    assert kit.sites["lisbon"] not in kit.revoked.values()


@pytest.mark.parametrize("gone", ["berlin", "berlin/site.key"])
def test_a_kit_that_was_handed_out_and_removed_keeps_its_place(
    federation: Federation, gone: str
) -> None:
    path = federation.kits / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    before = federation.files()
    lines = federation.provision()
    assert "berlin: its private key is no longer here; --renew berlin creates a new one" in lines
    assert federation.files() == before
    old = read_coordinator_kit(federation.kits / "coordinator").sites["berlin"]
    assert "berlin: new key, hand out its kit again" in federation.provision(renew=["berlin"])
    kit = read_coordinator_kit(federation.kits / "coordinator")
    assert kit.sites["berlin"] == public_key(federation, "berlin") != old
    assert read_site_kit(federation.kits / "berlin").site == "berlin"
