"""The donor's worker, a process of its own: `python -m healthcheck.seed_giving`, its order on standard input.

It yields to the database (nice, ionice), holds one buffer, and says how the producer ended: a producer that died is
never taken for the end of the data. Whoever kills this process kills the backup with it, and its locks are gone.
"""

import hashlib
import hmac
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import clock, mariadb_backup
from cluster.errors import OscarHaError, Unauthorized
from healthcheck import seed_framing as framing
from healthcheck import seed_link as link
from healthcheck.seed_framing import Kind, Trailer
from healthcheck.seed_orders import GiveOrder, Line, last_words, read_order, say, say_error

ALIVE_SECONDS = 1.0
PRODUCER_END_SECONDS_MAX = 60
BYTES_PER_MEGABYTE = 1_000_000
DEFAULTS_NAME = "oscar-ha-seed"
NOT_COPIED = ("binlog.", "relay", "master-bin.", "mysql-bin.", "ib_logfile", "ibtmp")
POLITE = ("nice", "-n", "19", "ionice", "-c", "2", "-n", "7")
"""Lowest priorities that still go on when the machine is busy."""


def main() -> None:
    """Give once."""
    try:
        give(read_order(GiveOrder))
    except OscarHaError as error:
        say_error(error)
        sys.exit(error.exit_code)


def give(order: GiveOrder) -> None:
    """Wait for the receiver, give it everything, say how it ended."""
    link.require_private(order.host, order.tls)
    listening = link.listen(order.host, order.port)
    say(Line(port=int(listening.getsockname()[1])))
    with link.accepted(listening, order.tls, order.deadline_ms) as connection:
        _admit(connection, order.token)
        scratch = Path(tempfile.mkdtemp(prefix="oscar-ha-give-"))
        try:
            connection.sendall(framing.start(data_bytes(order.data_directory)))
            ended = _stream(connection, order, scratch)
            connection.sendall(framing.trailer(ended))
            link.receive_exactly(connection, 1)  # the receiver has it all: closing earlier could cut the end off
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    if ended.exit_status != 0:
        raise OscarHaError(f"mariadb-backup ended with {ended.exit_status}: {ended.said}")
    say(Line(done=True, bytes=ended.bytes))


def data_bytes(directory: Path) -> int:
    """Return about how much a copy will be: binary logs and redo logs are not copied."""
    return sum(_size(path) for path in directory.rglob("*") if not path.name.startswith(NOT_COPIED))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # dropped while we looked
        return 0


def _admit(connection: socket.socket, token: str) -> None:
    said = link.receive_exactly(connection, framing.HELLO_BYTES)
    if not hmac.compare_digest(said, framing.hello(bytes.fromhex(token))):
        raise Unauthorized("somebody came without the token of this copy")


def _stream(connection: socket.socket, order: GiveOrder, scratch: Path) -> Trailer:
    digest, count, log = hashlib.sha256(), 0, scratch / "log"
    pace = _Pace(order.megabytes_per_second_max)
    with _producer(order, scratch, log) as producer:
        assert producer.stdout is not None, "it was asked for"
        descriptor = producer.stdout.fileno()
        said_at = clock.now()
        while True:
            if not select.select([descriptor], [], [], ALIVE_SECONDS)[0]:
                connection.sendall(framing.frame(Kind.ALIVE))
                said_at = _say_often(said_at, count)
                continue
            data = os.read(descriptor, framing.PAYLOAD_BYTES_MAX)
            if not data:
                break
            digest.update(data)
            count += len(data)
            connection.sendall(framing.frame(Kind.DATA, data))
            said_at = _say_often(said_at, count)
            pace.sent(len(data))
        status = producer.wait(PRODUCER_END_SECONDS_MAX)
    said = last_words(log) if status else ""
    return Trailer(exit_status=status, bytes=count, sha256=digest.hexdigest(), said=said)


def _say_often(said_at: clock.Nanos, count: int) -> clock.Nanos:
    now = clock.now()
    if clock.ms_between(said_at, now) < ALIVE_SECONDS * link.MS_PER_SECOND:
        return said_at
    say(Line(bytes=count))
    return now


@contextmanager
def _producer(order: GiveOrder, scratch: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the backup; it has ended when this ends. Its option file with the password is never on a disk."""
    descriptor = os.memfd_create(DEFAULTS_NAME, 0)
    try:
        os.fchmod(descriptor, 0o600)
        text = mariadb_backup.defaults_text(order.user, order.password, order.socket, order.data_directory)
        os.write(descriptor, text.encode())
        command = mariadb_backup.give_command(f"/proc/self/fd/{descriptor}", scratch / "target")
        with log.open("wb") as output:
            producer = subprocess.Popen(
                ("setpriv", "--pdeathsig", "KILL", *POLITE, *command),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, pass_fds=(descriptor,),
            )  # fmt: skip
    finally:
        os.close(descriptor)
    try:
        yield producer
    finally:
        producer.kill()
        producer.wait()
        if producer.stdout is not None:
            producer.stdout.close()


class _Pace:
    """Waits where more was sent than may be."""

    def __init__(self, megabytes_per_second_max: int | None) -> None:
        self._limit = None if megabytes_per_second_max is None else megabytes_per_second_max * BYTES_PER_MEGABYTE
        self._began, self._sent = clock.now(), 0

    def sent(self, count: int) -> None:
        if self._limit is None:
            return
        self._sent += count
        due = clock.after(self._began, self._sent / self._limit * link.MS_PER_SECOND)
        _sleep(clock.seconds_left(due))


def _sleep(seconds: float) -> None:
    if seconds > 0:
        select.select([], [], [], seconds)


def new_token() -> str:
    """Return a token for one copy."""
    return secrets.token_hex(framing.TOKEN_BYTES)


if __name__ == "__main__":
    main()
