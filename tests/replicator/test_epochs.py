"""Epochs follow each other: what the new primary never had is set aside, what is missing here is fetched from others."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.replicator.house import House, until
from tests.servers.mariadb import MariaDBServer

pytestmark = pytest.mark.servers

FILLS_FAILED = 3
"""Clinic and Toronto are asked once each in a round: so this is in the second one."""


def cluster_of(house: House, *replicators: str) -> MariaDBServer:
    """Start the clinic's primary, replicators, and Toronto's standby behind its own."""
    primary = house.database("clinic", rpl_semi_sync_slave_enabled="ON")
    house.begin_epoch("clinic")
    for site in replicators:
        house.replicator(site)
    house.database("toronto", rpl_semi_sync_slave_enabled="ON")
    house.follow("toronto", position="")
    primary.run(
        "CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b TEXT)", "INSERT INTO d.t VALUES (1, 'one')"
    )
    for site in replicators:
        house.await_durable(site, house.position("clinic"))
    house.await_applied("toronto", house.position("clinic"))
    return primary


def promote(house: House, site: str) -> None:
    house.servers[site].run("STOP SLAVE", "RESET SLAVE ALL")
    house.begin_epoch(site)


def epoch_files(house: House, site: str, epoch: int) -> dict[str, bytes]:
    (directory,) = (house.archive(site) / "epochs").glob(f"{epoch:010d}-*")
    return {path.name: path.read_bytes() for path in sorted(directory.glob("binlog.*[0-9]"))}


def files_before_the_next(house: House, site: str, epoch: int) -> dict[str, bytes]:
    """The head of the file that the next epoch begins with may have come before that epoch was known."""
    here, after = house.lineage[epoch - 1], house.lineage[epoch : epoch + 1]
    ends = after[0].file if after and after[0].server_id == here.server_id else None
    return {name: data for name, data in epoch_files(house, site, epoch).items() if ends is None or name < ends}


def test_a_standby_follows_through_a_promotion_and_the_old_primary_comes_back(house: House) -> None:
    primary = cluster_of(house, "clinic", "toronto")
    house.database("montreal", rpl_semi_sync_slave_enabled="ON")
    house.follow("montreal", position="", source="toronto")
    primary.run("INSERT INTO d.t VALUES (2, 'two')")
    for site in ("toronto", "montreal"):
        house.await_applied(site, house.position("clinic"))
    primary.kill()
    promote(house, "toronto")
    house.servers["toronto"].run("INSERT INTO d.t VALUES (3, 'three')")
    primary.start()
    house.follow("clinic", position=house.position("clinic"))
    house.servers["toronto"].run("FLUSH BINARY LOGS", "INSERT INTO d.t VALUES (4, 'four')")
    wanted = house.position("toronto")
    for site in ("clinic", "montreal"):
        house.await_applied(site, wanted)

    sums = {site: house.servers[site].value("CHECKSUM TABLE d.t") for site in house.servers}
    rows = {site: house.servers[site].run("SELECT a FROM d.t") for site in house.servers}
    assert len(sums) == 3
    assert set(rows.values()) == {((1,), (2,), (3,), (4,))}


def test_a_tail_that_the_new_primary_never_had_is_set_aside_and_not_served(house: House) -> None:
    primary = cluster_of(house, "clinic", "toronto")
    house.servers["toronto"].run("STOP SLAVE")
    promised = house.position("toronto")
    primary.run("INSERT INTO d.t VALUES (100, 'nobody else has it')", "FLUSH BINARY LOGS",
                "INSERT INTO d.t VALUES (101, 'nor this')")  # fmt: skip
    ahead = house.position("clinic")
    house.await_durable("clinic", ahead)
    primary.kill()
    promote(house, "toronto")
    house.servers["toronto"].run(*[f"INSERT INTO d.t VALUES ({number}, 'new')" for number in range(3, 7)])
    report = house.await_durable("clinic", house.position("toronto"))
    orphans = sorted((house.archive("clinic") / "orphans").iterdir())
    shown = subprocess.run(["mariadb-binlog", "--base64-output=decode-rows", "-v", str(orphans[0])],
                           capture_output=True, check=True, timeout=30).stdout  # fmt: skip

    assert report.orphans == len(orphans) == 2
    assert b"'nobody else has it'" in shown
    assert list(epoch_files(house, "clinic", 1)) == ["binlog.000002"]
    primary.start()
    house.follow("clinic", position=ahead)
    assert "1236" in refusal(house, "clinic")
    assert promised != ahead


def refusal(house: House, site: str) -> str:
    return str(until(lambda: house.slave_status(site)["Last_IO_Error"], what="the replica is refused"))


def test_a_replicator_that_missed_epochs_fetches_them_from_another(house: House) -> None:
    """Byte for byte, two ends of epochs, while the first primary is gone."""
    primary = cluster_of(house, "clinic", "toronto", "montreal")
    house.replicators["montreal"].kill()
    primary.run(
        "INSERT INTO d.t VALUES (2, 'two')", "FLUSH BINARY LOGS", "INSERT INTO d.t VALUES (3, REPEAT('x', 60000))"
    )
    house.await_durable("toronto", house.position("clinic"))
    house.await_applied("toronto", house.position("clinic"))
    primary.kill()
    promote(house, "toronto")
    house.servers["toronto"].run("INSERT INTO d.t VALUES (4, 'four')")
    house.await_durable("toronto", house.position("toronto"))
    promote(house, "toronto")
    house.servers["toronto"].run("INSERT INTO d.t VALUES (5, 'five')")
    house.replicator("montreal")
    house.await_durable("montreal", house.position("toronto"))
    house.await_health("montreal", lambda report: "missing" not in report.why, what="no gap")
    house.await_durable("toronto", house.position("toronto"))

    for epoch in (1, 2, 3):
        assert files_before_the_next(house, "montreal", epoch) == files_before_the_next(house, "toronto", epoch)


@pytest.mark.parametrize("still_there", [True, False])
def test_an_acker_that_lacks_the_end_of_an_epoch_waits_until_everybody_has_answered(
    house: House, still_there: bool
) -> None:
    """Silence is not an answer: who is away may have it. Who answers that it has nothing is no reason to wait."""
    primary = cluster_of(house, "toronto", "montreal")
    house.replicators["montreal"].kill()
    primary.run("INSERT INTO d.t VALUES (2, 'two')")
    house.await_durable("toronto", house.position("clinic"))
    house.await_applied("toronto", house.position("clinic"))
    house.replicators["toronto"].kill()
    primary.kill()
    house.servers["toronto"].run("STOP SLAVE", "RESET SLAVE ALL", "SET GLOBAL rpl_semi_sync_master_enabled=ON")
    house.begin_epoch("toronto", ackers=("montreal",))
    if not still_there:
        shutil.rmtree(house.archive("toronto"))
    house.replicator("clinic")
    house.replicator("montreal")
    log = house.directory / "montreal.log"
    until(lambda: log.read_text().count("fill.failed") >= FILLS_FAILED, what="asked for in vain")
    waiting = house.await_health("montreal", lambda report: report.connected, what="connected")
    house.replicator("toronto")
    report = house.await_health("montreal", lambda report: report.acknowledging, what="acknowledging")

    assert (waiting.whole, waiting.acknowledging) == (False, False)
    assert "earlier epoch" in waiting.why
    assert report.whole
    assert ("missing" in report.why) is not still_there
    assert ("gap.nobody_has_it" in log.read_text()) is not still_there


def test_a_sealed_replicator_levels_with_one_that_is_ahead(house: House) -> None:
    primary = cluster_of(house, "toronto", "montreal")
    house.post("montreal", "/v1/seal", epoch=1, until=None, deadline_ms=1000)
    primary.run("INSERT INTO d.t VALUES (2, 'two')", "FLUSH BINARY LOGS", "INSERT INTO d.t VALUES (3, 'three')")
    wanted = house.position("clinic")
    house.await_durable("toronto", wanted)
    refused = house.post("toronto", "/v1/level", epoch=1, host="127.0.0.1", port=house.ports["montreal"][0],
                         until=wanted, deadline_ms=5000)  # fmt: skip
    house.post("toronto", "/v1/seal", epoch=1, until=wanted, deadline_ms=1000)
    primary.kill()
    levelled = house.post("montreal", "/v1/level", epoch=1, host="127.0.0.1", port=house.ports["toronto"][0],
                          until=wanted, deadline_ms=5000)  # fmt: skip
    again = house.post("montreal", "/v1/level", epoch=1, host="127.0.0.1", port=house.ports["toronto"][0],
                       until=None, deadline_ms=5000)  # fmt: skip
    vain = house.post("montreal", "/v1/level", epoch=1, host="127.0.0.1", port=house.ports["toronto"][0],
                      until="0-1-999", deadline_ms=5000)  # fmt: skip

    assert (refused[0], refused[1]["error"]["code"]) == (409, "refused")
    assert levelled == again == (200, {"durable": wanted})
    assert (vain[0], vain[1]["error"]["code"]) == (409, "refused")
    assert epoch_files(house, "montreal", 1) == epoch_files(house, "toronto", 1)


def test_a_position_that_is_not_in_the_archive_is_refused_with_the_reason(house: House) -> None:
    primary = house.database("clinic")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY)")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    primary.run("INSERT INTO d.t VALUES (1)")
    house.await_durable("toronto", house.position("clinic"))
    house.database("toronto", rpl_semi_sync_slave_enabled="ON")
    answers = []
    for position in ("", "0-7-3", "0-1-99"):
        house.servers["toronto"].run("STOP SLAVE", "RESET SLAVE ALL")
        house.follow("toronto", position=position)
        answers.append(refusal(house, "toronto"))

    for answer, words in zip(answers, ("begins after", "went its own way", "ends at"), strict=True):
        assert "1236" in answer
        assert words in answer


def test_a_torn_or_damaged_tail_is_cut_and_fetched_again(house: House) -> None:
    primary = cluster_of(house, "toronto")
    process = house.replicators["toronto"]
    path = house.archive("toronto") / "epochs" / "0000000001-1" / "binlog.000002"
    for harm in (tear, append, flip):
        process.kill()
        harm(path)
        house.replicator("toronto")
        primary.run("REPLACE INTO d.t VALUES (2, 'two')")
        house.await_durable("toronto", house.position("clinic"))

        assert path.read_bytes()[30:] == (primary.datadir / path.name).read_bytes()[30:]


def tear(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(range(200)))


def flip(path: Path) -> None:
    """Damage one byte in the last transaction."""
    data = bytearray(path.read_bytes())
    data[-60] ^= 0xFF
    path.write_bytes(data)


def test_a_silent_primary_is_reported_within_the_stream_deadline(house: House) -> None:
    """And one that dies at once."""
    primary = cluster_of(house, "toronto")
    primary.freeze()
    house.await_health("toronto", lambda report: not report.connected, what="silence is noticed")
    primary.thaw()
    house.await_health("toronto", lambda report: report.connected, what="connected again")
    primary.kill()
    house.await_health("toronto", lambda report: not report.connected, what="death is noticed")
    primary.start()
    house.await_health("toronto", lambda report: report.connected, what="connected again")


@pytest.mark.parametrize(
    "option", [{"binlog_format": "MIXED"}, {"gtid_strict_mode": "OFF"}, {"binlog_checksum": "NONE"}]
)
def test_a_primary_whose_binlog_cannot_be_archived_is_named(house: House, option: dict[str, str]) -> None:
    house.database("clinic", **option)
    house.begin_epoch("clinic")
    house.replicator("toronto")
    (name,) = option

    house.await_health("toronto", lambda report: f"{name}={option[name]}" in report.why, what=f"{name} is named")


def test_a_wrong_password_is_named_and_a_right_one_mends_it(house: House) -> None:
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    primary.run("ALTER USER oscar_ha_repl@'%' IDENTIFIED BY 'another'")
    house.replicator("toronto")
    house.await_health("toronto", lambda report: "1045" in report.why, what="access denied is named")
    primary.run("ALTER USER oscar_ha_repl@'%' IDENTIFIED BY 'replication-secret'")

    house.await_health("toronto", lambda report: report.connected, what="connected")


def test_a_seal_never_tells_a_dead_tail_as_its_position(house: House) -> None:
    """Back from a crash its archive still ends with what no epoch has; a failover would take it for most advanced."""
    primary = cluster_of(house, "clinic", "toronto")
    house.servers["toronto"].run("STOP SLAVE")
    primary.run(*[f"INSERT INTO d.t VALUES ({number}, 'nobody else has it')" for number in range(100, 120)])
    tail = house.position("clinic")
    house.await_durable("clinic", tail)
    house.replicators["clinic"].kill()
    primary.kill()
    promote(house, "toronto")
    house.servers["toronto"].kill()
    start = house.lineage[-1].position
    house.replicator("clinic")  # answers HTTP before it has heard of epoch 2

    def sealed() -> dict[str, object] | None:
        status, answer = house.post("clinic", "/v1/seal", epoch=2, until=None, deadline_ms=2_000)
        assert answer.get("durable") in (None, start), f"a dead tail up to {tail}: {answer}"
        return answer if status == 200 and answer["durable"] is not None else None

    answer = until(sealed, what="the seal of epoch 2")
    assert answer == {"sealed": 2, "durable": start}


def test_an_epoch_that_nobody_opened_is_not_sealed(house: House) -> None:
    """A seal is for ever: one mistyped number would end this replicator's work."""
    cluster_of(house, "clinic", "toronto")
    status, answer = house.post("toronto", "/v1/seal", epoch=2**62, until=None, deadline_ms=1_000)

    assert status == 409
    assert "not known here" in answer["error"]["message"]
    report = house.health("toronto")
    assert report is not None
    assert report.sealed_epoch == 0


def test_a_standby_behind_the_point_of_a_resume_follows_again(house: House) -> None:
    """A replicator that goes on in the middle of a file still knows where that file begins: in the first epoch too."""
    primary = cluster_of(house, "clinic", "toronto")
    house.database("montreal", rpl_semi_sync_slave_enabled="ON")
    house.follow("montreal", position="", source="toronto")
    house.await_applied("montreal", house.position("clinic"))
    for epoch, writer in ((1, "clinic"), (2, "toronto")):
        if epoch == 2:
            house.await_applied("toronto", house.position("clinic"))
            primary.kill()
            promote(house, "toronto")
        house.servers["montreal"].kill()
        house.servers[writer].run(*[f"INSERT INTO d.t VALUES ({epoch}{number}, 'b')" for number in range(10, 20)])
        house.await_durable("toronto", house.position(writer))
        house.replicators["toronto"].kill()
        house.replicator("toronto")
        house.servers[writer].run(*[f"INSERT INTO d.t VALUES ({epoch}{number}, 'c')" for number in range(20, 30)])
        house.await_durable("toronto", house.position(writer))
        house.servers["montreal"].start()
        house.servers["montreal"].run("START SLAVE")
        house.await_applied("montreal", house.position(writer))
