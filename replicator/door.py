"""From an accepted connection to a client that has proved who it is. What is unproven costs a handle and a few bytes.

The first packets are read from the bare socket, exactly as long as they are: a client sends its first TLS bytes right
behind the wish for TLS, and a stream that had read them already could not hand them on.
"""

import asyncio
import socket
from dataclasses import dataclass
from struct import Struct

import structlog

from cluster import tls
from cluster.binlog.framing import PACKET_HEADER_BYTES, packet
from cluster.errors import MalformedStream
from cluster.settings import Tls
from replicator import wire

LOGIN_BYTES_MAX = 4 * 1024
COMMAND_BYTES_MAX = 64 * 1024
WRITE_BUFFER_BYTES = 256 * 1024
FAREWELL_SECONDS = 1.0
NO_TLS = "this replicator takes only TLS connections: set MASTER_SSL=1, or --ssl for a client"
_U32 = Struct("<I")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Account:
    """The one account that may read."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "Account()"


@dataclass(frozen=True, slots=True)
class Client:
    """Who has proved to be allowed; its next packet has sequence number 0."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def lives(self) -> bool:
        """Return whether, as far as is known here, the other side has not gone away."""
        return not (self.reader.at_eof() or self.writer.is_closing())


async def let_in(bare: socket.socket, number: int, account: Account, files: Tls | None) -> Client | None:
    """Shake hands and return the client; None when it was told why not. The socket is closed unless it is returned.

    Raises OSError, EOFError, MalformedStream.
    """
    challenge, client = wire.salt(), None
    try:
        first = await _greet(bare, number, challenge, files)
        if first is None:
            bare.close()
            return None
        client = await _streams(bare, files)
        if files is not None:
            first = await read_packet(client.reader, LOGIN_BYTES_MAX)
        proven = await _proves(client, *first, account, challenge)
    except BaseException:
        if client is None:
            bare.close()
        else:
            client.writer.transport.abort()
        raise
    if proven:
        return client
    log.warning("serve.denied", peer=str(client.writer.get_extra_info("peername")))
    client.writer.close()
    return None


async def _greet(bare: socket.socket, number: int, challenge: bytes, files: Tls | None) -> tuple[int, bytes] | None:
    """Greet, and return the client's first packet; None when it was told that it must come in TLS."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(bare, packet(wire.greeting(challenge, number, tls=files is not None), 0))
    sequence, payload = await _first_packet(bare)
    if files is None or wire.asks_for_tls(payload):
        return sequence, payload
    log.warning("serve.plain_text_refused", peer=str(bare.getpeername()))
    await loop.sock_sendall(bare, packet(wire.error(wire.ER_NO_TLS, NO_TLS, state="08004"), sequence + 1))
    return None


async def read_packet(reader: asyncio.StreamReader, bytes_max: int) -> tuple[int, bytes]:
    """Return sequence number and payload of the next packet. Raises MalformedStream when it says to be too long."""
    head = await reader.readexactly(PACKET_HEADER_BYTES)
    return head[3], await reader.readexactly(_size(head, bytes_max))


async def _first_packet(bare: socket.socket) -> tuple[int, bytes]:
    head = await _exactly(bare, PACKET_HEADER_BYTES)
    return head[3], await _exactly(bare, _size(head, LOGIN_BYTES_MAX))


async def _exactly(bare: socket.socket, size: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size:
        piece = await loop.sock_recv(bare, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _size(head: bytes, bytes_max: int) -> int:
    size: int = _U32.unpack(head)[0] & 0xFFFFFF
    if size > bytes_max:
        raise MalformedStream(f"a command of {size} bytes, at most {bytes_max} are taken")
    return size


async def _streams(bare: socket.socket, files: Tls | None) -> Client:
    """Return reader and writer on the socket, in TLS when there are `files` for it; they own the socket then."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=COMMAND_BYTES_MAX, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    if files is None:
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, bare)
    else:
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, bare, ssl=tls.server_context(files), ssl_shutdown_timeout=FAREWELL_SECONDS
        )
    transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
    return Client(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def _proves(client: Client, sequence: int, payload: bytes, account: Account, challenge: bytes) -> bool:
    login = wire.login_of(payload)
    proof = login.proof
    if login.plugin != wire.NATIVE:
        await _answer(client, wire.switch_to_native(challenge), sequence)
        sequence, proof = await read_packet(client.reader, LOGIN_BYTES_MAX)
    proven = wire.proves(login.user, proof, user=account.user, password=account.password, challenge=challenge)
    denied = wire.error(wire.ER_ACCESS_DENIED, "Access denied", state="28000")
    await _answer(client, wire.ok() if proven else denied, sequence)
    return proven


async def _answer(client: Client, payload: bytes, sequence: int) -> None:
    client.writer.write(packet(payload, sequence + 1))
    await client.writer.drain()
