"""What an open primary promises rests on settings that its administrator can change while it runs."""

import pytest

from tests.healthcheck.site import Site, eventually

pytestmark = pytest.mark.servers
BROKEN = {
    "rpl_semi_sync_master_enabled": "0", "rpl_semi_sync_master_timeout": "10", "rpl_semi_sync_master_wait_no_slave": "0",
    "rpl_semi_sync_master_wait_point": "AFTER_COMMIT", "binlog_checksum": "NONE", "binlog_format": "MIXED",
    "gtid_strict_mode": "0", "sync_binlog": "0", "innodb_flush_log_at_trx_commit": "2",
}  # fmt: skip
SOUND = ("ON", "18446744073709551615", "ON", "AFTER_SYNC", "CRC32", "ROW", "ON", "1", "1")
ACTUAL = f"SELECT CONCAT_WS(' ', {', '.join(f'@@{name}' for name in BROKEN)})"
WAITING = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'Rpl_semi_sync_master_wait_sessions'"


def test_what_an_open_primary_promises_is_put_back_when_somebody_switches_it_off(site: Site) -> None:
    """Who switches semi-sync off so that one commit goes on makes every later one a promise that nobody keeps."""
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    site.one.run(*[f"SET GLOBAL {name} = {value}" for name, value in BROKEN.items()])
    eventually(lambda: site.one.value(ACTUAL) == " ".join(SOUND), what="never put back")
    site.watchdog_one.wait_for(role="primary", unmet=[])

    assert all(f"{name} is" in site.watchdog_one.log_tail() for name in BROKEN), "what was put back is in the log"
    assert site.watchdog_one.is_primary()


def test_what_cannot_be_put_back_now_is_said_and_not_tried_again_and_again(site: Site) -> None:
    """A new binlog file would wait behind the commits: each attempt would leave one more session that hangs."""
    site.start()
    site.make_primary()
    eventually(lambda: site.one.value(WAITING) == "1", what="the heartbeat waits")
    site.one.run("SET GLOBAL binlog_checksum = NONE", "SET GLOBAL gtid_strict_mode = OFF")
    eventually(lambda: site.one.value("SELECT @@gtid_strict_mode") == 1, what="never put back")
    report = site.watchdog_one.wait_for(
        unmet=["binlog_checksum is NONE: no replicator archives what is written; set binlog_checksum=CRC32"]
    )

    assert report["why"] == report["unmet"][0]
    assert site.one.value("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SET GLOBAL %'") == 0
    assert site.watchdog_one.is_primary()
