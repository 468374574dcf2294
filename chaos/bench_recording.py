"""The recorded load of the apply and catch-up benches: a real binlog of sysbench `oltp_write_only`, made once.

Kept in a folder of its own: the data directory before the load, that of the primary behind it with the binlog, and
`recording.json`, which says what it is. One that was made in another way is made again.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.bench_rig import CLINIC, OPTIONS, Database, Rig
from chaos.lab.build import SECRETS
from cluster.errors import BadInput, OscarHaError

TRANSACTIONS = 120_000
TABLES, ROWS, THREADS = 4, 25_000, 8
DATABASE = "bench"
SYSBENCH_DEADLINE_SECONDS = 900
ERROR_CHARACTERS_SHOWN = 400
DISK_BYTES_NEEDED = 4_000_000_000
FILE = "recording.json"
FOLDERS = ("before", "primary", "secrets")
BINLOG = "binlog.[0-9]*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What was recorded. The binlog of the load is one file of the primary's."""

    version: str
    how: str
    transactions: int
    file: str
    """The load begins with this binlog file."""
    begin: str
    """The position before the load."""
    end: str
    """The position behind it."""
    binlog_bytes: int
    checksums: dict[str, int]
    """Of the tables behind the load."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording and where it lies."""

    folder: Path
    what: Recording

    @property
    def before(self) -> Path:
        """Return the data directory a standby begins with."""
        return self.folder / "before"

    @property
    def primary(self) -> Path:
        """Return the data directory of the primary with the binlog."""
        return self.folder / "primary"

    @property
    def secrets(self) -> Path:
        """Return the folder with the passwords of its accounts."""
        return self.folder / "secrets"

    @property
    def megabytes(self) -> float:
        """Return how much binlog the load is."""
        return self.what.binlog_bytes / 1_000_000


def recorded(folder: Path, say: Callable[[str], None]) -> Recorded:
    """Return the recording of this machine; make it when there is none, about a minute."""
    sysbench = shutil.which("sysbench")
    if sysbench is None:
        raise BadInput("sysbench is not installed", hint="script/setup --bench")
    how = f"{TRANSACTIONS} of oltp_write_only on {TABLES} x {ROWS} rows, {THREADS} threads, {OPTIONS}"
    try:
        known = Recording(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        if known.how == how:
            return Recorded(folder, known)
    except (OSError, ValueError, TypeError):
        pass  # there is none, or it is of an older form
    _make_room(folder)
    say(f"recording {TRANSACTIONS} transactions of sysbench oltp_write_only, once on this machine …")
    with Rig(folder / "rig") as rig:
        made = _record(rig, folder, sysbench, how)
    (folder / FILE).write_text(json.dumps(asdict(made), indent=1) + "\n", encoding="utf-8")
    say(f"recorded {made.transactions} transactions, {made.binlog_bytes / 1_000_000:.0f} MB of binlog")
    return Recorded(folder, made)


def checksums(database: Database) -> dict[str, int]:
    """Return the checksum of every table of the load."""
    names = ", ".join(f"{DATABASE}.sbtest{number}" for number in range(1, TABLES + 1))
    return {str(name): int(value) for name, value in database.run(f"CHECKSUM TABLE {names}")}


def _make_room(folder: Path) -> None:
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < DISK_BYTES_NEEDED:
        raise BadInput(f"less than {DISK_BYTES_NEEDED // 10**9} GB free in {folder}", hint="make room")


def _record(rig: Rig, folder: Path, sysbench: str, how: str) -> Recording:
    primary = rig.database(CLINIC)
    primary.run(f"CREATE DATABASE {DATABASE}")
    _sysbench(sysbench, primary, "prepare", threads=1)
    rig.end(f"db-{CLINIC}")
    shutil.copytree(rig.data_of(CLINIC), folder / "before", ignore=shutil.ignore_patterns("binlog.*"))
    primary = rig.database_again(CLINIC)
    file, begin = str(primary.run("SHOW MASTER STATUS")[0][0]), primary.position()
    _sysbench(sysbench, primary, "run", f"--events={TRANSACTIONS}", threads=THREADS)
    end, version, sums = primary.position(), str(primary.value("SELECT VERSION()")), checksums(primary)
    rig.end(f"db-{CLINIC}")
    files = [path for path in sorted(rig.data_of(CLINIC).glob(BINLOG)) if path.name >= file]
    shutil.copytree(rig.data_of(CLINIC), folder / "primary")
    shutil.copytree(rig.layout.secret(""), folder / "secrets")
    assert {path.name for path in (folder / "secrets").iterdir()} >= set(SECRETS), "a rig has every secret"
    return Recording(
        version=version, how=how, transactions=int(end.rsplit("-", 1)[1]) - int(begin.rsplit("-", 1)[1]), file=file,
        begin=begin, end=end, binlog_bytes=sum(path.stat().st_size for path in files), checksums=sums,
    )  # fmt: skip


def _sysbench(program: str, primary: Database, command: str, *more: str, threads: int) -> None:
    """Run sysbench through the socket, as who we are: no password on a command line."""
    primary.run("SET GLOBAL sync_binlog = 0", "SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    asked = [program, "oltp_write_only", "--db-driver=mysql", f"--mysql-socket={primary.socket}", "--mysql-user=root",
             f"--mysql-db={DATABASE}", f"--tables={TABLES}", f"--table-size={ROWS}", f"--threads={threads}",
             "--time=0", *more, command]  # fmt: skip
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=SYSBENCH_DEADLINE_SECONDS)
    if done.returncode != 0:
        raise OscarHaError(f"sysbench {command}: {(done.stderr or done.stdout)[-ERROR_CHARACTERS_SHOWN:].strip()}")
