"""Certificates and keys, held against OpenSSL and OpenSSH themselves."""

import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from mdc_flower.deployment.kits.certificates import (
    CLOCK_SKEW,
    Credential,
    belong_together,
    expiry,
    fingerprint,
    is_signed_by,
    names_in,
    new_authority,
    new_node_key,
    new_server_certificate,
    public_key_of,
    short_id,
    validity,
)
from strategies.common.errors import ConfigError
from tests.mdc_flower.deployment.federations import NOW

NAMES = ("Coordinator.example.org", "10.0.0.5", "2001:db8:0::1", "10.0.0.5")

openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed"
)


def authority(days: int = 3650, now: datetime = NOW) -> Credential:
    return new_authority("lungs", days, now)


def run(*command: object) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


@pytest.fixture
def verify(tmp_path: Path) -> Callable[..., str]:
    """Return OpenSSL's verdict over a server's certificate, as a site's TLS library comes to it."""
    ca = authority()
    server = new_server_certificate(ca, "lungs", NAMES, 365, NOW)
    (tmp_path / "ca.pem").write_bytes(ca.certificate)
    (tmp_path / "server.pem").write_bytes(server.certificate)

    def verdict(*options: str, days_later: float = 0, purpose: str = "sslserver") -> str:
        return run(
            *("openssl", "verify", "-x509_strict", "-purpose", purpose, "-attime"),
            str(int((NOW + timedelta(days=days_later)).timestamp())),
            *("-CAfile", tmp_path / "ca.pem", *options, tmp_path / "server.pem"),
        )

    return verdict


@openssl
@pytest.mark.parametrize(
    "check",
    [
        ("-verify_hostname", "coordinator.example.org"),
        ("-verify_ip", "10.0.0.5"),
        ("-verify_ip", "2001:db8::1"),
    ],
)
def test_openssl_accepts_the_server_under_each_of_its_names(
    verify: Callable[..., str], check: tuple[str, str]
) -> None:
    assert verify(*check).endswith("server.pem: OK\n")


@openssl
@pytest.mark.parametrize("check", [("-verify_hostname", "example.org"), ("-verify_ip", "10.0.0.6")])
def test_openssl_refuses_it_under_another(
    verify: Callable[..., str], check: tuple[str, str]
) -> None:
    assert "mismatch" in verify(*check)


@openssl
def test_openssl_refuses_it_as_a_client_before_its_time_and_after(
    verify: Callable[..., str],
) -> None:
    assert "unsuitable certificate purpose" in verify(purpose="sslclient")
    assert "not yet valid" in verify(days_later=-1)
    assert "OK" in verify(days_later=-1 / 24 / 60)  # a clock that is a minute behind
    assert "OK" in verify(days_later=364)
    assert "expired" in verify(days_later=366)


@openssl
def test_the_server_cannot_sign_for_others(tmp_path: Path) -> None:
    ca = authority()
    server = new_server_certificate(ca, "lungs", NAMES, 365, NOW)
    forged = new_server_certificate(server, "lungs", NAMES, 365, NOW)
    for name, content in (
        ("ca", ca.certificate),
        ("server", server.certificate),
        ("forged", forged.certificate),
    ):
        (tmp_path / f"{name}.pem").write_bytes(content)
    verdict = run(
        *("openssl", "verify", "-attime", str(int(NOW.timestamp()))),
        *("-CAfile", tmp_path / "ca.pem", "-untrusted", tmp_path / "server.pem"),
        tmp_path / "forged.pem",
    )
    assert "error" in verdict
    assert "OK" not in verdict


def test_the_authority_alone_is_one_and_signs_for_no_other_authority() -> None:
    ca = authority()
    server = new_server_certificate(ca, "lungs", NAMES, 365, NOW)
    constraints = [
        x509.load_pem_x509_certificate(content)
        .extensions.get_extension_for_class(x509.BasicConstraints)
        .value
        for content in (ca.certificate, server.certificate)
    ]
    assert [(one.ca, one.path_length) for one in constraints] == [(True, 0), (False, None)]


def test_the_names_come_back_once_each_and_sorted() -> None:
    server = new_server_certificate(authority(), "lungs", NAMES, 365, NOW)
    assert names_in(server.certificate) == ("10.0.0.5", "2001:db8::1", "coordinator.example.org")
    assert names_in(authority().certificate) == ()


def test_validity_begins_a_little_early_and_lasts_the_days() -> None:
    ca = authority(days=20)
    assert validity(ca.certificate) == (NOW - CLOCK_SKEW, NOW + timedelta(days=20))
    server = new_server_certificate(ca, "lungs", NAMES, 10, NOW)
    assert expiry(server.certificate) == NOW + timedelta(days=10)


def test_a_server_never_outlives_its_authority() -> None:
    ca = authority(days=20)
    server = new_server_certificate(ca, "lungs", NAMES, 365, NOW)
    assert expiry(server.certificate) == expiry(ca.certificate)


def test_who_signed_is_told_from_who_did_not() -> None:
    ca, other = authority(), authority()  # of the same name
    server = new_server_certificate(ca, "lungs", NAMES, 365, NOW)
    assert is_signed_by(server.certificate, ca.certificate)
    assert is_signed_by(ca.certificate, ca.certificate)
    assert not is_signed_by(server.certificate, other.certificate)
    assert not is_signed_by(ca.certificate, server.certificate)


def test_a_key_is_told_from_another() -> None:
    ca = authority()
    one, other = (new_server_certificate(ca, "lungs", NAMES, 365, NOW) for _ in range(2))
    assert belong_together(one)
    assert not belong_together(Credential(other.key, one.certificate))
    assert not belong_together(Credential(b"", one.certificate))
    assert not belong_together(Credential(one.key, b"damaged"))


def test_a_node_key_is_what_flower_reads() -> None:
    key = load_ssh_private_key(new_node_key(), password=None)
    assert isinstance(key, EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"


@ssh_keygen
def test_ssh_keygen_finds_the_same_public_key_and_fingerprint(tmp_path: Path) -> None:
    key = new_node_key()
    file = tmp_path / "site.key"
    file.touch(0o600)
    file.write_bytes(key)
    public = public_key_of(key, "berlin")
    (tmp_path / "site.pub").write_text(public)
    assert run("ssh-keygen", "-y", "-f", file).split()[:2] == public.split()[:2]
    line = run("ssh-keygen", "-l", "-f", tmp_path / "site.pub")
    assert line == f"384 {fingerprint(public)} berlin (ECDSA)\n"


def test_a_fingerprint_is_of_the_key_and_not_of_its_comment() -> None:
    key = new_node_key()
    one, same, other = (
        public_key_of(key, "berlin"),
        public_key_of(key, "lisbon"),
        public_key_of(new_node_key(), "berlin"),
    )
    assert one != same
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert short_id(one) == short_id(same) != short_id(other)
    assert len(short_id(one)) == 8


@pytest.mark.parametrize(
    "text", ["", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384 AAAA", "nonsense x"]
)
def test_what_is_no_public_key_has_no_fingerprint(text: str) -> None:
    with pytest.raises(ConfigError, match="not a public key"):
        fingerprint(text)


def test_damaged_keys_and_certificates_are_refused_as_such() -> None:
    ca = authority()
    with pytest.raises(ConfigError, match="node's private key cannot be read"):
        public_key_of(ca.key, "berlin")  # PEM, which Flower refuses as well
    with pytest.raises(ConfigError, match="a certificate cannot be read"):
        names_in(b"damaged")
    with pytest.raises(ConfigError, match="a private key cannot be read"):
        new_server_certificate(Credential(b"damaged", ca.certificate), "lungs", NAMES, 1, NOW)


def test_no_message_shows_a_private_key() -> None:
    key = new_node_key()
    with pytest.raises(ConfigError) as caught:
        fingerprint(key.decode())
    body = key.decode().splitlines()[2]
    assert body not in str(caught.value)
