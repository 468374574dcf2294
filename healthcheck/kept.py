"""Sessions that are kept open between the calls of one thread: what must be quick does not connect first.

A fence, a promotion and an opening are what clinics wait for, and a connection costs five round trips before its first
statement. A session is asked something before it is used again, so one that a fence or a restart has ended is not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.dialect import Session
from cluster.errors import OscarHaError


class Kept:
    """At most `count` idle sessions. Only one thread at a time may use it."""

    def __init__(self, connect: Callable[[float], Session], count: int) -> None:
        self._connect = connect
        self._count = count
        self._idle: list[Session] = []

    @contextmanager
    def session(self, deadline_ms: float) -> Iterator[Session]:
        """Lend a session whose every call ends within `deadline_ms`, a new one when none is kept. Raises Unreachable.

        After a call that failed it is closed.
        """
        session = self._take(deadline_ms) or self._connect(deadline_ms)
        try:
            yield session
        except BaseException:
            session.close()
            raise
        if len(self._idle) < self._count:
            self._idle.append(session)
        else:
            session.close()

    def warm(self, deadline_ms: float) -> None:
        """Have `count` sessions that answer. Raises Unreachable."""
        self._idle = [one for _ in range(len(self._idle)) if (one := self._take(deadline_ms)) is not None]
        while len(self._idle) < self._count:
            self._idle.append(self._connect(deadline_ms))

    def _take(self, deadline_ms: float) -> Session | None:
        while self._idle:
            session = self._idle.pop()
            try:
                session.limit(deadline_ms)
                session.probe()
            except OscarHaError:
                session.close()
            else:
                return session
        return None
