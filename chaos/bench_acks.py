"""`script/bench acks`: what each acknowledgement policy costs a commit, with the cities as far apart as they are.

A lab whose Toronto and Montreal replicators reach everybody else through wires of a given length (`chaos/delay.py`): 8 ms
there and back to Toronto, 15 ms to Montreal, 8 ms between the two. The controllers are stopped, so that nothing but this
bench changes the record. Every policy is measured in every run, in turn, with one client and with sixteen.
"""

import asyncio
import shutil
import subprocess
import sys
import sysconfig
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pymysql

from chaos.bench_figures import Goal, Measured
from chaos.lab import build, control, remove, render
from chaos.lab.layout import Layout, Request
from chaos.lab_remote import RemoteLab, wait_until
from cluster import clock, records, settings
from cluster.clock import Nanos
from cluster.coordination import Coordination
from cluster.errors import Bug, OscarHaError, Unreachable
from cluster.http import Client
from cluster.records import Acks, DurabilityRecord, ReplicatorReport

ROUND_TRIP_MS: Mapping[frozenset[str], float] = {
    frozenset(("clinic", "toronto")): 8.0,
    frozenset(("clinic", "montreal")): 15.0,
    frozenset(("toronto", "montreal")): 8.0,
}
FAR = ("toronto", "montreal")
POLICIES: Mapping[str, tuple[Acks, tuple[str, ...]] | None] = {
    "async": None,
    "one_toronto": (Acks.ONE, ("toronto",)),
    "one_montreal": (Acks.ONE, ("montreal",)),
    "all": (Acks.ALL, FAR),
}
CLIENTS = (1, 16)
COMMITS = {1: 150, 16: 40}
"""Commits of each client that are timed; as many as WARM_UP before them are not."""
WARM_UP = 20
PINGS = 30
READY_MS, ACTING_MS, START_MS = 90_000.0, 20_000.0, 10_000.0
CALL_MS = 2_000.0
CLIENT_SECONDS = 20.0
TABLE = "bench_acks"
UNITS = {
    **{f"commit_ms_{name}_{clients}": "ms" for name in POLICIES for clients in CLIENTS},
    **{f"round_trip_ms_{site}": "ms" for site in FAR},
}
GOALS: tuple[Goal, ...] = ()
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """One policy with so many clients in one run."""

    run: int
    policy: str
    clients: int
    median_ms: float
    commits: int


def run(folder: Path, runs: int, say: Say) -> Measured:
    """Measure every policy `runs` times."""
    with AcksBench(folder, say) as bench:
        bench.run(runs)
        return bench.measured


class AcksBench:
    """Brings one lab up, stretches its links, and takes it down. Use as a context manager."""

    def __init__(self, folder: Path, say: Say) -> None:
        self._lab, self._say = RemoteLab(folder / "lab"), say
        self._stack = ExitStack()
        self.measured = Measured.of(UNITS)

    def __enter__(self) -> "AcksBench":
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, runs: int) -> None:
        """Measure every policy `runs` times, in turn."""
        for number in range(1, runs + 1):
            told = []
            for site in FAR:
                self.measured.values[f"round_trip_ms_{site}"].append(self._ping(site))
            for policy in POLICIES:
                self._adopt(policy)
                for clients in CLIENTS:
                    trial = self._measure(number, policy, clients)
                    self.measured.records.append(asdict(trial))
                    self.measured.values[f"commit_ms_{policy}_{clients}"].append(trial.median_ms)
                    told.append(f"{policy}/{clients} {trial.median_ms:.2f}")
            self._say(f"run {number:>2}  median ms of a commit: {', '.join(told)}")

    # -- the lab -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        directory = self._lab.directory
        remove.down(directory, keep=False)
        self._say("a lab …")
        self._stack.callback(remove.down, directory, keep=False)
        build.up(Request(directory=directory), _Silent())
        self._lab.wait_ready(deadline_ms=READY_MS)
        self._settings = settings.load(Layout(directory).settings)
        for one in self._settings.controllers:
            control.kill(directory, one.name)
        # The primary's own watchdog would switch semi-sync on again while nobody is to acknowledge.
        control.kill(directory, f"watchdog-{self._settings.node(self._settings.initial_primary).site}")
        self._wires = {site: self._stretch(site) for site in FAR}
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (id BIGINT AUTO_INCREMENT PRIMARY KEY, t VARCHAR(200))")

    def _stretch(self, site: str) -> Mapping[str, int]:
        """Start the replicator of a site anew, with wires to everybody else; return the port of the one to the primary."""
        layout = Layout(self._lab.directory)
        raw = tomllib.loads(layout.settings.read_text(encoding="utf-8"))
        ports: dict[str, int] = {}
        for node in raw["nodes"]:
            if node["site"] != site:
                node["port"] = ports[node["site"]] = self._wire(site, node["site"], node["port"])
        for other in raw["replicators"]:
            if other["site"] != site:
                for key in ("port", "http_port"):
                    other[key] = self._wire(site, other["site"], other[key])
        path = layout.config(f"stretched-{site}.toml")
        path.write_text(render.toml(raw), encoding="utf-8")
        control.kill(self._lab.directory, f"replicator-{site}")
        command = [str(Path(sysconfig.get_path("scripts")) / "oscar-ha"), "replicator", "run", "--settings", str(path),
                   "--site", site]  # fmt: skip
        self._stack.enter_context(_running(command, layout.log(f"stretched-{site}")))
        return ports

    def _wire(self, here: str, there: str, port: int) -> int:
        one_way_ms = ROUND_TRIP_MS[frozenset((here, there))] / 2
        command = [sys.executable, "-m", "chaos.delay", "--to", str(port), "--one-way-ms", str(one_way_ms)]
        log = Layout(self._lab.directory).log(f"wire-{here}-{there}-{port}")
        self._stack.enter_context(_running(command, log))
        wait_until(lambda: "" if log.read_text() else "no port", deadline_ms=START_MS, what="a wire")
        return int(log.read_text())

    # -- policies ----------------------------------------------------------------------------------------------------

    def _adopt(self, policy: str) -> None:
        """Have the record name the policy, and wait until those named act on it."""
        wanted = POLICIES[policy]
        # Named in the primary's own site nobody acknowledges: so no stream is semi-synchronous when that is switched off.
        acks, ackers = wanted or (Acks.ONE, ("clinic",))
        if wanted is not None:
            self._semi_sync(on=True)
        serial = asyncio.run(self._record(acks, ackers))
        wait_until(lambda: asyncio.run(self._not_acting(serial, ackers)), deadline_ms=ACTING_MS, what=policy)
        if wanted is None:
            self._semi_sync(on=False)

    async def _record(self, acks: Acks, ackers: tuple[str, ...]) -> int:
        coordination = Coordination(self._settings.zookeeper, self._settings.root, self._settings.timing)
        await coordination.start(deadline_ms=START_MS)
        try:
            found = await coordination.read(DurabilityRecord, "durability")
            if found is None:
                raise Unreachable("there is no durability record")
            record, version = found
            new = replace(
                record, acks=acks, ackers=ackers, serial=record.serial + 1, former=(), why="script/bench acks"
            )
            await coordination.replace("durability", new, version)
            return new.serial
        finally:
            await coordination.stop()

    async def _not_acting(self, serial: int, ackers: tuple[str, ...]) -> str:
        async with Client(self._lab.file.token) as client:
            for site in FAR:
                url = f"{self._settings.replicator(site).url}/health"
                report = records.decode(ReplicatorReport, await client.get(url, deadline_ms=CALL_MS), where=url)
                if report.serial != serial or not report.connected or report.acknowledging != (site in ackers):
                    return f"{site}: {report.why}"
        return ""

    def _semi_sync(self, *, on: bool) -> None:
        node = self._lab.file.node(self._settings.initial_primary)
        connection = pymysql.connect(host=node.host, port=node.admin_port or node.port, user=node.admin_user,
                                     password=node.admin_password, read_timeout=CLIENT_SECONDS)  # fmt: skip
        with connection, connection.cursor() as cursor:
            cursor.execute(f"SET GLOBAL rpl_semi_sync_master_enabled={'ON' if on else 'OFF'}")

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _measure(self, run: int, policy: str, clients: int) -> Trial:
        samples: list[list[float]] = [[] for _ in range(clients)]
        failures: list[Exception] = []
        gate = threading.Barrier(clients, timeout=CLIENT_SECONDS)

        def write(mine: list[float]) -> None:
            try:
                with self._connection() as connection, connection.cursor() as cursor:
                    gate.wait()
                    for number in range(WARM_UP + COMMITS[clients]):
                        began = clock.now()
                        cursor.execute(f"INSERT INTO {TABLE} (t) VALUES (REPEAT('x', 100))")
                        if number >= WARM_UP:
                            mine.append(clock.ms_between(began, clock.now()))
            except (pymysql.err.MySQLError, threading.BrokenBarrierError) as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(mine,)) for mine in samples]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise OscarHaError(f"{policy} with {clients} clients: {failures[0]}")
        times = [ms for mine in samples for ms in mine]
        return Trial(run=run, policy=policy, clients=clients, median_ms=median(times), commits=len(times))

    def _ping(self, site: str) -> float:
        """Return the median time of the smallest question to the primary over a site's wire."""
        times = []
        with self._connection(self._wires[site]["clinic"]) as connection, connection.cursor() as cursor:
            for _ in range(PINGS):
                began: Nanos = clock.now()
                cursor.execute("DO 0")
                times.append(clock.ms_between(began, clock.now()))
        return median(times)

    def _connection(self, port: int | None = None) -> "pymysql.Connection[Any]":
        lab = self._lab.file
        node, clinic = lab.node(self._settings.initial_primary), lab.clinics[0]
        return pymysql.connect(
            host=node.host, port=port or node.port, user=clinic.user, password=clinic.password, database=clinic.database,
            autocommit=True, connect_timeout=int(CLIENT_SECONDS), read_timeout=CLIENT_SECONDS,
        )  # fmt: skip


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    """Run a process of our own until the end of the block; its output goes to `log`."""
    if shutil.which(command[0]) is None:
        raise Bug(f"{command[0]} is not installed")
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        child.kill()
        child.wait()


class _Silent:
    def working(self, what: str) -> None:
        """Nobody watches."""

    def done(self, what: str, detail: str = "") -> None:
        """Nobody watches."""
