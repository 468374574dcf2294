"""A server is closed from its first breath: before any client can connect, and for everybody who could write all the same."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pymysql
import pytest

from cluster import settings
from cluster.dialect import Session, dialect_of
from tests.healthcheck.site import DatabaseNode, Site, eventually

pytestmark = pytest.mark.servers
LOCKED = 4151


@pytest.fixture
def server(site: Site) -> Iterator[DatabaseNode]:
    """Node one without any watchdog."""
    site.one.start()
    yield site.one
    site.one.kill()


def session_of(site: Site) -> Session:
    return dialect_of(site.settings).connect(
        site.settings.node("one"), site.settings, settings.read_secrets(site.settings), deadline_ms=2000
    )


def is_refused(server: DatabaseNode, user: str, password: str) -> bool:
    try:
        server.connect(user, password).close()
    except pymysql.OperationalError as error:
        return bool(error.args[0] == LOCKED)
    return False


def test_a_server_that_started_is_read_only_and_refuses_root(server: DatabaseNode) -> None:
    assert server.value("SELECT @@read_only") == 1
    assert is_refused(server, "root", "")


def test_an_ordinary_client_may_read_but_not_write(server: DatabaseNode) -> None:
    with server.client() as client, client.cursor() as cursor:
        cursor.execute("SELECT 1")
        with pytest.raises(pymysql.OperationalError, match="read-only"):
            cursor.execute("INSERT INTO chart VALUES (1)")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # PyMySQL drops a refused socket unclosed
def test_root_cannot_slip_in_while_the_server_starts(site: Site) -> None:
    """The init file runs before the first connection is accepted: hammer the socket from before the start."""
    logins, stop = [], threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            with suppress(pymysql.Error, OSError), socket.socket(socket.AF_UNIX) as plain:
                plain.connect(str(site.one.socket))
                pymysql.Connection(user="root", password="", defer_connect=True).connect(plain)
                logins.append("root was let in")

    hammers = [threading.Thread(target=hammer) for _ in range(2)]
    for one in hammers:
        one.start()
    try:
        site.one.start()
    finally:
        stop.set()
        for one in hammers:
            one.join()
    assert not logins


def test_rights_through_nested_roles_are_found(site: Site, server: DatabaseNode) -> None:
    server.run(
        "SET sql_log_bin = 0", "CREATE ROLE dba", "GRANT READ ONLY ADMIN ON *.* TO dba", "CREATE ROLE helper",
        "GRANT dba TO helper", "CREATE USER nurse IDENTIFIED BY 'n'", "GRANT helper TO nurse",
    )  # fmt: skip
    with session_of(site) as session:
        assert session.bypassing_accounts() == ("nurse@%",)
        assert session.lock_accounts() == 1
        assert session.bypassing_accounts() == ()
    assert is_refused(server, "nurse", "n")


def test_only_what_was_locked_by_us_is_unlocked(site: Site, server: DatabaseNode) -> None:
    """`gone` was locked by the clinic: it stays locked for ever."""
    with session_of(site) as session:
        assert session.unlock_accounts() > 0
        assert session.unlock_accounts() == 0
    server.connect("root", "").close()
    assert is_refused(server, "gone", "g")


def test_an_account_changed_while_locked_is_still_unlocked_at_the_opening(site: Site, server: DatabaseNode) -> None:
    """The mark lives beside the lock in the account itself: a GRANT that arrives by replication must keep it."""
    server.run(
        "SET sql_log_bin = 0",
        "ALTER USER root@localhost IDENTIFIED BY 'new'",
        "GRANT SELECT ON oscar.* TO root@localhost",
    )
    assert is_refused(server, "root", "new")
    with session_of(site) as session:
        session.unlock_accounts()
    server.connect("root", "new").close()


@pytest.mark.usefixtures("server")
def test_locking_and_our_accounts_leave_no_trace_in_the_binlog(site: Site) -> None:
    """Which accounts are locked is a fact of one server."""
    with session_of(site) as session:
        session.unlock_accounts()
        session.lock_accounts()
        assert session.probe().position == ""


@pytest.mark.usefixtures("server")
def test_a_server_as_the_dialect_wants_it_meets_the_requirements(site: Site) -> None:
    with session_of(site) as session:
        assert session.requirements(site.settings.node("one")) == []


def test_everybody_able_to_write_is_a_problem_of_its_own(site: Site, server: DatabaseNode) -> None:
    server.run("SET sql_log_bin = 0", "GRANT READ ONLY ADMIN ON *.* TO PUBLIC")
    with session_of(site) as session:
        assert "REVOKE" in session.requirements(site.settings.node("one"))[0]


def test_a_restart_closes_what_was_open(site: Site) -> None:
    site.start()
    site.make_primary()
    assert site.one.value("SELECT @@read_only") == 0
    site.one.kill()
    site.watchdog_one.wait_for(database="down")
    site.one.start()

    assert is_refused(site.one, "root", "")
    report = site.watchdog_one.wait_for(database="up", role="fenced", read_only=True)
    assert report["resumable"] is False
    eventually(lambda: site.watchdog_one.ask("/primary")[0] == 503)
