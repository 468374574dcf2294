"""The mass-change alarm where more is received than it can count; an archive made by hand."""

from contextlib import closing
from pathlib import Path

from cluster.binlog.framing import KIB
from cluster.settings import Alarm
from replicator.archive import Archive, EpochWriter
from replicator.change_reader import ChangeReader
from replicator.keys import NO_KEYS
from replicator.metrics import Metrics
from tests.replicator.binlog import Binlog
from tests.replicator.house import until
from tests.replicator.test_archive import FIRST
from tests.replicator.test_receiving import a_reader, give

READ_DEADLINE_MS, WAITING_MAX = 60_000.0, 64 * KIB


def value_of(metrics: Metrics, name: str) -> float:
    value = metrics.registry.get_sample_value(f"oscar_ha_replicator_{name}", {"site": "test"})
    assert value is not None, name
    return value


def test_a_transaction_larger_than_what_may_wait_is_counted_once_and_not_begun_again_for_ever(tmp_path: Path) -> None:
    """Somebody deletes a table of gigabytes: nothing in front of it could be gone on from, so it is read to its end."""
    log = Binlog("0-1-3")
    log.gtid("0-1-4")
    for _ in range(250):
        log.query(f"DELETE FROM demographic WHERE last_name = '{'x' * KIB}'")
    log.query("COMMIT")
    metrics = Metrics("test")
    with closing(Archive.open(tmp_path, NO_KEYS)) as archive, closing(EpochWriter(archive.begin(FIRST))) as writer:
        reader = ChangeReader(archive, Alarm(), metrics, lambda: None, backlog_bytes_max=WAITING_MAX)
        writer.open()
        received = a_reader(FIRST.file, 4, FIRST.position)
        give(received, *log.events)
        writer.write(received.take())
        reader.start()
        try:
            until(lambda: value_of(metrics, "changes_backlog_bytes") > WAITING_MAX, what="it is seen in its midst")
            until(
                lambda: value_of(metrics, "changes_backlog_bytes") == 0, what="it is read", deadline_ms=READ_DEADLINE_MS
            )
            assert value_of(metrics, "changes_skipped_bytes_total") == 0
        finally:
            reader.stop()
