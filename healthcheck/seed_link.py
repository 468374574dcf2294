"""The connection between donor and receiver: TLS that proves both ends, one token for one copy, a deadline on silence.

Without certificates nothing goes over anything but loopback.
"""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from cluster import tls
from cluster.errors import BadInput, MalformedStream, Unreachable
from cluster.settings import Tls

MS_PER_SECOND = 1000
RECEIVE_BYTES = 1 << 18
NOT_ENCRYPTED = "its data would go over the network in clear"


def require_private(host: str, settings: Tls | None) -> None:
    """Raise BadInput where data would leave this machine unencrypted."""
    if settings is None and not is_loopback(host):
        raise BadInput(f"{host}: {NOT_ENCRYPTED}", hint="give the cluster certificates in [tls] of the settings")


def is_loopback(host: str) -> bool:
    """Return whether an address certainly is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens for one receiver. Raises BadInput when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1)
    except OSError as error:
        listening.close()
        raise BadInput(f"cannot listen on {host}:{port}: {error.strerror}", hint="mend seed_port") from error
    return listening


def give_context(settings: Tls) -> ssl.SSLContext:
    """Return the donor's side: only who has a certificate of the cluster is spoken to."""
    context = tls.server_context(settings)
    try:
        context.load_verify_locations(settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(f"tls.ca_file {settings.ca_file}: {error}", hint="mend the named file") from error
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def take_context(settings: Tls) -> ssl.SSLContext:
    """Return the receiver's side: the donor must have a certificate of the cluster for its own host."""
    context = tls.client_context(settings)
    try:
        context.load_cert_chain(settings.certificate_file, settings.private_key_file)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(f"tls.certificate_file {settings.certificate_file}: {error}", hint="mend it") from error
    return context


@contextmanager
def accepted(listening: socket.socket, settings: Tls | None, deadline_ms: float) -> Iterator[socket.socket]:
    """Give the connection of the one receiver."""
    with listening, _translated("the receiver"):
        listening.settimeout(deadline_ms / MS_PER_SECOND)
        plain, _ = listening.accept()
    plain.settimeout(deadline_ms / MS_PER_SECOND)
    with plain, _translated("the receiver"):
        if settings is None:
            yield plain
        else:
            with give_context(settings).wrap_socket(plain, server_side=True) as secured:
                yield secured


@contextmanager
def connected(host: str, port: int, settings: Tls | None, deadline_ms: float) -> Iterator[socket.socket]:
    """Give a connection to the donor."""
    with _translated("the donor"):
        plain = socket.create_connection((host, port), deadline_ms / MS_PER_SECOND)
    with plain, _translated("the donor"):
        if settings is None:
            yield plain
        else:
            with take_context(settings).wrap_socket(plain, server_hostname=host) as secured:
                yield secured


def receive(connection: socket.socket) -> bytes:
    """Return what came, never nothing. Raises MalformedStream when the other end closed."""
    data = connection.recv(RECEIVE_BYTES)
    if not data:
        raise MalformedStream(
            "the connection ended in the middle of the copy: the donor's watchdog logged why",
            hint="run 'oscar-ha reinitialize' again",
        )
    return data


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    """Return exactly so many bytes."""
    data = bytearray()
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise MalformedStream("the connection ended before anything was said")
        data += chunk
    return bytes(data)


@contextmanager
def _translated(whom: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise Unreachable(
            f"{whom} is silent", hint="is the network there? run 'oscar-ha reinitialize' again"
        ) from error
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "verify_message", "") or str(error)
        raise Unreachable(f"the connection to {whom} broke: {reason}") from error
