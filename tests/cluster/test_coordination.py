"""The coordination layer against a real ZooKeeper."""

import pytest

from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers


def test_a_killed_zookeeper_comes_back_with_its_data(own_zookeeper: ZooKeeperServer) -> None:
    own_zookeeper.kill()

    own_zookeeper.start()

    assert own_zookeeper.answers()
