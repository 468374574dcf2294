"""Sessions that are kept: asked before they are used again, with the deadline of the call that uses them."""

import pytest

from cluster.dialect import Probe
from cluster.errors import Unreachable
from healthcheck.kept import Kept


class Remembering:
    """A session that remembers its limits; `gone` once a fence has ended it."""

    def __init__(self, deadline_ms: float) -> None:
        self.limits = [deadline_ms]
        self.gone = self.closed = False

    def limit(self, deadline_ms: float) -> None:
        self.limits.append(deadline_ms)

    def probe(self) -> Probe:
        if self.gone:
            raise Unreachable("it was killed")
        return Probe(read_only=True, position="")

    def close(self) -> None:
        self.closed = True


class Server:
    def __init__(self) -> None:
        self.made: list[Remembering] = []

    def connect(self, deadline_ms: float) -> Remembering:
        self.made.append(Remembering(deadline_ms))
        return self.made[-1]


def kept(server: Server, count: int = 1) -> Kept:
    return Kept(server.connect, count)  # type: ignore[arg-type]  # only what Kept uses


def test_a_session_is_used_again_with_the_deadline_of_the_next_call() -> None:
    server = Server()
    sessions = kept(server)
    with sessions.session(500.0):
        pass
    with sessions.session(70.0):
        pass

    assert [one.limits for one in server.made] == [[500.0, 70.0]]


def test_one_that_a_fence_has_ended_is_not_used_again() -> None:
    server = Server()
    sessions = kept(server)
    with sessions.session(500.0):
        pass
    server.made[0].gone = True
    with sessions.session(500.0):
        pass

    assert [one.closed for one in server.made] == [True, False]


def test_after_a_call_that_failed_it_is_closed() -> None:
    server = Server()
    sessions = kept(server)
    with pytest.raises(Unreachable), sessions.session(500.0):
        raise Unreachable("in the middle of an answer")
    with sessions.session(500.0):
        pass

    assert [one.closed for one in server.made] == [True, False]


def test_two_at_once_are_two_and_no_more_are_kept_than_asked_for() -> None:
    server = Server()
    sessions = kept(server, count=2)
    sessions.warm(500.0)
    with sessions.session(500.0), sessions.session(500.0), sessions.session(500.0):
        assert len(server.made) == 3
    sessions.warm(500.0)

    assert [one.closed for one in server.made].count(True) == 1
