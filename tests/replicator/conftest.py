"""The house of the replicator's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.replicator.house import House
from tests.servers.zookeeper import ZooKeeperServer


@pytest.fixture
def house(tmp_path: Path, zookeeper: ZooKeeperServer, zookeeper_root: str, mariadb_template: Path) -> Iterator[House]:
    """A cluster of three sites of which nothing runs yet but ZooKeeper."""
    made = House(tmp_path, zookeeper.address, zookeeper_root, mariadb_template)
    try:
        yield made
    finally:
        made.close()
