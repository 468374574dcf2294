"""The helper itself."""

from pathlib import Path

import pytest

from tests.servers.mariadb import REPLICATION_PASSWORD, REPLICATION_USER, MariaDBServer

pytestmark = pytest.mark.servers


def test_a_server_keeps_its_data_over_kill_and_restart(tmp_path: Path, mariadb_template: Path) -> None:
    with MariaDBServer(tmp_path / "one", 1, template=mariadb_template) as server:
        server.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY)", "INSERT INTO d.t VALUES (1)")
        server.kill()
        server.start()
        server.restart(read_only=True)

        assert server.value("SELECT COUNT(*) FROM d.t") == 1
        assert server.value("SELECT @@read_only") == 1
        server.connect(REPLICATION_USER, REPLICATION_PASSWORD).close()
        assert server.binlogs[0].name == "binlog.000001"
        assert server.value("SELECT @@tmpdir") == str(tmp_path / "one" / "tmp-data"), "decision 0060"
