"""A replicator whose directory went back in time: a restored snapshot of its machine, a lost end."""

import shutil
from http import HTTPStatus
from typing import Any

import pytest

from tests.replicator.house import House, until
from tests.replicator.test_epochs import cluster_of
from tests.servers.mariadb import SEMI_SYNC_FOREVER_MS

pytestmark = pytest.mark.servers


def sealed(house: House) -> Any:
    """Seal, again as long as it is only not reachable, as a controller does; return where the archive says it is."""
    status, answer = until(lambda: retryable(house.post("toronto", "/v1/seal", epoch=1, until=None, deadline_ms=2000)),
                           what="sealed")  # fmt: skip
    assert (status, answer["sealed"]) == (200, 1)
    return answer["durable"]


def retryable(answer: tuple[int, dict[str, Any]]) -> tuple[int, dict[str, Any]] | None:
    return None if answer[0] == HTTPStatus.BAD_GATEWAY else answer


def test_an_archive_that_was_restored_from_an_old_copy_does_not_tell_a_failover_that_it_is_all_there_was(
    house: House,
) -> None:
    """Only the acker had the last write. A seal answered from the copy would promote somebody without it."""
    primary = cluster_of(house, "toronto", "montreal")
    copy = house.directory / "copy"
    house.replicators["toronto"].kill()
    shutil.copytree(house.archive("toronto"), copy)
    house.name_ackers("toronto", epoch=1)
    house.replicator("toronto")
    house.await_health("toronto", lambda report: report.serial == 1, what="named")
    primary.run(f"SET GLOBAL rpl_semi_sync_master_timeout={SEMI_SYNC_FOREVER_MS}",
                "SET GLOBAL rpl_semi_sync_master_wait_no_slave=ON", "SET GLOBAL rpl_semi_sync_master_enabled=ON")  # fmt: skip
    house.await_health("toronto", lambda report: report.acknowledging, what="acknowledging")
    primary.run("INSERT INTO d.t VALUES (50, 'acknowledged')")
    acknowledged = house.position("clinic")
    until(lambda: acknowledged.encode() in house.client.get(f"{house.root}/witness/toronto")[0], what="noted")
    house.await_durable("montreal", acknowledged)
    house.replicators["montreal"].kill()
    primary.kill()

    house.replicators["toronto"].kill()
    house.replicator("toronto")
    as_it_is = sealed(house)
    house.replicators["toronto"].kill()
    shutil.rmtree(house.archive("toronto"))
    shutil.copytree(copy, house.archive("toronto"))
    house.replicator("toronto")
    restored = sealed(house)
    report = house.health("toronto")
    house.replicator("montreal")
    house.await_durable("toronto", acknowledged)
    filled = sealed(house)

    assert as_it_is == filled == acknowledged
    assert restored is None
    assert report is not None
    assert f"the archive was at {acknowledged} once" in report.why
