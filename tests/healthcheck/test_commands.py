"""The steps of a plan as the watchdog does them: each carries its epoch, each may be repeated."""

import re

import pytest

from cluster import clock
from tests.healthcheck.site import Site, eventually

pytestmark = pytest.mark.servers
SILENT_SOURCE_MS = 20_000.0
"""By `stream_deadline_ms`, 2 s, with room for a busy machine; 60 s by default."""


def code_of(answer: tuple[int, dict[str, dict[str, str]]]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


def test_promote_and_open_may_be_repeated(site: Site) -> None:
    site.start()
    site.watchdog_one.wait_for(database="up")
    first = site.watchdog_one.done("promote", epoch=1)
    again = site.watchdog_one.done("promote", epoch=1)
    assert first == again == {"server_id": 1, "file": first["file"], "position": ""}
    assert site.one.value("SELECT @@read_only") == 1, "promoted is not open"
    site.record_epoch(1, "one", first)

    assert site.watchdog_one.done("open", epoch=1) == {"role": "primary"}
    assert site.watchdog_one.done("open", epoch=1) == {"role": "primary"}
    assert site.watchdog_one.done("promote", epoch=1) == first
    assert site.one.value("SELECT @@rpl_semi_sync_master_enabled") == 1


def test_it_opens_by_itself_when_the_controller_died_after_naming_it(site: Site) -> None:
    site.start()
    site.watchdog_one.wait_for(database="up")
    site.record_epoch(1, "one", site.watchdog_one.done("promote", epoch=1))

    eventually(site.watchdog_one.is_primary)


def test_who_was_named_and_not_opened_yet_stays_closed_while_a_plan_for_a_later_epoch_runs(site: Site) -> None:
    """Found by the model: that plan may have taken the end of an earlier lease of ours as its proof of fence."""
    site.start()
    site.watchdog_one.wait_for(database="up")
    promoted = site.watchdog_one.done("promote", epoch=1)
    site.zookeeper.create(site.path("plan"), b'{"epoch": 2}')
    site.record_epoch(1, "one", promoted)
    refused = code_of(site.watchdog_one.tell("open", epoch=1))

    assert refused == (409, "refused")
    site.zookeeper.set(site.path("plan"), b'{"epoch": "two"')
    assert code_of(site.watchdog_one.tell("open", epoch=1))[1] == "bad_input", (
        "a plan that nobody can read forbids it too"
    )
    assert site.one.value("SELECT @@read_only") == 1
    site.zookeeper.delete(site.path("plan"))
    eventually(site.watchdog_one.is_primary, what="never opened after the plan had ended")


def test_a_server_that_is_named_but_not_promoted_stays_closed(site: Site) -> None:
    site.start()
    site.watchdog_one.wait_for(database="up")
    site.record_epoch(1, "one", {"server_id": 1, "file": "binlog.000001", "position": ""})
    site.watchdog_one.wait_for(epoch=1)

    assert code_of(site.watchdog_one.tell("open", epoch=1)) == (409, "refused")
    assert site.one.value("SELECT @@read_only") == 1


def test_what_zookeeper_does_not_say_is_not_opened(site: Site) -> None:
    site.start()
    site.watchdog_one.wait_for(database="up")
    promoted = site.watchdog_one.done("promote", epoch=2)
    assert code_of(site.watchdog_one.tell("open", epoch=2)) == (409, "conflict")
    site.record_epoch(2, "two", promoted)

    assert code_of(site.watchdog_one.tell("open", epoch=2)) == (409, "fenced_out")
    # `open` asks ZooKeeper; `promote` knows what a watch brings in its own time, and may do so: it opens nothing.
    eventually(lambda: site.watchdog_one.tell("promote", epoch=2)[0] == 409, what="promoted for an epoch of another")
    assert code_of(site.watchdog_one.tell("promote", epoch=2)) == (409, "fenced_out")
    assert code_of(site.watchdog_one.tell("promote", epoch=1)) == (409, "fenced_out")
    assert code_of(site.watchdog_one.tell("follow", epoch=1)) == (409, "fenced_out")


def test_a_switchover_there_and_back(site: Site) -> None:
    """The old primary keeps semi-sync on while fenced, and drops it only when it follows."""
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    with site.one.client() as client, client.cursor() as cursor:
        cursor.execute("INSERT INTO chart VALUES (1)")
    fenced = site.watchdog_one.done("fence", epoch=1, polite=True, deadline_ms=2000)
    drained = site.watchdog_two.done("drain", epoch=1, position=fenced["position"], deadline_ms=2000)
    assert drained == {"applied": fenced["position"]}
    site.make_primary(2, site.watchdog_two)

    with site.two.client() as client, client.cursor() as cursor:
        cursor.execute("SELECT MAX(id) FROM chart")
        assert cursor.fetchone() == (1,)
    site.watchdog_one.wait_for(epoch=2, role="fenced")
    assert site.one.value("SELECT @@rpl_semi_sync_master_enabled") == 1
    assert site.watchdog_one.done("follow", epoch=2) == {"role": "joining"}
    assert site.one.value("SELECT @@rpl_semi_sync_master_enabled") == 0
    assert site.watchdog_one.done("follow", epoch=2)["role"] in ("joining", "standby")


def test_a_server_that_is_ahead_does_not_follow(site: Site) -> None:
    """Its extra transactions must be rescued, not mixed into another history."""
    site.start()
    site.make_primary()
    site.watchdog_one.wait_for(role="primary")
    eventually(lambda: site.one.value("SELECT @@gtid_binlog_pos") != "")
    site.watchdog_one.done("fence", epoch=1)
    site.record_epoch(2, "two", {"server_id": 2, "file": "binlog.000002", "position": ""})
    site.watchdog_one.wait_for(epoch=2)

    assert code_of(site.watchdog_one.tell("follow", epoch=2)) == (409, "diverged")
    report = site.watchdog_one.wait_for(role="fenced")
    assert "ahead" in report["why"]
    assert report["replicating"] is False


def test_a_primary_does_not_follow_and_is_not_promoted_over(site: Site) -> None:
    site.start()
    site.make_primary()

    assert code_of(site.watchdog_one.tell("follow", epoch=1)) == (409, "refused")
    assert code_of(site.watchdog_one.tell("promote", epoch=2)) == (409, "refused")
    assert site.watchdog_one.is_primary()


def test_a_drain_that_does_not_arrive_says_so(site: Site) -> None:
    site.start()
    site.watchdog_one.wait_for(database="up")

    assert code_of(site.watchdog_one.tell("drain", epoch=1, position="0-1-999", deadline_ms=200)) == (
        504,
        "deadline_passed",
    )


def test_a_drain_says_which_table_it_waits_for(site: Site) -> None:
    """TRAPS.md 21: deleting from a table without a key is quick on the primary, and slow on a standby. The wait is bounded."""
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    with site.one.client() as client, client.cursor() as cursor:
        cursor.execute("CREATE TABLE keyless (a INT, b CHAR(200)) ENGINE=InnoDB")
        cursor.execute("INSERT INTO keyless SELECT seq, 'x' FROM seq_1_to_20000")
        cursor.execute("DELETE FROM keyless WHERE a > 18000")
    position = site.one.value("SELECT @@gtid_binlog_pos")
    begun = clock.now()
    status, answer = site.watchdog_two.tell("drain", epoch=1, position=position, deadline_ms=1500)

    assert (status, answer["error"]["code"]) == (504, "deadline_passed")
    assert "oscar.keyless" in answer["error"]["message"], answer
    assert "primary key" in answer["error"]["hint"]
    assert clock.ms_between(begun, clock.now()) < 30_000.0


def test_a_stream_that_would_skip_its_own_transactions_is_refused(site: Site) -> None:
    """A receiver drops what carries its own server id, and says nothing, unless both ends speak semi-sync."""
    site.start(standby=True)
    site.make_primary()
    site.two.run("SET GLOBAL rpl_semi_sync_slave_enabled = OFF")
    site.watchdog_two.wait_for(database="up", epoch=1)
    status, answer = site.watchdog_two.tell("follow", epoch=1)

    assert (status, answer["error"]["code"]) == (409, "refused")
    # The stream says it, or the watchdog, which may have looked at the server's options just before.
    assert re.search("semi.sync", answer["error"]["message"])
    assert site.two.value("SELECT @@gtid_slave_pos") == "", "nothing was applied and nothing skipped"


def test_replication_that_was_stopped_is_started_again(site: Site) -> None:
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    eventually(lambda: site.watchdog_two.ask("/standby?max_lag=60")[0] == 200, what="never known to be current")
    site.one.freeze()  # so that it stays stopped for as long as we look
    site.two.run("STOP SLAVE")
    site.watchdog_two.wait_for(replicating=False)
    assert site.watchdog_two.ask("/standby")[0] == 503
    site.one.thaw()

    site.watchdog_two.wait_for(replicating=True, role="standby")


def test_a_standby_knows_within_seconds_that_its_source_is_silent(site: Site) -> None:
    """TRAPS.md 27: by the server's defaults it would be a minute, and as long again before it connects once more."""
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    site.one.freeze()
    begun = clock.now()
    site.watchdog_two.wait_for(replicating=False)
    took_ms = clock.ms_between(begun, clock.now())
    site.one.thaw()
    site.watchdog_two.wait_for(replicating=True)

    assert took_ms < SILENT_SOURCE_MS
    assert site.two.value("SELECT @@slave_net_timeout") == 2, "stream_deadline_ms"


def test_a_standby_keeps_following_when_its_watchdog_returns(site: Site) -> None:
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    site.watchdog_two.kill()
    site.watchdog_two.start()

    site.watchdog_two.wait_for(role="standby", replicating=True)


def test_commits_that_wait_are_a_fact_to_report_and_no_reason_to_fence(site: Site) -> None:
    site.start()
    site.make_primary()  # nobody acknowledges
    report = site.watchdog_one.wait_for(why="commits wait for an acknowledgement")

    assert report["role"] == "primary"
    assert site.watchdog_one.is_primary()


def test_commands_need_the_token_and_a_sound_body(site: Site) -> None:
    site.start()

    assert site.watchdog_one.tell("fence", token="wrong", epoch=1)[0] == 401
    assert code_of(site.watchdog_one.tell("fence", epoch=0)) == (400, "bad_input")
    assert code_of(site.watchdog_one.tell("fence")) == (400, "bad_input")
    assert site.watchdog_one.ask("/standby?max_lag=often")[0] == 400
    assert "oscar_ha_watchdog_database_up" in site.watchdog_one.ask("/metrics")[1]
