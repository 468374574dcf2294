"""A template data directory for the whole session, and one site for each test."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import settings
from tests.conftest import require
from tests.healthcheck import site as sites
from tests.healthcheck.site import Site
from tests.servers.zookeeper import ZooKeeperServer


@pytest.fixture(scope="session")
def oscar_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with our accounts, OSCAR's shipped root and an ordinary client."""
    import shutil

    require("" if shutil.which("mariadbd") else "mariadbd (package mariadb-server)")
    directory = tmp_path_factory.mktemp("oscar")
    some, _ = sites.make_settings(directory, "127.0.0.1:1", "template")
    return sites.make_template(directory / "data", some, settings.read_secrets(some))


@pytest.fixture
def site(
    tmp_path: Path, zookeeper: ZooKeeperServer, oscar_template: Path, request: pytest.FixtureRequest
) -> Iterator[Site]:
    """Two nodes, nothing started, on the ZooKeeper of the session."""
    yield from _site(tmp_path, zookeeper, oscar_template, request)


@pytest.fixture
def lonely_site(
    tmp_path: Path, own_zookeeper: ZooKeeperServer, oscar_template: Path, request: pytest.FixtureRequest
) -> Iterator[Site]:
    """Two nodes, nothing started, on a ZooKeeper that the test may freeze."""
    yield from _site(tmp_path, own_zookeeper, oscar_template, request)


def _site(
    directory: Path, zookeeper: ZooKeeperServer, template: Path, request: pytest.FixtureRequest
) -> Iterator[Site]:
    name = re.sub(r"[^a-z0-9-]+", "-", request.node.name.lower()).strip("-")[:40]
    one = Site(directory, zookeeper.address, name, template)
    try:
        yield one
    finally:
        one.close()
