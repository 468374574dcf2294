"""The schema, unpacked once, and a cluster for each flavour in which clinics run it."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.oscar.loading import FLAVOURS
from tests.replicator.house import House
from tests.servers import mariadb
from tests.servers.zookeeper import ZooKeeperServer

ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "oscar-sql" / "openo-2025.tar.xz"
MakeHouse = Callable[[str], House]


@pytest.fixture(scope="session")
def oscar_sql(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with OSCAR's SQL files."""
    if not ARCHIVE.is_file():
        pytest.skip(
            f"the OSCAR schema is not there: {ARCHIVE} (it has another licence and is never part of the project)"
        )
    place = tmp_path_factory.mktemp("oscar-sql")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    return place


@pytest.fixture
def oscar_house(
    tmp_path: Path, zookeeper: ZooKeeperServer, zookeeper_root: str, mariadb_template: Path
) -> Iterator[MakeHouse]:
    """Makes a cluster of a flavour; a page size of its own needs data directories of its own."""
    made: list[House] = []

    def make(flavour: str) -> House:
        page_size = FLAVOURS[flavour].get("innodb_page_size")
        template = mariadb_template
        if page_size is not None:
            template = mariadb.make_template(tmp_path / "template", innodb_page_size=page_size)
        made.append(House(tmp_path / "house", zookeeper.address, zookeeper_root, template))
        return made[-1]

    try:
        yield make
    finally:
        for house in made:
            house.close()
