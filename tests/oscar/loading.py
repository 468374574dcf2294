"""How a clinic's database is made, and how two of them are compared."""

import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.replicator.house import House
from tests.servers.mariadb import MariaDBServer

DATABASE = "oscar"
FILES = (
    "oscarinit.sql", "oscarinit_on.sql", "oscardata.sql", "oscardata_additional.sql", "oscardata_on.sql",
    "olis/olisinit.sql", "icd9.sql", "caisi/initcaisi.sql", "caisi/initcaisidata.sql", "icd9_issue_groups.sql",
    "measurementMapData.sql", "expire_openodoc.sql", "oscarinit_2025.sql",
)  # fmt: skip
"""In the order in which OSCAR's own installer runs them."""
DEFINITIONS = FILES[:2]
CLINIC: Mapping[str, object] = {
    "sql_mode": "", "innodb_strict_mode": "OFF", "local_infile": "ON", "lower_case_table_names": 0,
    "debug_no_sync": True, "innodb_flush_method": "nosync", "sync_binlog": 0, "innodb_flush_log_at_trx_commit": 2,
}  # fmt: skip
"""A clinic's settings; those of the last line are for the speed of the test alone."""
FLAVOURS: Mapping[str, Mapping[str, object]] = {
    "InnoDB": {},
    "Aria": {"default_storage_engine": "Aria"},
    "32K pages": {"innodb_page_size": "32K"},
}
LOAD_SECONDS_MAX = 60
NOT_THERE = ("init_cds_form_4_options.sql", "init_functional_centres.sql")
"""Files that `caisi/initcaisidata.sql` reads and that are not part of what lies beside us."""
WITHOUT_NEXT_NUMBER = re.compile(r" AUTO_INCREMENT=\d+")


def load(server: MariaDBServer, place: Path, files: tuple[str, ...] = FILES) -> None:
    """Run OSCAR's SQL files as its installer does; the OLIS one loads its tables from files beside it."""
    server.run(f"CREATE DATABASE {DATABASE} DEFAULT CHARACTER SET utf8 DEFAULT COLLATE utf8_general_ci")
    command = ["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=root", "--local-infile=1",
               "--default-character-set=utf8", DATABASE]  # fmt: skip
    for name in files:
        file = place / name
        statements = file.read_bytes()
        for missing in NOT_THERE:
            statements = statements.replace(f"source {missing};".encode(), b"")
        done = subprocess.run(command, input=statements, cwd=file.parent, check=False, capture_output=True,
                              timeout=LOAD_SECONDS_MAX)  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stderr.decode(errors='replace')}"


def tables(server: MariaDBServer) -> list[str]:
    rows = server.run(
        f"SELECT table_name FROM information_schema.tables WHERE table_schema='{DATABASE}' ORDER BY table_name"
    )
    return [str(name) for (name,) in rows]


def engines(server: MariaDBServer) -> Counter[str]:
    rows = server.run(f"SELECT engine FROM information_schema.tables WHERE table_schema='{DATABASE}'")
    return Counter(str(engine) for (engine,) in rows)


def checksums(server: MariaDBServer) -> dict[str, int | None]:
    """Return table -> checksum over every row."""
    named = ", ".join(f"{DATABASE}.`{table}`" for table in tables(server))
    return {str(table): checksum for table, checksum in server.run(f"CHECKSUM TABLE {named} EXTENDED")}


def definitions(server: MariaDBServer) -> dict[str, str]:
    """Return table -> its definition, without the number that the next row would get."""
    found = {}
    connection = server.connect()
    try:
        with connection.cursor() as cursor:
            for table in tables(server):
                cursor.execute(f"SHOW CREATE TABLE {DATABASE}.`{table}`")
                found[table] = WITHOUT_NEXT_NUMBER.sub("", str(cursor.fetchone()[1]))
    finally:
        connection.close()
    return found


def cluster(house: House, options: Mapping[str, object], standby: Mapping[str, object]) -> None:
    """Start a primary with its replicator, and a standby behind it, both empty."""
    house.database("clinic", **CLINIC, **options)
    house.begin_epoch("clinic")
    house.replicator("toronto")
    house.database("toronto", **{**CLINIC, **options, **standby})
    house.follow("toronto", position=house.lineage[0].position)
