"""TLS of the replication links: the contexts of both sides, and what is wrong with the files before anybody connects.

A source is believed only with a certificate of our own authority that names the host we meant. The files are read anew
for every connection, so a renewed certificate needs no restart. Whether one has expired is the only thing judged by wall
time: certificates know no other.
"""

import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from cluster import clock
from cluster.errors import BadInput
from cluster.settings import Tls

OTHERS_OR_GROUP_WRITE = 0o027
"""Nobody else may read a private key; a group may, because the database and the replicator share it."""


def client_context(tls: Tls) -> ssl.SSLContext:
    """Return the context of who connects: the source must prove its name. Raises BadInput."""
    try:
        context = ssl.create_default_context(cafile=str(tls.ca_file))
    except (OSError, ValueError) as error:
        raise BadInput(f"tls.ca_file: {tls.ca_file}: {error}", hint="give the authority's certificate as PEM") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname, context.verify_mode = True, ssl.CERT_REQUIRED
    return context


def server_context(tls: Tls) -> ssl.SSLContext:
    """Return the context of who is connected to. Raises BadInput."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate_file, tls.private_key_file, password=_no_password)
    except (OSError, ValueError) as error:
        raise BadInput(f"tls.certificate_file {tls.certificate_file}: {error}", hint="mend the named file") from None
    return context


def require(tls: Tls | None) -> None:
    """Raise BadInput naming everything that is wrong with the files; without a [tls] section nothing is."""
    found = [] if tls is None else problems(tls, clock.utc_seconds())
    if found:
        raise BadInput("; ".join(found), hint="mend the files that the [tls] section of the settings names")


def problems(tls: Tls, utc_seconds: int) -> list[str]:
    """Return what is wrong with the files at a time, one sentence each."""
    found: list[str] = []
    data = {name: _read(name, path, found) for name, path in (
        ("ca_file", tls.ca_file), ("certificate_file", tls.certificate_file), ("private_key_file", tls.private_key_file),
    )}  # fmt: skip
    mode = tls.private_key_file.stat().st_mode if data["private_key_file"] is not None else 0
    if mode & OTHERS_OR_GROUP_WRITE:
        found.append(
            f"tls.private_key_file: others can read {tls.private_key_file} (mode {mode & 0o777:04o}), chmod 600 it"
        )
    authority = _certificate("ca_file", tls.ca_file, data["ca_file"], found)
    own = _certificate("certificate_file", tls.certificate_file, data["certificate_file"], found)
    for name, certificate in (("ca_file", authority), ("certificate_file", own)):
        found += [] if certificate is None else _out_of_date(name, certificate, utc_seconds)
    if own is not None and data["private_key_file"] is not None:
        found += _mismatch(own, tls.private_key_file, data["private_key_file"])
    return found


def expires(tls: Tls) -> int | None:
    """Return when our certificate ends, in seconds of UTC; None when it cannot be read."""
    own = _certificate("certificate_file", tls.certificate_file, _read("", tls.certificate_file, []), [])
    return None if own is None else int(own.not_valid_after_utc.timestamp())


def _read(name: str, path: Path, found: list[str]) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError as error:
        found.append(f"tls.{name}: {path} cannot be read: {error.strerror}")
        return None


def _certificate(name: str, path: Path, data: bytes | None, found: list[str]) -> x509.Certificate | None:
    """Return the first certificate of a file: the own one, of a chain."""
    if data is None:
        return None
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        found.append(f"tls.{name}: {path} holds no PEM certificate")
        return None


def _out_of_date(name: str, certificate: x509.Certificate, utc_seconds: int) -> list[str]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if utc_seconds >= end.timestamp():
        return [f"tls.{name}: the certificate expired at {end:%Y-%m-%d %H:%M} UTC"]
    if utc_seconds < begin.timestamp():
        return [f"tls.{name}: the certificate is not valid before {begin:%Y-%m-%d %H:%M} UTC"]
    return []


def _mismatch(certificate: x509.Certificate, path: Path, data: bytes) -> list[str]:
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return [f"tls.private_key_file: {path} holds no PEM private key without a password"]
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        return [f"tls.private_key_file: {path} is not the key of the certificate in tls.certificate_file"]
    return []


def _no_password() -> str:
    """OpenSSL would ask on the terminal."""
    return ""
