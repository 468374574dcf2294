"""What a standby behind the archive does with relay logs, events, triggers and prepared transactions."""

import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.replicator.house import House, until
from tests.servers.mariadb import MariaDBServer

pytestmark = pytest.mark.servers

EVENT_SECONDS = 1


def a_pair(house: House, **options: object) -> tuple[MariaDBServer, MariaDBServer]:
    """Start a primary, its replicator, and a standby that follows it through the archive."""
    primary = house.database("clinic", **options)
    house.begin_epoch("clinic")
    house.replicator("toronto")
    standby = house.database("toronto", rpl_semi_sync_slave_enabled="ON", relay_log="relay", relay_log_recovery="ON")
    house.follow("toronto", position=house.lineage[0].position)
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b TEXT)")
    house.await_applied("toronto", house.position("clinic"))
    return primary, standby


def equal(house: House, *tables: str) -> bool:
    sums = [house.servers[site].run(f"CHECKSUM TABLE {', '.join(tables)} EXTENDED") for site in ("clinic", "toronto")]
    return sums[0] == sums[1] and all(checksum is not None for _, checksum in sums[0])


def relay_logs(standby: MariaDBServer) -> list[Path]:
    return sorted(standby.datadir.glob("relay.[0-9]*"))


def remove(files: Iterable[Path]) -> None:
    for path in files:
        path.unlink()


def cut(files: Iterable[Path]) -> None:
    for path in files:
        os.truncate(path, path.stat().st_size // 2)


def scribble(files: Iterable[Path]) -> None:
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 3 :: 97] = bytes(len(data[len(data) // 3 :: 97]))
        path.write_bytes(data)


def test_relay_logs_are_expendable_because_the_archive_has_it_all(house: House) -> None:
    """What was received and not applied is lost with them; nothing is lost for the standby (TRAPS.md 20)."""
    primary, standby = a_pair(house)
    numbers = itertools.count(1)
    harms: tuple[Callable[[Iterable[Path]], None], ...] = (remove, cut, scribble)
    for harm in harms:
        standby.run("STOP SLAVE SQL_THREAD")
        primary.run(*[f"INSERT INTO d.t VALUES ({next(numbers)}, REPEAT('x', 500))" for _ in range(60)])
        wanted = house.position("clinic")
        until(lambda: house.slave_status("toronto")["Gtid_IO_Pos"] == wanted, what="received, not applied")  # noqa: B023 - called before the next harm
        standby.kill()
        harm(relay_logs(standby))
        standby.start()
        standby.run("RESET SLAVE ALL")
        house.follow("toronto")
        house.await_applied("toronto", wanted)

        assert equal(house, "d.t"), harm.__name__


def test_events_and_triggers_of_the_primary_do_not_run_on_a_standby(house: House) -> None:
    """What they do on the primary arrives as rows; run again it would be there twice (TRAPS.md 23)."""
    primary, standby = a_pair(house, event_scheduler="ON")
    primary.run(
        "CREATE TABLE d.audit (a INT, at_least INT AUTO_INCREMENT PRIMARY KEY)",
        "CREATE TABLE d.beats (n INT AUTO_INCREMENT PRIMARY KEY, x INT)",
        "CREATE TRIGGER d.noted AFTER INSERT ON d.t FOR EACH ROW INSERT INTO d.audit (a) VALUES (NEW.a)",
        f"CREATE EVENT d.beat ON SCHEDULE EVERY {EVENT_SECONDS} SECOND DO INSERT INTO d.beats (x) VALUES (1)",
        *[f"INSERT INTO d.t VALUES ({number}, 'x')" for number in range(20)],
    )
    until(lambda: primary.value("SELECT COUNT(*) FROM d.beats") >= 2, what="the event runs on the primary")
    primary.run("ALTER EVENT d.beat DISABLE")
    house.await_applied("toronto", house.position("clinic"))
    standby.run("SET GLOBAL event_scheduler = ON")  # not even then: it is marked as the primary's
    state = standby.value("SELECT status FROM information_schema.events WHERE event_name = 'beat'")

    assert primary.value("SELECT COUNT(*) FROM d.audit") == 20
    assert equal(house, "d.t", "d.audit", "d.beats")
    assert state == "SLAVESIDE_DISABLED"


def test_a_prepared_transaction_survives_the_promotion_and_the_crash_after_it(house: House) -> None:
    """Nobody has decided about it yet: it must neither be lost nor committed by itself (TRAPS.md 24)."""
    primary, standby = a_pair(house)
    primary.run("XA START 'bill'", "INSERT INTO d.t VALUES (7, 'prepared')", "XA END 'bill'", "XA PREPARE 'bill'")
    house.await_applied("toronto", house.position("clinic"))
    primary.kill()
    standby.run("STOP SLAVE", "RESET SLAVE ALL")
    house.begin_epoch("toronto")
    standby.kill()
    standby.start()
    listed = [row[3] for row in standby.run("XA RECOVER")]
    before = standby.value("SELECT COUNT(*) FROM d.t")
    standby.run("XA COMMIT 'bill'")

    assert (listed, before) == ([b"bill"], 0)
    assert standby.run("SELECT a, b FROM d.t") == ((7, "prepared"),)
