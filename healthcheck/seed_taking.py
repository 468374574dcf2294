"""The receiver's worker, a process of its own: `python -m healthcheck.seed_taking`, its order on standard input.

It fills a fresh directory beside the old one and proves it: every program's exit code, the count and the checksum of the
bytes, and a server that starts on the copy and is told its position. It never touches the data directory.
"""

import hashlib
import os
import pwd
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pymysql

from cluster import clock, mariadb_backup
from cluster.errors import DeadlinePassed, MalformedStream, OscarHaError, Refused
from cluster.records import SeedPhase
from healthcheck import seed_framing as framing
from healthcheck import seed_link as link
from healthcheck.seed_framing import Framer, Kind, Need, Trailer
from healthcheck.seed_orders import Line, TakeOrder, last_words, read_order, say, say_error

LOOK_SECONDS = 0.25
WRITE_SECONDS_MAX = 60.0
UNPACKED_SECONDS_MAX = 300.0
PREPARE_SECONDS_MAX = 6 * 3600.0
PROVE_SECONDS_MAX = 600.0
RESERVE_BYTES = 64 * 1024 * 1024
"""Left free on the disk that the copy grows on."""
RECEIVED = b"\n"


def main() -> None:
    """Take once."""
    try:
        take(read_order(TakeOrder))
    except OscarHaError as error:
        say_error(error)
        sys.exit(error.exit_code)


def take(order: TakeOrder) -> None:
    """Fill the fresh directory and prove it."""
    rooms = Path(tempfile.mkdtemp(prefix="oscar-ha-take-"))
    try:
        say(Line(phase=SeedPhase.CONNECTING))
        order.fresh.mkdir(mode=0o700)
        _copy(order, rooms)
        say(Line(phase=SeedPhase.PREPARING))
        _run(mariadb_backup.prepare_command(order.fresh), rooms / "prepare", PREPARE_SECONDS_MAX)
        backup = mariadb_backup.read_position(order.fresh)
        _give_to_its_owner(order)
        say(Line(phase=SeedPhase.PROVING))
        say(Line(position=_prove(order, rooms, backup), done=True))
    except OSError as error:
        raise OscarHaError(
            f"{order.fresh}: {error.strerror or error}", hint="free disk space, or mend the permissions"
        ) from error
    finally:
        shutil.rmtree(rooms, ignore_errors=True)


# -- copying ----------------------------------------------------------------------------------------------------------


def _copy(order: TakeOrder, rooms: Path) -> None:
    link.require_private(order.host, order.tls)
    with link.connected(order.host, order.port, order.tls, order.deadline_ms) as connection:
        connection.sendall(framing.hello(bytes.fromhex(order.token)))
        with _unpacking(order.fresh, rooms / "unpack") as unpacker:
            copy = _Copy(order.fresh, unpacker)
            framer = Framer()
            while copy.trailer is None:
                framer.feed(link.receive(connection))
                while (found := framer.next_frame()) is not Need.DATA:
                    copy.take(found.kind, found.payload)
            unpacker.end()
        copy.require_whole()
        with suppress(OSError):  # a donor that went before its thanks came gave everything all the same
            connection.sendall(RECEIVED)


class _Copy:
    """Counts and hands on what comes; knows at the end whether it is all."""

    def __init__(self, fresh: Path, unpacker: "_Unpacker") -> None:
        self.trailer: Trailer | None = None
        self._fresh = fresh
        self._unpacker = unpacker
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._said_at = clock.now()

    def take(self, kind: Kind, payload: bytes) -> None:
        """Deal with one frame."""
        if self.trailer is not None:
            raise MalformedStream("something came after the trailer")
        match kind:
            case Kind.START:
                total = framing.read_start(payload)
                _require_room(self._fresh, total)
                say(Line(phase=SeedPhase.COPYING, bytes=0, bytes_total=total))
            case Kind.DATA:
                self._digest.update(payload)
                self._bytes += len(payload)
                self._unpacker.write(payload)
                self._say_often()
            case Kind.ALIVE:
                self._say_often()
            case Kind.TRAILER:
                self.trailer = framing.read_trailer(payload)

    def require_whole(self) -> None:
        """Raise unless the producer ended well and everything it sent is here."""
        ended = self.trailer
        if ended is None or ended.exit_status != 0:
            said = ended.said if ended else "it said nothing"
            raise OscarHaError(f"the donor's backup failed: {said}", hint="mend that on the donor, then try again")
        if (ended.bytes, ended.sha256) != (self._bytes, self._digest.hexdigest()):
            raise MalformedStream(f"{self._bytes} bytes came, the donor sent {ended.bytes}, or others")
        say(Line(bytes=self._bytes))

    def _say_often(self) -> None:
        now = clock.now()
        if clock.ms_between(self._said_at, now) >= LOOK_SECONDS * link.MS_PER_SECOND:
            self._said_at = now
            say(Line(bytes=self._bytes))


class _Unpacker:
    """`mbstream`, fed through a pipe that never blocks us for ever."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        assert process.stdin is not None, "it was asked for"
        self._process = process
        self._log = log
        self._descriptor = process.stdin.fileno()
        os.set_blocking(self._descriptor, False)

    def write(self, data: bytes) -> None:
        """Hand data over. Raises OscarHaError with the unpacker's own words when it has ended."""
        view, deadline = memoryview(data), clock.after(clock.now(), WRITE_SECONDS_MAX * link.MS_PER_SECOND)
        while view:
            left = clock.seconds_left(deadline)
            if left == 0.0:
                raise DeadlinePassed(f"the disk took nothing for {WRITE_SECONDS_MAX:.0f} s", hint="look at the disk")
            if select.select([], [self._descriptor], [], min(left, LOOK_SECONDS))[1]:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    self.end()
                    raise OscarHaError("mbstream ended before the data did") from None

    def end(self) -> None:
        """Say that this was all, and require that it ended well."""
        assert self._process.stdin is not None, "it was asked for"
        if not self._process.stdin.closed:
            self._process.stdin.close()
        status = _wait(self._process, UNPACKED_SECONDS_MAX, "mbstream")
        if status != 0:
            raise OscarHaError(
                f"the copy cannot be written: {last_words(self._log)}", hint="free disk space, then try again"
            )


@contextmanager
def _unpacking(fresh: Path, log: Path) -> Iterator[_Unpacker]:
    with _started(mariadb_backup.unpack_command(fresh), log, stdin=subprocess.PIPE) as process:
        yield _Unpacker(process, log)


def _require_room(fresh: Path, total: int) -> None:
    free = shutil.disk_usage(fresh).free
    if total + RESERVE_BYTES > free:
        raise Refused(
            f"the copy needs about {total + RESERVE_BYTES} bytes, {fresh.parent} has {free} left",
            hint="free disk space there; the old data directory stays until the new one is proven",
        )


def _give_to_its_owner(order: TakeOrder) -> None:
    """As root: what was unpacked belongs to the account that the server runs under."""
    name = mariadb_backup.read_options(order.option_file).get("user", "")
    if os.geteuid() != 0 or name in ("", "root"):
        return
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise OscarHaError(f"user={name} of {order.option_file} does not exist", hint="mend the option file") from None
    for place in (order.fresh, *order.fresh.rglob("*")):
        os.chown(place, account.pw_uid, account.pw_gid, follow_symlinks=False)


# -- proving ----------------------------------------------------------------------------------------------------------


def _prove(order: TakeOrder, rooms: Path, backup: str) -> str:
    """Start a server on the copy that nobody can reach, tell it its position, and let it end by itself."""
    private = rooms / "private"
    private.mkdir(mode=0o700)
    rooms.chmod(0o711)  # the server may run under another account: it must get through, not look around
    owner = order.fresh.stat()
    os.chown(private, owner.st_uid, owner.st_gid)
    log = private / mariadb_backup.PRIVATE_LOG
    command = mariadb_backup.private_command(order.option_file, order.fresh, private)
    with _started(command, rooms / "server") as server:
        if _begins(server, private / "socket"):
            return _told(order, private, backup, server)
    if not mariadb_backup.PREPARED.search(_text(log)):
        raise _no_start(order, log, rooms / "server")
    with _started(
        mariadb_backup.rollback_command(order.option_file, order.fresh, private), rooms / "rollback"
    ) as server:
        _wait(server, PROVE_SECONDS_MAX, "the server that rolls back")
    log.unlink()
    with _started(command, rooms / "server") as server:
        if not _begins(server, private / "socket"):
            raise _no_start(order, log, rooms / "server")
        return _told(order, private, backup, server)


def _no_start(order: TakeOrder, *logs: Path) -> OscarHaError:
    """Return why no server starts on the copy; one that found no room may not even have had a log."""
    said = next((last_words(log) for log in logs if log.exists() and log.stat().st_size), "it said nothing")
    full = shutil.disk_usage(order.fresh).free < RESERVE_BYTES
    hint = "have both nodes the same storage options (innodb_page_size, lower_case_table_names)?"
    return OscarHaError(f"no server starts on the copy: {said}", hint="free disk space, it is full" if full else hint)


def _begins(server: "subprocess.Popen[bytes]", socket: Path) -> bool:
    """Return whether it accepts connections; False when it has ended instead."""
    deadline = clock.after(clock.now(), PROVE_SECONDS_MAX * link.MS_PER_SECOND)
    while not socket.exists():
        if server.poll() is not None:
            return False
        if clock.seconds_left(deadline) == 0.0:
            raise DeadlinePassed(f"the server on the copy does not start within {PROVE_SECONDS_MAX:.0f} s")
        _pause()
    return True


def _told(order: TakeOrder, private: Path, backup: str, server: "subprocess.Popen[bytes]") -> str:
    try:
        position = mariadb_backup.tell_position(private / "socket", order.user, order.password, backup, order.fresh)
    except pymysql.MySQLError as error:
        raise OscarHaError(f"the copy cannot be told its position: {error.args[-1]}") from error
    status = _wait(server, PROVE_SECONDS_MAX, "the server on the copy")
    if status != 0:
        raise OscarHaError(
            f"the server on the copy ended with {status}: {last_words(private / mariadb_backup.PRIVATE_LOG)}"
        )
    return position


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


# -- programs ---------------------------------------------------------------------------------------------------------


def _run(command: Sequence[str], log: Path, seconds_max: float) -> None:
    with _started(command, log) as process:
        status = _wait(process, seconds_max, command[0])
    if status != 0:
        raise OscarHaError(f"{command[0]} ended with {status}: {last_words(log)}")


@contextmanager
def _started(command: Sequence[str], log: Path, stdin: int = subprocess.DEVNULL) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program; it has ended when this ends, and it dies with us."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", *command), stdin=stdin, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None and not process.stdin.closed:
            os.set_blocking(process.stdin.fileno(), True)
            process.stdin.close()


def _wait(process: "subprocess.Popen[bytes]", seconds_max: float, what: str) -> int:
    deadline = clock.after(clock.now(), seconds_max * link.MS_PER_SECOND)
    while process.poll() is None:
        if clock.seconds_left(deadline) == 0.0:
            raise DeadlinePassed(f"{what} does not end within {seconds_max:.0f} s")
        _pause()
    return process.returncode


def _pause() -> None:
    """Let some time pass, and tell the watchdog that we live."""
    say(Line())
    select.select([], [], [], LOOK_SECONDS)


if __name__ == "__main__":
    main()
