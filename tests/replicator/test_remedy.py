"""What a source's error calls for: the very words of MariaDB 10.11 and MySQL 8, and who must act."""

from pathlib import Path

import pytest

from cluster.binlog.events import LostEvents, NotUnderstood
from cluster.errors import BadInput, Diverged, MalformedStream, OscarHaError, Refused, Unauthorized, Unreachable
from replicator import remedy
from replicator.door import Account
from replicator.frames import Damaged
from replicator.receiving import error_of
from replicator.remedy import NotThere, Remedy, SameServerId, error_for, lacking, remedy_of
from replicator.source import DUMP_ANNOTATE, DUMP_NON_BLOCK
from tests.replicator.serving import Reader
from tests.servers.mariadb import REPLICATION_PASSWORD, REPLICATION_USER, MariaDBServer

T, OTHER, RESEED, PERSON = Remedy.TRANSIENT, Remedy.OTHER_SOURCE, Remedy.RESEED, Remedy.PERSON
BEHIND = "; the first event 'binlog.000002' at 4, the last event read from 'binlog.000002' at 4, the last byte read from 'binlog.000002' at 4."
SAID: tuple[tuple[int, str, Remedy], ...] = (
    (1236, "Could not find first log file name in binary log index file", OTHER),
    (1236, "could not find next log" + BEHIND, OTHER),
    (1105, str(Damaged("0000000001-1/binlog.000002", 262_144, "the bytes on disk are not those that were written")), OTHER),
    (1236, "Client requested master to start replication from impossible position" + BEHIND, OTHER),
    (1236, "Client requested source to start replication from position > file size", OTHER),
    (1236, "Could not find GTID state requested by slave in any binlog files. Probably the slave state is too old and "
           "required binlog files have been purged.", OTHER),
    (1236, "Cannot replicate because the source purged required binary logs. Replicate the missing transactions from "
           "elsewhere, or provision a new replica from backup.", OTHER),
    (1236, "The slave is connecting using CHANGE MASTER TO MASTER_AUTO_POSITION = 1, but the master has purged binary logs "
           "containing GTIDs that the slave requires.", OTHER),
    (1236, "Error: connecting slave requested to start from GTID 0-1-9, which is not in the master's binlog", RESEED),
    (1236, "Error: connecting slave requested to start from GTID 0-2-9, which is not in the master's binlog. Since the "
           "master's binlog contains GTIDs with higher sequence numbers, it probably means that the slave has diverged due to "
           "executing extra erroneous transactions", RESEED),
    (1236, "The binlog on the master is missing the GTID 0-1-5 requested by the slave (even though a subsequent sequence "
           "number does exist), and GTID strict mode is enabled", RESEED),
    (1236, "Slave has more GTIDs than the master has, using the master's SERVER_UUID.", RESEED),
    (1590, "The incident LOST_EVENTS occurred on the master. Message: error writing to the binary log", RESEED),
    (1236, "log event entry exceeded max_allowed_packet; Increase max_allowed_packet on master" + BEHIND, PERSON),
    (1153, "Got a packet bigger than 'max_allowed_packet' bytes", PERSON),
    (1236, "Misconfigured master - server id was not set", PERSON),
    (1236, "Binary log is not open", PERSON),
    (1236, "Slave can not handle replication events with the checksum that master is configured to log", PERSON),
    (1236, "Could not decrypt binlog: encryption key error", PERSON),
    (1236, "A slave with the same server_uuid/server_id as this slave has connected to the master" + BEHIND, PERSON),
    (4052, "A slave with the same server_uuid/server_id as this slave has connected to the master", PERSON),
    (1236, "event read from binlog did not pass crc check" + BEHIND, OTHER),
    (1236, "binlog truncated in the middle of event; consider out of disk space on master" + BEHIND, OTHER),
    (1236, "bogus data in log event" + BEHIND, OTHER),
    (1236, "I/O error reading log event" + BEHIND, OTHER),
    (1236, "memory allocation failed reading log event", T),
    (1236, "the archive begins after 0-1-7, the replica has 0-1-3 — clone it anew", OTHER),
    (1236, "the archive ends at 0-1-7, the replica has 0-1-9", T),
    (1236, "binlog.000002:77 is not a boundary of epoch 1 in this archive", OTHER),
    (1236, "this is a replicator of cluster 'uptown', not of 'downtown'", PERSON),
    (1236, "words that nobody has seen yet", OTHER),
    (1045, "Access denied for user 'oscar_ha_repl'@'10.0.0.7' (using password: YES)", PERSON),
    (1227, "Access denied; you need (at least one of) the REPLICATION SLAVE privilege(s) for this operation", PERSON),
    (3159, "Connections using insecure transport are prohibited while --require_secure_transport=ON.", PERSON),
    (1040, "Too many connections", T),
    (1053, "Server shutdown in progress", T),
    (1927, "Connection was killed", T),
    (2003, "Can't connect to MySQL server on '10.0.0.7' (111)", T),
    (2013, "Lost connection to MySQL server during query", T),
    (9999, "a number of tomorrow", T),
)  # fmt: skip


@pytest.mark.parametrize(("code", "text", "expected"), SAID, ids=[f"{code} {text[:40]}" for code, text, _ in SAID])
def test_the_words_of_a_source_tell_who_must_act(code: int, text: str, expected: Remedy) -> None:
    """One number says nearly everything (TRAPS.md 11)."""
    error = error_for(code, text)

    assert remedy_of(error) is expected
    assert str(code) in error.message
    assert error.hint or expected is T, "what a person has to mend is said"


def test_every_line_of_the_table_is_reached_by_real_words() -> None:
    reached = {remedy.rule_for(code, text) for code, text, _ in SAID}

    assert [rule for rule in remedy.RULES if rule not in reached] == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotThere("x"), OTHER), (Diverged("x"), RESEED), (LostEvents("x"), RESEED), (NotUnderstood("x"), PERSON), (MalformedStream("x"), T),
        (Unreachable("x"), T), (Unauthorized("x"), PERSON), (BadInput("x"), PERSON), (SameServerId("x"), PERSON),
        (Refused("x"), PERSON), (OSError("x"), T),
    ],
)  # fmt: skip
def test_what_is_found_here_has_a_remedy_too(error: OscarHaError | OSError, expected: Remedy) -> None:
    assert remedy_of(error) is expected


def test_what_a_source_lacks_is_a_persons_task_once_everybody_was_asked() -> None:
    """Silence is not an answer: while one is silent it may be the one who has it."""
    lacked = NotThere("the source has no binlog.000002:646", hint="another replicator may have the rest")
    waiting, asked = lacking(lacked, {"montreal", "clinic"}), lacking(lacked, set())

    assert waiting.startswith("needs another source: ")
    assert waiting.endswith("no answer yet from clinic and montreal")
    assert asked.startswith("needs a person: the source has no binlog.000002:646")
    assert "oscar-ha failover" in asked
    assert "another replicator may" not in asked


def test_two_with_one_server_id_end_and_do_not_try_again() -> None:
    """They would disconnect each other for ever (TRAPS.md 10)."""
    for code in (1236, 4052):
        text = "A slave with the same server_uuid/server_id as this slave has connected to the master"
        assert isinstance(error_for(code, text), SameServerId)


@pytest.mark.servers
def test_a_real_server_says_what_the_table_expects(tmp_path: Path, mariadb_template: Path) -> None:
    """TRAPS.md 11, asked of MariaDB itself: what is not there, what was purged, what it never had."""
    with MariaDBServer(tmp_path / "db", 1, template=mariadb_template) as server:
        server.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT)", "FLUSH BINARY LOGS", "INSERT INTO d.t VALUES (1)",
                   "FLUSH BINARY LOGS", "PURGE BINARY LOGS TO 'binlog.000003'")  # fmt: skip
        asked: tuple[tuple[str, int, dict[str, str], Remedy], ...] = (
            ("binlog.000001", 4, {}, OTHER),
            ("binlog.000003", 99_999_999, {}, OTHER),
            ("", 4, {"slave_connect_state": "0-1-1"}, OTHER),
            ("", 4, {"slave_connect_state": "0-1-999"}, RESEED),
            ("", 4, {"slave_connect_state": "0-7-3", "slave_gtid_strict_mode": "1"}, RESEED),
            ("binlog.000003", 4, {"master_binlog_checksum": ""}, PERSON),
        )
        for file, offset, variables, expected in asked:
            variables = {"master_binlog_checksum": "CRC32", "mariadb_slave_capability": "4"} | variables
            error = refusal(server.port, file, offset, {name: value for name, value in variables.items() if value})
            assert remedy_of(error) is expected, error


def refusal(port: int, file: str, offset: int, variables: dict[str, str]) -> OscarHaError:
    """Ask for a stream and return the error that ends it."""
    with Reader(port, server_id=77, account=Account(REPLICATION_USER, REPLICATION_PASSWORD)) as reader:
        for payload in reader.dump(file, offset, flags=DUMP_ANNOTATE | DUMP_NON_BLOCK, **variables).packets():
            if payload[0] == 0xFF:
                return error_of(memoryview(payload))
    raise AssertionError(f"{file}:{offset} {variables} was not refused")
