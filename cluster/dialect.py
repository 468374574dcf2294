"""Everything that differs between database engines stays behind these two Protocols.

`Dialect` needs no connection: options, accounts, texts. `Session` is one administrator's connection; its calls block, and
every call ends within the deadline the session was opened with. No caller writes SQL of its own to control a server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from cluster.settings import Node, Replicator, Secrets, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one cheap query says of a server."""

    read_only: bool
    position: str
    """Everything this server has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replication:
    """The state of native replication. A server that has no source has none of these."""

    host: str
    port: int
    receiving: bool
    applying: bool
    complete: bool
    """Transactions that carry this server's own id are taken, not skipped unseen. Means nothing unless receiving."""
    error: str
    behind_seconds: float | None
    """What the server itself says; None when it does not know."""
    delay_seconds: int = 0
    """What the source committed is applied so much later."""
    until: bool = False
    """It was started to stop at a position."""
    stuck: str = ""
    """What the applier has met in the data and ended at: a row that is there already, or is not there."""
    ca_file: str = ""
    """The authority its source's certificate must be of; empty when it takes plain text, or any certificate."""

    @property
    def running(self) -> bool:
        return self.receiving and self.applying


class Doing(StrEnum):
    """What a client's session does, as far as a fence must know."""

    WAITING = "waiting"
    """It leads a group of commits that waits for a replicator. Ending it releases the others of its group as done."""
    KILLED = "killed"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSession:
    """A session that may write: not one of replication."""

    number: int
    user: str
    doing: Doing


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """A server made ready to be opened: the file its epoch begins with, the position before its first event."""

    server_id: int
    file: str
    position: str


class Wait(StrEnum):
    """What a write that does not end waits for."""

    ACKNOWLEDGEMENT = "an acknowledgement"
    """Some commit waits for a replicator: whoever is behind it in the queue waits for that too."""
    LOCK = "a lock that another session holds"
    OTHER = "nothing that the server names"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How full a server is, and what one write waits for."""

    connections: int
    """Those that count towards the limit."""
    connections_max: int
    account: str
    """Who has the most of them, as user@host; empty when there are none."""
    account_connections: int
    wait: Wait | None
    """None: the write that was asked about is not there any more."""


class Session(Protocol):
    """One administrator's connection. Every method raises Unreachable when the server does not answer in time."""

    server_version: str
    number: int
    """What the server calls this session."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def close(self) -> None: ...
    def limit(self, deadline_ms: float) -> None:
        """Have every further call end within `deadline_ms`."""
        ...

    def probe(self) -> Probe:
        """Return read-only state and position in one round trip."""
        ...

    def requirements(self, node: Node) -> list[str]:
        """Return what is wrong with this server's options, each a sentence with the mend."""
        ...

    def replication(self) -> Replication | None:
        """Return the state of native replication, None when there is no source."""
        ...

    def unmet(self, *, waits: bool = True) -> tuple[str, ...]:
        """Return which requirements on an open primary somebody's SET GLOBAL has broken, each a sentence with the mend.

        Without `waits` it is recorded that commits wait for nobody.
        """
        ...

    def meet_requirements(self, *, waits: bool = True) -> None:
        """Put back what `unmet` tells, as far as that does not have to wait for a commit. Safe to repeat."""
        ...

    def places(self) -> tuple[Path, ...]:
        """Return the folders in which this server writes, as it names them itself."""
        ...

    def load(self, writer: int | None) -> Load:
        """Return how full the server is, and what the session `writer` waits for. Touches no disk."""
        ...

    def semi_sync_on(self) -> bool:
        """Return whether commits wait for a replicator."""
        ...

    def columns(self, table: str) -> tuple[list[tuple[str, str, str, str | None, str]], list[tuple[str, str, str]]]:
        """Return what tables of that name consist of: (database, table, column, character set, type), and their keys."""
        ...

    def binary_logs(self) -> list[tuple[str, int]]:
        """Return path and size of every binlog file, oldest first."""
        ...

    # -- closing --------------------------------------------------------------------------------------------------

    def lock_accounts(self) -> int:
        """Lock every account that may write to a read-only server, and mark it as locked by us. Returns how many."""
        ...

    def bypassing_accounts(self) -> tuple[str, ...]:
        """Return the unlocked accounts, ours aside, that may write to a read-only server."""
        ...

    def close_writes(self) -> None:
        """Make the server read-only. Blocks until every running commit has ended."""
        ...

    def closing_waits(self) -> bool:
        """Return whether a `close_writes` of another session is waiting: no new write can start."""
        ...

    def waits_for_backup(self) -> bool:
        """Return whether somebody's write waits for the locks of a running physical backup."""
        ...

    def client_sessions(self, keep: frozenset[int]) -> tuple[ClientSession, ...]:
        """Return every session but those numbered in `keep` and those of replication."""
        ...

    def kill(self, number: int) -> None:
        """End a session. One that is gone already is fine."""
        ...

    def shut_down(self) -> None:
        """Let the server process end by itself."""
        ...

    def commits_stop_waiting(self) -> None:
        """Switch semi-sync off. Releases waiting commits as done: call only when no client session is left, or when it is
        recorded that durability is degraded.
        """
        ...

    def commits_wait_again(self) -> bool:
        """Switch semi-sync on; return whether commits wait now, and nothing that was asked for earlier can change that."""
        ...

    # -- following and opening --------------------------------------------------------------------------------------

    def follow(self, source: Replicator, *, delay_seconds: int = 0) -> None:
        """Replicate from `source` from where this server is. Safe to repeat; what does not run is started again.

        Everything is applied `delay_seconds` after its commit, by the clock of the primary.
        Nothing is applied before the source has proved that nothing will be skipped. Raises Refused when it cannot.
        """
        ...

    def hold(self, source: Replicator, position: str | None) -> str:
        """Stand still with exactly `position` applied, None for where it stands; return what is applied now.

        If that is less, it runs there from `source` by itself, without any delay, and stops. Safe to repeat. What is
        applied beyond it stays. Raises Refused as `follow` does.
        """
        ...

    def stop_following(self) -> None:
        """Stop both replication threads. Safe to repeat."""
        ...

    def stop_applying(self) -> str:
        """Stop the applier alone, the receiver goes on; return what is applied. Safe to repeat."""
        ...

    def apply_until(self, file: str, offset: int, position: str, *, wait_seconds: float) -> str:
        """Apply up to this place of the primary's binlog, which is `position`, and stop there; return what is applied.

        Ends earlier, with less, when the time is over: then the applier still runs.
        """
        ...

    def apply_on(self) -> None:
        """Let the applier run again without an end. Safe to repeat."""
        ...

    def applied(self, position: str, *, wait_seconds: float) -> bool:
        """Wait until `position` is applied; return whether it is."""
        ...

    def applying(self) -> str:
        """Return what the applier does now and with which table, in the server's words; empty when it waits."""
        ...

    def promote(self) -> Promoted:
        """Forget the source, begin a new binlog file, let commits wait for a replicator. Still read-only."""
        ...

    def unlock_accounts(self) -> int:
        """Unlock the accounts that `lock_accounts` or the init file locked, no others. Returns how many."""
        ...

    def open_writes(self, *, events: bool) -> None:
        """Make the server writable, and start its event scheduler if `events`."""
        ...

    # -- our schema -------------------------------------------------------------------------------------------------

    def make_schema(self) -> None:
        """Make schema `oscar_ha` and its tables if they are missing."""
        ...

    def write_epoch(self, epoch: int, primary: str) -> None:
        """Write the row of this epoch."""
        ...

    def write_heartbeat(self, epoch: int) -> None:
        """Write the heartbeat row."""
        ...

    def heartbeat_age_ms(self) -> float | None:
        """Return the age of the newest heartbeat row, None when there is none. Needs synchronised wall clocks."""
        ...


class Dialect(Protocol):
    """One engine."""

    def server_options(self, node: Node, settings: Settings) -> Mapping[str, str]:
        """Return the options every server of the cluster must have, in the words of an option file."""
        ...

    def account_statements(self, settings: Settings, secrets: Secrets) -> tuple[str, ...]:
        """Return the SQL that makes our three accounts, to be run on each node before it joins; nothing is logged."""
        ...

    def born_fenced_init_file(self, settings: Settings) -> str:
        """Return SQL for the server's `init_file`: run at every start, before any client can connect."""
        ...

    def connect(self, node: Node, settings: Settings, secrets: Secrets, *, deadline_ms: float) -> Session:
        """Return a session on the admin port, else on the port. Raises Unreachable, or BadInput for a wrong password."""
        ...


def dialect_of(settings: Settings) -> Dialect:
    """Return the dialect that the settings name."""
    from cluster.mariadb import MariaDb  # here, because mariadb.py needs the types above

    match settings.engine:
        case "mariadb":
            return MariaDb()
