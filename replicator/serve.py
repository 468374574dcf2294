"""The server replicas attach to: it speaks the primary's side of the protocol and streams the archive.

Standbys start by GTID (`@slave_connect_state`), other replicators by epoch, file and offset (`@oscar_ha_epoch`). Only
durable, whole groups are sent to a standby. Everything from a client is bounded, and has a deadline.
"""

import asyncio
import itertools
import re
import socket
from contextlib import suppress
from typing import ClassVar

import structlog

from cluster import clock
from cluster.clock import Nanos
from cluster.errors import BadInput, MalformedStream, OscarHaError, Refused
from cluster.position import Position
from replicator import lookup, wire
from replicator.archive import Archive
from replicator.lookup import NotYet
from replicator.metrics import Metrics
from replicator.source import DUMP_NON_BLOCK
from replicator.streaming import Ended, News, Stream

COMMAND_BYTES_MAX = 64 * 1024
CONNECTIONS_MAX = 64
HANDSHAKE_DEADLINE_SECONDS = 5.0
COMMAND_DEADLINE_SECONDS = 60.0
AHEAD_HELD_MS = 1_500
"""So long such a replica is held in one connection: it takes silence for death after its slave_net_timeout."""
AHEAD_WAIT_MS = 10_000
"""A replica that is ahead of the archive is not refused before this: its epoch may be on its way."""
HEARTBEAT_SECONDS_MIN, HEARTBEAT_SECONDS_DEFAULT = 0.1, 1.0
WRITE_BUFFER_BYTES = 1024 * 1024
STALLED_READER_MS = 30_000
NANOS_PER_SECOND = 1_000_000_000
_GTID_POS = re.compile(r"select\s+binlog_gtid_pos\(\s*'([^']*)'\s*,\s*(\d+)\s*\)", re.IGNORECASE)
_SELECT = re.compile(r"select\s+(@@?[\w.]+|unix_timestamp\(\))(\s+limit\s+1)?", re.IGNORECASE)
_SHOW = re.compile(r"show\s+variables\s+like\s+'([\w%]+)'", re.IGNORECASE)
log = structlog.get_logger()


class Server:
    """Listens, and keeps one session per connection."""

    def __init__(self, archive: Archive, *, server_id: int, user: str, password: str, metrics: Metrics) -> None:
        self.archive, self.server_id, self.metrics = archive, server_id, metrics
        self.user, self.password = user, password
        self.news = News()
        self.ahead_since: dict[int, Nanos] = {}
        """Replicas that are ahead of the archive, by server id, and since when."""
        self.streams: dict[int, asyncio.Task[None]] = {}
        self._sessions: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises BadInput when the port is in use."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=COMMAND_BYTES_MAX)
        except OSError as error:
            raise BadInput(f"replicator: {host}:{port} cannot be listened on: {error.strerror}",
                           hint="end what uses the port, or choose another in the settings") from error  # fmt: skip

    async def stop(self) -> None:
        """End every session."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._sessions):
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs this as a task"
        self._sessions.add(task)
        try:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_READER_MS)
            writer.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
            session = Session(self, next(self._numbers), reader, writer)
            if len(self._sessions) > CONNECTIONS_MAX:
                await session.refuse(wire.ER_TOO_MANY, "too many connections")
            else:
                await session.run()
        except (OSError, EOFError, TimeoutError):
            pass  # the other side went away, or said nothing for too long: it comes again when it wants
        except OscarHaError as error:
            log.warning("serve.ended", error=str(error), peer=str(writer.get_extra_info("peername")))
        except asyncio.CancelledError:
            pass  # the server stops, or a newer stream of the same replica took over
        finally:
            self._sessions.discard(task)
            writer.close()


class Session:
    """One connection: handshake, a few queries, then perhaps one stream until its end."""

    _CONSTANTS: ClassVar[dict[str, str]] = {
        "@master_binlog_checksum": "CRC32",
        "@@global.gtid_domain_id": "0",
        "@@gtid_domain_id": "0",
        "@@global.rpl_semi_sync_master_enabled": "0",
        "@@version_comment": "oscar-ha replicator",
        "@@global.binlog_checksum": "CRC32",
        "@@max_allowed_packet": "1073741824",
    }

    def __init__(self, server: Server, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._number, self._reader, self._writer = server, number, reader, writer
        self._sequence = 0
        self._variables: dict[str, str] = {}

    async def run(self) -> None:
        """Serve the connection until it ends."""
        async with asyncio.timeout(HANDSHAKE_DEADLINE_SECONDS):
            welcome = await self._handshake()
        while welcome:
            async with asyncio.timeout(COMMAND_DEADLINE_SECONDS):
                payload = await self._read()
            match payload[0] if payload else wire.COM_QUIT:
                case wire.COM_QUIT:
                    return
                case wire.COM_PING | wire.COM_INIT_DB | wire.COM_REGISTER_SLAVE:
                    await self._send(wire.ok())
                case wire.COM_QUERY:
                    await self._query(payload[1:].decode(errors="replace").strip())
                case wire.COM_BINLOG_DUMP:
                    await self._dump(wire.dump_of(payload))
                    return
                case unknown:
                    await self._send(wire.error(wire.ER_UNKNOWN_COMMAND, f"unknown command {unknown}"))

    async def refuse(self, code: int, message: str) -> None:
        """Say why and end."""
        await self._send(wire.error(code, message))

    # -- below ------------------------------------------------------------------------------------------------------

    async def _handshake(self) -> bool:
        challenge = wire.salt()
        await self._send(wire.greeting(challenge, self._number))
        login = wire.login_of(await self._read())
        proof = login.proof
        if login.plugin != wire.NATIVE:
            await self._send(wire.switch_to_native(challenge))
            proof = await self._read()
        server = self._server
        if not wire.proves(login.user, proof, user=server.user, password=server.password, challenge=challenge):
            log.warning("serve.denied", peer=str(self._writer.get_extra_info("peername")))
            await self._send(wire.error(wire.ER_ACCESS_DENIED, "Access denied", state="28000"))
            return False
        await self._send(wire.ok())
        return True

    async def _read(self) -> bytes:
        head = await self._reader.readexactly(4)
        size = int.from_bytes(head[:3], "little")
        if size > COMMAND_BYTES_MAX:
            raise MalformedStream(f"a command of {size} bytes, at most {COMMAND_BYTES_MAX} are taken")
        self._sequence = (head[3] + 1) & 0xFF
        return await self._reader.readexactly(size)

    async def _send(self, *payloads: bytes) -> None:
        packets = wire.EventPackets(self._sequence)
        self._writer.write(b"".join(packets.payload(payload) for payload in payloads))
        self._sequence = (self._sequence + len(payloads)) & 0xFF
        await self._writer.drain()

    async def _query(self, query: str) -> None:
        assigned = wire.assignment(query)
        lower = query.lower()
        if assigned is not None:
            self._variables[assigned[0]] = assigned[1]
            await self._send(wire.ok())
        elif lower.startswith(("set ", "kill ")):
            await self._send(wire.ok())
        elif (asked := _GTID_POS.fullmatch(query)) is not None:
            await self._value("BINLOG_GTID_POS", await asyncio.to_thread(self._position_at, asked[1], int(asked[2])))
        elif (asked := _SELECT.fullmatch(query)) is not None and (value := self._known(asked[1].lower())) is not None:
            await self._value(asked[1], value)
        elif (asked := _SHOW.fullmatch(query)) is not None:
            value = {"server_id": str(self._server.server_id), "rpl_semi_sync_master_enabled": "ON"}.get(
                asked[1].lower()
            )
            found = () if value is None else ((asked[1], value),)
            await self._send(*wire.rows(("Variable_name", "Value"), found))
        else:
            await self._send(wire.error(wire.ER_PARSE, "a replicator answers only what replicas ask", state="42000"))

    async def _value(self, name: str, value: str | None) -> None:
        await self._send(*wire.rows((name,), ((value,),)))

    def _known(self, name: str) -> str | None:
        if name == "unix_timestamp()":
            # The replica takes it to show how many seconds it is behind; nothing is judged by it.
            return str(clock.utc_seconds())
        if name in ("@@global.server_id", "@@server_id"):
            return str(self._server.server_id)
        return self._CONSTANTS.get(name)

    def _position_at(self, file: str, offset: int) -> str | None:
        one = self._server.archive.epochs.get(self._epoch() or 0)
        position = None if one is None else lookup.position_at(one, file, offset)
        return None if position is None else str(position)

    def _epoch(self) -> int | None:
        text = self._variables.get("oscar_ha_epoch", "")
        return int(text) if text.isdecimal() and len(text) <= 10 else None

    async def _dump(self, dump: wire.Dump) -> None:
        task = asyncio.current_task()
        assert task is not None, "a session is a task"
        streams, server = self._server.streams, self._server
        if (older := streams.get(dump.server_id)) is not None:
            older.cancel()
        streams[dump.server_id] = task
        server.metrics.standbys.set(len(streams))
        semi_sync = self._variables.get("rpl_semi_sync_slave", "0") != "0"
        packets = wire.EventPackets(self._sequence, semi_sync=semi_sync)
        try:
            await self._stream(dump, packets)
        except Ended:
            await self._last(packets.payload(wire.end()))
        except OscarHaError as error:
            log.warning("serve.refused", replica=dump.server_id, error=str(error))
            await self._last(packets.payload(wire.error(wire.ER_BINLOG, str(error))))
        finally:
            if streams.get(dump.server_id) is task:
                del streams[dump.server_id]
            server.metrics.standbys.set(len(streams))

    async def _last(self, data: bytes) -> None:
        self._writer.write(data)
        with suppress(OSError):
            await self._writer.drain()

    async def _stream(self, dump: wire.Dump, packets: wire.EventPackets) -> None:
        server = self._server
        stream = Stream(server.archive, packets, self._writer, server.news, server.metrics, server_id=server.server_id,
                        heartbeat_seconds=self._heartbeat_seconds(), epoch=self._epoch(),
                        until_end=bool(dump.flags & DUMP_NON_BLOCK))  # fmt: skip
        if stream.epoch is not None:
            await stream.follow_file(dump.file, dump.offset)
        state = self._variables.get("slave_connect_state")
        if state is None:
            raise Refused("this archive is read by GTID", hint="CHANGE MASTER TO master_use_gtid=slave_pos")
        log.info("serve.attached", replica=dump.server_id, position=state)
        await stream.follow_place(await self._located(dump, Position.parse(state)))

    async def _located(self, dump: wire.Dump, wanted: Position) -> lookup.Place:
        """Find the replica's place; one that is ahead is let go without an error until its patience has run out.

        After an error 1236 MariaDB's IO thread does not come back by itself; after a lost connection it does.
        """
        since = self._server.ahead_since.setdefault(dump.server_id, clock.now())
        held = clock.after(clock.now(), AHEAD_HELD_MS)
        while True:
            news = self._server.news.next
            try:
                place = await asyncio.to_thread(lookup.locate, self._server.archive, wanted)
            except NotYet:
                if clock.ms_between(since, clock.now()) >= AHEAD_WAIT_MS:
                    del self._server.ahead_since[dump.server_id]
                    raise
                if clock.seconds_left(held) == 0.0:
                    raise EOFError from None
                with suppress(TimeoutError):
                    async with asyncio.timeout(clock.seconds_left(held)):
                        await news.wait()
            else:
                self._server.ahead_since.pop(dump.server_id, None)
                return place

    def _heartbeat_seconds(self) -> float:
        text = self._variables.get("master_heartbeat_period", "")
        if not text.isdecimal() or int(text[:20]) == 0:
            return HEARTBEAT_SECONDS_DEFAULT
        return max(HEARTBEAT_SECONDS_MIN, int(text[:20]) / NANOS_PER_SECOND)
