"""The server replicas attach to: it speaks the primary's side of the protocol and streams the archive.

Standbys start by GTID (`@slave_connect_state`), other replicators by epoch, file and offset (`@oscar_ha_epoch`), tools
by file and offset alone. Only durable, whole groups are sent to a reader. Everything from a client is bounded, and has
a deadline.
"""

import asyncio
import itertools
import re
import socket
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import structlog

from cluster import clock, tls
from cluster.clock import Nanos
from cluster.errors import BadInput, OscarHaError, Refused
from cluster.position import Position
from cluster.settings import Tls
from replicator import admission, door, lookup, wire
from replicator.admission import NO_SERVER, Guest, Limits, Twins
from replicator.archive import Archive
from replicator.door import COMMAND_BYTES_MAX, Account, Client
from replicator.frames import Damaged
from replicator.lookup import NotYet
from replicator.metrics import Metrics
from replicator.source import CLUSTER_VARIABLE, DUMP_NON_BLOCK
from replicator.streaming import Ended, News, Stream

BACKLOG = 128
ACCEPT_AGAIN_SECONDS = 0.2
AHEAD_HELD_MS = 1_500
"""So long such a replica is held in one connection: it takes silence for death after its slave_net_timeout."""
AHEAD_WAIT_MS = 10_000
"""A replica that is ahead of the archive is not refused before this: its epoch may be on its way."""
TWINS_HELD_SECONDS = 1.0
"""So long the newer of two with one server id waits, and the older one is served."""
HEARTBEAT_SECONDS_MIN, HEARTBEAT_SECONDS_DEFAULT = 0.1, 1.0
NANOS_PER_SECOND = 1_000_000_000
_GTID_POS = re.compile(r"select\s+binlog_gtid_pos\(\s*'([^']*)'\s*,\s*(\d+)\s*\)", re.IGNORECASE)
_SELECT = re.compile(r"select\s+(@@?[\w.]+|unix_timestamp\(\)|version\(\))(\s+limit\s+1)?;?", re.IGNORECASE)
_SHOW = re.compile(r"show\s+(?:global\s+)?variables\s+like\s+['\"]([\w%]+)['\"];?", re.IGNORECASE)
_STATUS = re.compile(r"show\s+(?:master|binary\s+log|binlog)\s+status;?", re.IGNORECASE)
VARIABLES_MAX = 64
CLUSTER = CLUSTER_VARIABLE.removeprefix("@")
VERSION = wire.SERVER_VERSION.decode().removeprefix("5.5.5-")
log = structlog.get_logger()


class TooMany(Refused):
    """No room for another reader: it may come again."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A stream that is open."""

    server_id: int
    address: str
    task: asyncio.Task[None]


class Server:
    """Listens, and keeps one session per connection."""

    def __init__(
        self, archive: Archive, *, server_id: int, account: Account, metrics: Metrics, files: Tls | None = None,
        known: Set[int] = frozenset(), limits: Limits | None = None, cluster: str | None = None,
    ) -> None:  # fmt: skip
        self.cluster = cluster
        self.archive, self.server_id, self.metrics = archive, server_id, metrics
        self.known, self.limits = known, limits or Limits()
        self.news = News()
        self.suspect: Callable[[str], None] = lambda _: None
        """Is told of a file that a reader found damaged."""
        self.ahead_since: dict[int, Nanos] = {}
        """Replicas that are ahead of the archive, by server id, and since when."""
        self.streams: dict[int, Reading] = {}
        """By the number of their connection."""
        self.twins = Twins()
        self.replaced_by: dict[int, str] = {}
        """Streams that are being ended by a newer one of the same server: by the number of their connection, from where."""
        self._account, self._files = account, files
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._clients: dict[int, Client] = {}
        self._unproven: dict[int, Guest] = {}
        self._asking: dict[int, Guest] = {}
        self._numbers = itertools.count(1)
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises BadInput when the port is in use, or the TLS files are wrong."""
        tls.require(self._files)
        loop = asyncio.get_running_loop()
        try:
            for family, kind, _, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                listener = socket.socket(family, kind)
                self._listeners.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setblocking(False)
                listener.bind(address)
                listener.listen(BACKLOG)
                self._accepting.append(loop.create_task(self._accept(listener)))
        except OSError as error:
            await self.stop()
            raise BadInput(f"replicator: {host}:{port} cannot be listened on: {error.strerror}",
                           hint="end what uses the port, or choose another in the settings") from error  # fmt: skip

    async def stop(self) -> None:
        """End every session."""
        tasks = [*self._accepting, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                bare, address = await loop.sock_accept(listener)
            except OSError as error:  # no handle left: whoever waits is taken when there is one again
                log.warning("serve.accept_failed", error=str(error))
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            number = next(self._numbers)
            self._unproven[number] = Guest(str(address[0]), clock.now())
            self._tasks[number] = loop.create_task(self._serve(bare, number))
            await asyncio.sleep(0)  # it has begun, so it closes what it has when it is ended
            self._make_room(self._unproven, self.limits.handshakes)

    def _make_room(self, guests: dict[int, Guest], room: int) -> None:
        leaving = admission.to_leave(guests, room)
        if leaving is not None:
            del guests[leaving]
            self._tasks[leaving].cancel()

    async def _serve(self, bare: socket.socket, number: int) -> None:
        client: Client | None = None
        try:
            bare.setblocking(False)
            bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self.limits.stalled_ms)
            address = str(bare.getpeername()[0])
            async with asyncio.timeout(self.limits.handshake_ms / 1000):
                client = await door.let_in(bare, number, self._account, self._files)
            self._unproven.pop(number, None)
            if client is not None:
                self._clients[number] = client
                await Session(self, number, address, client).run()
                client.writer.close()
        except (OSError, EOFError, TimeoutError):
            pass  # the other side went away, or said nothing for too long: it comes again when it wants
        except OscarHaError as error:
            log.warning("serve.ended", error=str(error), connection=number)
        except asyncio.CancelledError:
            pass  # the server stops, a newer stream of the same replica took over, or too many came
        finally:
            for guests in (self._unproven, self._asking):
                guests.pop(number, None)
            self._clients.pop(number, None)
            del self._tasks[number]
            if client is not None and not client.writer.is_closing():
                client.writer.transport.abort()

    def asks(self, number: int, address: str) -> None:
        """Note that a client asks something; too many that only ask make room."""
        self._asking[number] = Guest(address, clock.now())
        self._make_room(self._asking, self.limits.asking)

    def begin_stream(self, number: int, server_id: int, address: str) -> None:
        """Note a new stream, which ends an older one of the same server. Raises Refused when there are too many."""
        reading = [one.server_id for one in self.streams.values()]
        why = admission.no_stream_for(server_id, reading, self.known, self.limits)
        if why is not None:
            raise TooMany(why, hint="end a reader that is not needed")
        for older, one in list(self.streams.items()):
            if server_id != NO_SERVER and one.server_id == server_id:
                self._replace(older, one, address)
        self._asking.pop(number, None)
        self.streams[number] = Reading(server_id, address, self._tasks[number])
        self.metrics.standbys.set(len(self.streams))

    def _replace(self, number: int, one: Reading, address: str) -> None:
        """End a stream because the same server begins another; if it still lives, they may be two."""
        client = self._clients.get(number)
        if client is not None and client.lives:
            now, known = clock.now(), self.twins.known(one.server_id, clock.now())
            self.twins.note(one.server_id, (one.address, address), now)
            if not known and self.twins.known(one.server_id, now):
                log.error("serve.twins", server_id=one.server_id, older=one.address, newer=address)
        self.replaced_by[number] = address
        one.task.cancel()

    def end_stream(self, number: int) -> None:
        """Note that a stream has ended."""
        self.streams.pop(number, None)
        self.replaced_by.pop(number, None)
        self.metrics.standbys.set(len(self.streams))


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
        "@@version": VERSION,
        "version()": VERSION,
    }
    _SHOWN: ClassVar[dict[str, str]] = {
        "rpl_semi_sync_master_enabled": "ON",
        "binlog_checksum": "CRC32",
        "binlog_format": "ROW",
        "binlog_row_image": "FULL",
        "version": VERSION,
    }

    def __init__(self, server: Server, number: int, address: str, client: Client) -> None:
        self._server, self._number, self._address = server, number, address
        self._reader, self._writer = client.reader, client.writer
        self._sequence = 0
        self._variables: dict[str, str] = {}

    async def run(self) -> None:
        """Serve the connection until it ends."""
        while True:
            self._server.asks(self._number, self._address)
            async with asyncio.timeout(self._server.limits.command_ms / 1000):
                sequence, payload = await door.read_packet(self._reader, COMMAND_BYTES_MAX)
                self._sequence = (sequence + 1) & 0xFF
                if payload[:1] == bytes((wire.COM_BINLOG_DUMP,)):
                    break
                if not await self._command(payload):
                    return
        await self._dump(wire.dump_of(payload))

    # -- below ------------------------------------------------------------------------------------------------------

    async def _command(self, payload: bytes) -> bool:
        """Answer one command; return whether another may come."""
        match payload[0] if payload else wire.COM_QUIT:
            case wire.COM_QUIT:
                return False
            case wire.COM_PING | wire.COM_INIT_DB | wire.COM_REGISTER_SLAVE:
                await self._send(wire.ok())
            case wire.COM_QUERY:
                await self._query(payload[1:].decode(errors="replace").strip())
            case unknown:
                await self._send(wire.error(wire.ER_UNKNOWN_COMMAND, f"unknown command {unknown}"))
        return True

    async def _send(self, *payloads: bytes) -> None:
        packets = wire.EventPackets(self._sequence)
        self._writer.write(b"".join(packets.payload(payload) for payload in payloads))
        self._sequence = (self._sequence + len(payloads)) & 0xFF
        await self._writer.drain()

    async def _query(self, query: str) -> None:
        assigned = wire.assignment(query)
        lower = query.lower()
        if assigned is not None and assigned[0] == CLUSTER and self._server.cluster not in (None, assigned[1]):
            why = f"this is a replicator of cluster {self._server.cluster!r}, not of {assigned[1][:64]!r}"
            await self._send(wire.error(wire.ER_BINLOG, why))
        elif assigned is not None and len(self._variables) < VARIABLES_MAX:
            self._variables[assigned[0]] = assigned[1]
            await self._send(wire.ok())
        elif lower.startswith(("set ", "kill ")):
            await self._send(wire.ok())
        elif (asked := _GTID_POS.fullmatch(query)) is not None:
            await self._value("BINLOG_GTID_POS", await asyncio.to_thread(self._position_at, asked[1], int(asked[2])))
        elif (asked := _SELECT.fullmatch(query)) is not None and (value := self._known(asked[1].lower())) is not None:
            await self._value(asked[1], value)
        elif (asked := _SHOW.fullmatch(query)) is not None:
            value = (self._SHOWN | {"server_id": str(self._server.server_id)}).get(asked[1].lower())
            found = () if value is None else ((asked[1], value),)
            await self._send(*wire.rows(("Variable_name", "Value"), found))
        elif _STATUS.fullmatch(query) is not None:
            await self._send(*wire.rows(("File", "Position", "Binlog_Do_DB", "Binlog_Ignore_DB"), self._end()))
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

    def _end(self) -> list[tuple[str, ...]]:
        """Return where the archive ends: a tool that names no place begins there."""
        held = [one for one in self._server.archive.epochs.values() if one.segments]
        last = held[-1].segments[-1] if held else None
        return [] if last is None else [(last.file, str(last.boundary), "", "")]

    def _position_at(self, file: str, offset: int) -> str | None:
        one = self._server.archive.epochs.get(self._epoch() or 0)
        position = None if one is None else lookup.position_at(one, file, offset)
        return None if position is None else str(position)

    def _epoch(self) -> int | None:
        text = self._variables.get("oscar_ha_epoch", "")
        return int(text) if text.isdecimal() and len(text) <= 10 else None

    async def _dump(self, dump: wire.Dump) -> None:
        semi_sync = self._variables.get("rpl_semi_sync_slave", "0") != "0"
        packets = wire.EventPackets(self._sequence, semi_sync=semi_sync)
        try:
            if self._server.twins.known(dump.server_id, clock.now()):
                await asyncio.sleep(TWINS_HELD_SECONDS)
            self._server.begin_stream(self._number, dump.server_id, self._address)
            await self._stream(dump, packets)
        except Ended:
            await self._last(packets.payload(wire.end()))
        except asyncio.CancelledError:
            if (newer := self._server.replaced_by.get(self._number)) is not None:
                why = f"another stream of server_id {dump.server_id}, from {newer}, has taken the place of this one"
                self._writer.write(packets.payload(wire.error(wire.ER_SAME_SERVER_ID, why)))
                self._writer.close()
            raise
        except OscarHaError as error:
            log.warning("serve.refused", replica=dump.server_id, error=str(error))
            if isinstance(error, Damaged):
                self._server.suspect(error.file)
            # A standby comes back by itself after every error but 1236; what is damaged is fetched again meanwhile.
            codes = {TooMany: wire.ER_TOO_MANY, Damaged: wire.ER_UNKNOWN}
            code = next((code for kind, code in codes.items() if isinstance(error, kind)), wire.ER_BINLOG)
            await self._last(packets.payload(wire.error(code, str(error))))
        finally:
            self._server.end_stream(self._number)

    async def _last(self, data: bytes) -> None:
        self._writer.write(data)
        with suppress(OSError):
            await self._writer.drain()

    async def _stream(self, dump: wire.Dump, packets: wire.EventPackets) -> None:
        server = self._server
        stream = Stream(server.archive, packets, self._writer, server.news, server.metrics, server_id=server.server_id,
                        heartbeat_seconds=self._heartbeat_seconds(), epoch=self._epoch(),
                        until_end=bool(dump.flags & DUMP_NON_BLOCK),
                        checksum_first=self._variables.get("master_binlog_checksum") != "NONE")  # fmt: skip
        if stream.epoch is not None:
            await stream.follow_file(dump.file, dump.offset)
        state = self._variables.get("slave_connect_state")
        if state is None:
            log.info("serve.attached", replica=dump.server_id, file=dump.file, offset=dump.offset)
            await stream.follow_place(await asyncio.to_thread(lookup.place_of, server.archive, dump.file, dump.offset))
            return
        until = self._variables.get("slave_until_gtid")
        log.info("serve.attached", replica=dump.server_id, position=state, until=until)
        place = await self._located(dump, Position.parse(state))
        await stream.follow_place(place, None if until is None else await self._stop(place, Position.parse(until)))

    async def _stop(self, place: lookup.Place, until: Position) -> lookup.Place:
        """Return where a replica stops that was started with `UNTIL master_gtid_pos`. Raises Refused."""
        if (place.skipped or place.position).covers(until):
            return place
        stop = await asyncio.to_thread(lookup.locate, self._server.archive, until)
        if stop.skipped is not None:
            raise Refused(f"{until} is no place in this archive: the nearest is {stop.position}",
                          hint="oscar-ha archive find tells the position before a transaction")  # fmt: skip
        return stop

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
