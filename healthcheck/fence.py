"""Closing a database so that nobody who was not told OK is ever told OK, and nobody writes any more. Blocking calls.

A commit that waits for its acknowledgement must not be released. Its session leads a *group* of commits: when the leader
is killed, the others of its group are answered OK, although no replicator has them (decision 0012). So the order is:
1. lock the accounts that may write to a read-only server, so that none of them comes back;
2. ask for read-only, in a session of its own: while that waits for the running commits no new write can begin;
3. kill every client session except the leaders; 4. kill the leaders; 5. now read-only is reached; 6. kill who is left.
Semi-sync stays on throughout. Whoever calls this kills the server process when it does not succeed in time.
"""

import threading
import time
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

from cluster import clock
from cluster.clock import Nanos
from cluster.dialect import Doing, Session
from cluster.errors import DeadlinePassed, OscarHaError, Refused

POLL_SECONDS = 0.003
SETTLE_MS = 50.0
"""A write that has just ended politely may take this long to tell its client so; a long report is not waited for."""
Connect = Callable[[float], AbstractContextManager[Session]]
"""Opens a session whose every call ends within the given milliseconds."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A database that is read-only, without clients, and everything it has."""

    position: str


def close(connect: Connect, *, patience: Nanos, deadline: Nanos, keep: frozenset[int]) -> Closed:
    """Close the database. Until `patience` running writes may end by themselves. Raises when it cannot by `deadline`."""
    with connect(_ms_left(deadline)) as control, connect(_ms_left(deadline)) as closer:
        keep = keep | {control.number, closer.number}
        control.lock_accounts()
        closing = _Closing(closer)
        while not closing.ended.wait(POLL_SECONDS) and clock.now() < patience:
            pass
        while not closing.ended.is_set():
            _require_time(deadline)
            if control.closing_waits():
                _kill_all(control, keep)
            closing.ended.wait(POLL_SECONDS)
        closing.raise_failure()
        _let_settle(control, keep, min(patience, clock.after(clock.now(), SETTLE_MS)))
        # Whoever comes from here on meets a read-only server, and no account that could write to it can log in.
        before = {one.number for one in control.client_sessions(keep)}
        _kill_until_none(control, keep, deadline, only=before)
        if control.replication() is not None:
            control.stop_following()  # a fenced server stands still: its position is final
        return Closed(_verified_position(control))


def close_accounts(session: Session) -> int:
    """Lock accounts that came unlocked by replication or by hand on a closed server. Returns how many."""
    return session.lock_accounts()


def let_commits_go(session: Session, *, deadline: Nanos, keep: frozenset[int]) -> None:
    """Switch semi-sync off on a closed server that will follow. Raises when a commit still waits."""
    if not session.semi_sync_on():
        return
    if not session.probe().read_only:
        raise Refused("semi-sync stays on while the database is writable", hint="fence it first")
    _kill_until_none(session, keep, deadline)
    session.commits_stop_waiting()


class _Closing:
    """`close_writes` in a thread of its own, because it blocks until every running commit has ended."""

    def __init__(self, session: Session) -> None:
        self.ended = threading.Event()
        self._session = session
        self._failure: OscarHaError | None = None
        threading.Thread(target=self._run, name="close-writes", daemon=True).start()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._session.close_writes()
        except OscarHaError as error:
            self._failure = error
        finally:
            self.ended.set()


def _kill_all(session: Session, keep: frozenset[int], only: Container[int] | None = None) -> bool:
    """Kill all but the leaders; the leaders only once nobody else is alive. Return whether nobody of `only` is left."""
    there = [one for one in session.client_sessions(keep) if only is None or one.number in only]
    others = [one for one in there if one.doing in (Doing.IDLE, Doing.BUSY)]
    leaders = [one for one in there if one.doing is Doing.WAITING]
    for one in others or leaders:
        with suppress(Refused):
            session.kill(one.number)
    return not others and not leaders


def _let_settle(session: Session, keep: frozenset[int], until: Nanos) -> None:
    """Wait until every session has answered its client: the lock of a commit goes before its OK."""
    while clock.now() < until and any(one.doing is Doing.BUSY for one in session.client_sessions(keep)):
        time.sleep(POLL_SECONDS)


def _kill_until_none(
    session: Session, keep: frozenset[int], deadline: Nanos, only: Container[int] | None = None
) -> None:
    while not _kill_all(session, keep, only):
        _require_time(deadline)
        time.sleep(POLL_SECONDS)


def _verified_position(session: Session) -> str:
    """Believe what the server says now, not what was asked of it."""
    probe = session.probe()
    bypassing = session.bypassing_accounts()
    if not probe.read_only or bypassing:
        raise Refused(f"the database is not closed: read_only={probe.read_only}, unlocked: {', '.join(bypassing)}")
    return probe.position


def _require_time(deadline: Nanos) -> None:
    if clock.now() >= deadline:
        raise DeadlinePassed("the database was not closed in time")


def _ms_left(deadline: Nanos) -> float:
    return max(1.0, clock.ms_between(clock.now(), deadline))
