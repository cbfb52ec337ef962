"""The authority, the coordinator's certificate and the nodes' keys, as bytes; no file access.

All keys are elliptic-curve keys on P-384. Certificates and their keys are PEM. A node's key is in
OpenSSH's format, the only one that Flower reads.
"""

import base64
import hashlib
import ipaddress
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strategies.common.errors import ConfigError

CLOCK_SKEW = timedelta(minutes=5)
"""Certificates are valid from this much before their creation, for sites with slow clocks."""


class Credential(NamedTuple):
    """A private key and its certificate, as PEM."""

    key: bytes
    certificate: bytes


def new_authority(federation: str, days: int, now: datetime) -> Credential:
    """Return a new authority with a self-signed certificate.

    Parameters
    ----------
    federation
        Name of the federation.
    days
        Validity of the certificate in days from ``now``.
    now
        The current time, with time zone.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(f"mdc federation {federation}")
    certificate = (
        _builder(subject, subject, key, now, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA384())
    )
    return Credential(_pem(key), certificate.public_bytes(Encoding.PEM))


def new_server_certificate(
    authority: Credential, federation: str, names: Iterable[str], days: int, now: datetime
) -> Credential:
    """Return a new key for the coordinator, with a certificate signed by the authority.

    Parameters
    ----------
    authority
        The result of `new_authority`.
    federation
        Name of the federation.
    names
        Host names and IP addresses that the certificate is for.
    days
        Validity in days from ``now``; the certificate never outlives the authority's.
    now
        The current time, with time zone.

    Raises
    ------
    ConfigError
        If the authority's key or certificate is damaged.
    """
    issuer = _certificate(authority.certificate)
    issuer_key = _elliptic(_load_pem(authority.key))
    key = ec.generate_private_key(ec.SECP384R1())
    end = min(now + timedelta(days=days), issuer.not_valid_after_utc)
    alternatives = [_general_name(name) for name in normal_names(names)]
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        _builder(_name(f"mdc coordinator {federation}"), issuer.subject, key, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(server, critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA384())
    )
    return Credential(_pem(key), certificate.public_bytes(Encoding.PEM))


def new_node_key() -> bytes:
    """Return a new private key for a node in OpenSSH's format."""
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def public_key_of(node_key: bytes, comment: str) -> str:
    """Return a node key's public key in OpenSSH's format: type, key and comment on one line.

    Raises
    ------
    ConfigError
        If ``node_key`` is not a private key in OpenSSH's format.
    """
    try:
        public = load_ssh_private_key(node_key, password=None).public_key()
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"a node's private key cannot be read: {error}",
            where=comment,
            expected="a key in OpenSSH's format",
        ) from None
    text = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
    return f"{text} {comment}\n"


def fingerprint(public_key_text: str) -> str:
    """Return the fingerprint of a public key, ``SHA256:...``, as ``ssh-keygen -l`` prints it.

    Raises
    ------
    ConfigError
        If the text is not a public key in OpenSSH's format.
    """
    digest = base64.b64encode(hashlib.sha256(_blob(public_key_text)).digest())
    return "SHA256:" + digest.decode("ascii").rstrip("=")


def short_id(public_key_text: str) -> str:
    """Return the first 8 hex digits of a key's fingerprint; raise like `fingerprint`."""
    return hashlib.sha256(_blob(public_key_text)).hexdigest()[:8]


def normal_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return host names and IP addresses as in a certificate: normalized, unique and sorted."""
    return tuple(sorted({_normal(name) for name in names}))


def names_in(certificate: bytes) -> tuple[str, ...]:
    """Return the host names and IP addresses in a PEM certificate, sorted.

    Raises
    ------
    ConfigError
        If the bytes are not a certificate.
    """
    try:
        extension = _certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return ()
    alternatives = extension.value
    dns = alternatives.get_values_for_type(x509.DNSName)
    addresses = alternatives.get_values_for_type(x509.IPAddress)
    return normal_names([*dns, *map(str, addresses)])


def validity(certificate: bytes) -> tuple[datetime, datetime]:
    """Return the start and end of a PEM certificate's validity, in UTC.

    Raises
    ------
    ConfigError
        If the bytes are not a certificate.
    """
    loaded = _certificate(certificate)
    return loaded.not_valid_before_utc, loaded.not_valid_after_utc


def expiry(certificate: bytes) -> datetime:
    """Return the end of a PEM certificate's validity, in UTC; raise like `validity`."""
    return validity(certificate)[1]


def is_signed_by(certificate: bytes, authority: bytes) -> bool:
    """Return whether the key of ``authority`` signed ``certificate``; both are PEM certificates.

    Raises
    ------
    ConfigError
        If one of them is not a certificate.
    """
    try:
        _certificate(certificate).verify_directly_issued_by(_certificate(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def belong_together(credential: Credential) -> bool:
    """Return whether a certificate belongs to its key; False if either is damaged."""
    try:
        key = _elliptic(_load_pem(credential.key))
        return key.public_key() == _certificate(credential.certificate).public_key()
    except ConfigError:
        return False


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _normal(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_pem(key: bytes) -> object:
    try:
        return load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"a private key cannot be read: {error}", expected="PEM") from None


def _elliptic(key: object) -> ec.EllipticCurvePrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            "a private key has the wrong type",
            got=type(key).__name__,
            expected="an elliptic-curve key",
        )
    return key


def _certificate(content: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise ConfigError(f"a certificate cannot be read: {error}", expected="PEM") from None


def _blob(public_key_text: str) -> bytes:
    try:
        load_ssh_public_key(public_key_text.encode())
        return base64.b64decode(public_key_text.split()[1], validate=True)
    except (ValueError, IndexError, UnsupportedAlgorithm):
        raise ConfigError(
            "not a public key in OpenSSH's format",
            got=public_key_text[:40],
            expected="ecdsa-sha2-nistp384 AAAA...",
        ) from None
