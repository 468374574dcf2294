"""Whoever answers at a source's address may ask for the password in a form that it can read: without TLS it gets none."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pymysql
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cluster.binlog.framing import packet
from cluster.certificates import make_authority
from cluster.connection import QuickConnection, StrictConnection
from cluster.errors import BadInput
from replicator import wire

PASSWORD = "a secret of twenty-one"
ANSWER_SECONDS = 5.0
SALT = b"0123456789abcdefghij"
OWN_KEY = (
    rsa.generate_private_key(65537, 2048).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)
NATIVE = b"mysql_native_password"
READABLE = (b"mysql_clear_password", b"dialog", b"sha256_password", b"caching_sha2_password", b"mysql_old_password",
            b"client_ed25519")  # fmt: skip


class Asker:
    """Greets with a method, asks for another one, and keeps everything that it is told."""

    def __init__(self, greets: bytes, asks: bytes) -> None:
        self.greets, self.asks, self.heard = greets, asks, b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])

    def run(self) -> None:
        connection, _ = self.listener.accept()
        with connection, suppress(OSError):
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(packet(wire.greeting(SALT, 1).replace(NATIVE, self.greets), 0))
            self._hear(connection)
            if self.asks:
                connection.sendall(packet(b"\xfe" + self.asks + b"\0" + SALT + b"\0", 2))
                self._hear(connection)
            connection.sendall(packet(b"\x01" + (OWN_KEY if self.asks else b"\x04"), 4 if self.asks else 2))
            self._hear(connection)
            connection.sendall(packet(b"\x01" + OWN_KEY, 4))
            self._hear(connection)

    def _hear(self, connection: socket.socket) -> None:
        self.heard += connection.recv(65536)


@contextmanager
def asking(greets: bytes, asks: bytes = b"") -> Iterator[Asker]:
    asker = Asker(greets, asks)
    thread = threading.Thread(target=asker.run, daemon=True)
    thread.start()
    try:
        yield asker
    finally:
        thread.join(3 * ANSWER_SECONDS)
        asker.listener.close()


def log_in(port: int) -> None:
    StrictConnection(host="127.0.0.1", port=port, user="u", password=PASSWORD, connect_timeout=5, read_timeout=5,
                     ssl_disabled=True).close()  # fmt: skip


@pytest.mark.parametrize("method", READABLE)
def test_a_source_that_asks_for_a_readable_password_without_tls_gets_none(method: bytes) -> None:
    """Somebody in between needs no more than one packet for it; a key to encrypt it with would be his own."""
    with asking(NATIVE, method) as asker, pytest.raises(BadInput, match=method.decode()) as refused:
        log_in(asker.port)

    assert PASSWORD.encode() not in asker.heard
    assert len(asker.heard) < 256, "what was said is the login with its proof, and nothing encrypted with a key of his"
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize("method", READABLE)
def test_nor_does_one_that_greets_with_such_a_method(method: bytes) -> None:
    """What it prefers is not begun; what it asks for behind that is refused."""
    with asking(method) as asker, pytest.raises(pymysql.err.OperationalError, match="mysql_native_password"):
        log_in(asker.port)

    assert PASSWORD.encode() not in asker.heard
    assert len(asker.heard) < 256


def test_a_proof_that_tells_nothing_is_given() -> None:
    with asking(NATIVE, NATIVE) as asker, suppress(pymysql.err.OperationalError):
        log_in(asker.port)

    assert wire.native_proof(PASSWORD, SALT) in asker.heard
    assert PASSWORD.encode() not in asker.heard


def test_a_connection_that_believes_anybody_does_not_read_what_the_system_believes() -> None:
    """The driver read all of it each time, 16 ms of a processor, for a switchover's every client, check and watchdog."""
    one, other = (QuickConnection(user="u", password=PASSWORD, defer_connect=True) for _ in range(2))

    assert one.ctx is other.ctx  # type: ignore[attr-defined]  # not in the stubs
    assert one.ctx.verify_mode is ssl.CERT_NONE  # type: ignore[attr-defined]  # likewise
    assert one.ssl, "TLS where it is offered, as ever"


def test_who_names_an_authority_is_given_its_certificates(tmp_path: Path) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_bytes(make_authority("clinic").certificate_pem)
    connection = QuickConnection(
        user="u", password=PASSWORD, ssl_ca=str(authority), ssl_verify_cert=True, defer_connect=True
    )

    assert connection.ctx.verify_mode is ssl.CERT_REQUIRED  # type: ignore[attr-defined]  # not in the stubs
    assert len(connection.ctx.get_ca_certs()) == 1  # type: ignore[attr-defined]  # likewise
