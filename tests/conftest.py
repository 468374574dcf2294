"""Servers that tests share: started once in a session, ended whatever happens.

Where the packages are not installed the tests that need them are skipped with the reason; in CI that is a failure.
"""

import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.servers import mariadb
from tests.servers import zookeeper as zookeeper_server
from tests.servers.zookeeper import ZooKeeperServer

_ROOTS = itertools.count(1)

# Debian keeps servers here, and a plain user's PATH does not name it.
os.environ["PATH"] += os.pathsep + "/usr/sbin"

# Where Python is told to write no byte code, our commands would compile all their modules at each of their hundreds of
# starts, a seventh of the time that a start takes: theirs is kept in the environment, beside no source.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(sys.prefix) / "byte-code"))

# No deadline for one example: the machine may be busy. In CI the same examples every time; a find prints how to repeat it.
settings.register_profile("oscar-ha", deadline=None, print_blob=True, derandomize=os.environ.get("CI") == "true")
settings.load_profile("oscar-ha")


def require(missing: str) -> None:
    """Skip the test when something is `missing`; fail it in CI, where everything must be there."""
    if not missing:
        return
    reason = f"not installed: {missing}; script/setup installs it"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def mariadb_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory made once; give it to every MariaDBServer, which copies it."""
    require("" if shutil.which("mariadbd") else "mariadbd (package mariadb-server)")
    return mariadb.make_template(tmp_path_factory.mktemp("mariadb") / "template")


@pytest.fixture(scope="session")
def zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    """One ZooKeeper for the whole session: leave it running, and use a root of your own (`zookeeper_root`)."""
    require(zookeeper_server.missing())
    server = ZooKeeperServer(tmp_path_factory.mktemp("zookeeper"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def zookeeper_root(request: pytest.FixtureRequest) -> str:
    """A path in ZooKeeper that no other test uses; it does not exist yet."""
    name = re.sub(r"[^a-z0-9-]+", "-", request.node.name.lower()).strip("-")[:40]
    return f"/oscar-ha/{next(_ROOTS)}-{name}"


@pytest.fixture
def own_zookeeper(tmp_path: Path) -> Iterator[ZooKeeperServer]:
    """A ZooKeeper for one test that freezes, kills or restarts it."""
    require(zookeeper_server.missing())
    server = ZooKeeperServer(tmp_path / "zookeeper")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def zookeeper_ensemble(tmp_path: Path) -> Iterator[list[ZooKeeperServer]]:
    """Three members for one test that loses some of them."""
    require(zookeeper_server.missing())
    members = zookeeper_server.make_ensemble(tmp_path / "zookeeper")
    try:
        for member in members:
            member.begin()
        for member in members:
            member.wait_ready()
        yield members
    finally:
        for member in members:
            member.kill()
