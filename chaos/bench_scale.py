"""`script/bench scale`: one controller process and one ZooKeeper for many clusters, against the same for one.

Nodes are simulated at the watchdog's interface (`chaos/scale_nodes.py`). A few clusters are measured, in this process;
all others live in another one. A failover is decided from the moment in which the record that says the primary is down
is handed to ZooKeeper until a plan is recorded there, and until the first node or replicator is asked to fence or seal.
"""

import asyncio
import itertools
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from chaos.bench_figures import Goal, Measured, percentile
from chaos.lab import preflight
from chaos.lab.render import ZOOKEEPER_JARS, ZOOKEEPER_MAIN
from chaos.processor_time import processor_seconds, resident_mb
from chaos.run_folder import keep_logs
from chaos.scale_nodes import READY, TTL_MS, Nodes, Simulated
from cluster import clock
from cluster import settings as cluster_settings
from cluster.errors import OscarHaError
from cluster.records import Database, Role
from cluster.settings import Settings
from cluster.zookeeper import Session

CLUSTERS, CLUSTERS_MAX, MEASURED = 200, 1_000, 5
BROKEN_SHARE = 0.1
CONTROLLER = "controller-toronto"
IDLE_SECONDS, WARM_UP_SECONDS = 15.0, 5.0
PAUSE_SECONDS_MAX = 0.2
DECIDE_DEADLINE_SECONDS, END_DEADLINE_SECONDS = 30.0, 30.0
SETTLE_DEADLINE_SECONDS = 90.0
STOP_DEADLINE_SECONDS = 20.0
POLL_SECONDS = 0.02
FIRST_PORT, ZOOKEEPER_PORTS = 21_000, range(20_900, 21_000)
AUTOMATIC_MAX = 10_000
MEMORY = Path("/dev/shm")
JAVA_OPTIONS = ("-Xmx256m", "-XX:+UseSerialGC")
HANDLES_MAX = 20_000
ONE, MANY, BROKEN = "one", "many", "broken"

UNITS = {
    "decision_latency_ratio": "p99 with many / p99 with one",
    "decision_latency_ratio_broken": "p99 with many, a tenth of them broken / p99 with one",
    **{f"decision_ms_{phase}": "ms" for phase in (ONE, MANY, BROKEN)},
    **{f"asked_ms_{phase}": "ms" for phase in (ONE, MANY, BROKEN)},
    **{f"controller_cores_idle_{phase}": "cores" for phase in (ONE, MANY, BROKEN)},
    **{f"controller_cores_failing_{phase}": "cores" for phase in (ONE, MANY, BROKEN)},
    **{f"controller_rss_mb_{phase}": "MB" for phase in (ONE, MANY, BROKEN)},
}
GOALS = (
    Goal(figure="decision_latency_ratio", statistic="median", at_most=2),
    Goal(figure="decision_latency_ratio_broken", statistic="median", at_most=2),
    *(Goal(figure=f"controller_{what}_{phase}", statistic="max", at_most=most)
      for phase in (MANY, BROKEN) for what, most in (("cores_idle", 1), ("cores_failing", 1), ("rss_mb", 500))),
)  # fmt: skip
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of a phase lie, and which of its clusters are measured here."""

    folder: Path
    paths: tuple[Path, ...]

    @property
    def measured(self) -> tuple[Path, ...]:
        return self.paths[:MEASURED]

    @property
    def others(self) -> tuple[Path, ...]:
        return self.paths[MEASURED:]


def run(folder: Path, runs: int, say: Say, *, clusters: int = CLUSTERS) -> Measured:
    """Measure `runs` failovers with one cluster, with `clusters`, and with a tenth of those broken."""
    measured = Measured.of(UNITS)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit[1], HANDLES_MAX), limit[1]))
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as made, zookeeper(Path(made)) as address:
        try:
            asyncio.run(_run(base_of(Path(made), address), Path(made), runs, say, measured, clusters))
        except (OscarHaError, TimeoutError) as error:
            measured.problems.append(str(error) or type(error).__name__)
        finally:
            keep_logs(Path(made), folder)
    for figure, phase in (("decision_latency_ratio", MANY), ("decision_latency_ratio_broken", BROKEN)):
        ours, theirs = measured.values[f"decision_ms_{phase}"], measured.values[f"decision_ms_{ONE}"]
        if ours and theirs:
            measured.values[figure].append(percentile(ours, 99) / percentile(theirs, 99))
    return measured


async def _run(base: Settings, folder: Path, runs: int, say: Say, measured: Measured, clusters: int) -> None:
    lonely = write_clusters(base, folder / ONE, 1)
    with controlling(lonely) as pid:
        async with Measuring(lonely) as bench:
            await bench.phase(ONE, pid, runs, say, measured)
    many = write_clusters(base, folder / MANY, clusters)
    write_unusable(base, many.folder)
    broken = round(BROKEN_SHARE * clusters)
    with simulating(many, broken) as others, controlling(many) as pid:
        async with Measuring(many) as bench:
            await asyncio.wait_for(asyncio.to_thread(_wait_ready, others), SETTLE_DEADLINE_SECONDS)
            await bench.phase(MANY, pid, runs, say, measured)
            others.send_signal(signal.SIGUSR1)
            await bench.phase(BROKEN, pid, runs, say, measured)


def _wait_ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None, "it is a pipe"
    if process.stdout.readline().strip() != READY:
        raise OscarHaError("the simulated clusters have no primaries: see the log of the controller")


class Measuring:
    """The measured clusters, and a session that watches their plans."""

    def __init__(self, place: Place) -> None:
        self._clusters = [Simulated(cluster_settings.load(path)) for path in place.measured]
        self._nodes = Nodes(self._clusters)
        self._watching = Session(self._clusters[0].settings.zookeeper, TTL_MS)
        self._random = random.Random(len(place.paths))
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Measuring":
        await self._stack.enter_async_context(self._nodes)
        self._stack.push_async_callback(self._watching.stop)
        await self._watching.start(deadline_ms=DECIDE_DEADLINE_SECONDS * 1_000)
        async with asyncio.timeout(SETTLE_DEADLINE_SECONDS):
            await self._nodes.settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def phase(self, name: str, pid: int, runs: int, say: Say, measured: Measured) -> None:
        """Measure the controller while nothing happens, then `runs` failovers one after the other."""
        await asyncio.sleep(WARM_UP_SECONDS)
        measured.values[f"controller_cores_idle_{name}"].append(await _cores(pid, asyncio.sleep(IDLE_SECONDS)))
        measured.values[f"controller_rss_mb_{name}"].append(resident_mb(pid))
        cores = await _cores(pid, self._failovers(name, runs, measured))
        measured.values[f"controller_cores_failing_{name}"].append(cores)
        measured.values[f"controller_rss_mb_{name}"].append(resident_mb(pid))
        found = measured.values[f"decision_ms_{name}"]
        say(f"{name}: decided within {percentile(found, 50):.1f} ms, p99 {percentile(found, 99):.1f} ms; the controller uses"
            f" {measured.values[f'controller_cores_idle_{name}'][0]:.2f} cores, {cores:.2f} while failing over,"
            f" {resident_mb(pid):.0f} MB")  # fmt: skip

    async def _failovers(self, name: str, runs: int, measured: Measured) -> None:
        for _ in range(runs):
            cluster = self._random.choice(self._clusters)
            await asyncio.sleep(self._random.random() * PAUSE_SECONDS_MAX)
            decided, asked = await self._fail_over(cluster)
            measured.values[f"decision_ms_{name}"].append(decided)
            measured.values[f"asked_ms_{name}"].append(asked)
            measured.records.append(
                {"phase": name, "cluster": cluster.settings.name, "decided_ms": decided, "asked_ms": asked}
            )

    async def _fail_over(self, cluster: Simulated) -> tuple[float, float]:
        """Let the primary fail and come back. Return the milliseconds to the plan, and to the first request."""
        plan, planned = f"{cluster.settings.root}/plan", asyncio.get_running_loop().create_future()

        def recorded(_: object) -> None:
            if not planned.done():
                planned.set_result(clock.now())

        await self._watching.exists_async(plan, recorded)
        node, began = cluster.fail(), clock.now()
        self._nodes.publish(cluster, f"nodes/{node.name}")
        async with asyncio.timeout(DECIDE_DEADLINE_SECONDS):
            decided = await planned
        async with asyncio.timeout(END_DEADLINE_SECONDS):
            while cluster.primary is None or await self._watching.exists_async(plan) is not None:  # noqa: ASYNC110 - it ends elsewhere
                await asyncio.sleep(POLL_SECONDS)
            node.database = Database.UP
            await self._nodes.publish(cluster, f"nodes/{node.name}")
            while node.role is not Role.STANDBY:  # noqa: ASYNC110 - it ends elsewhere
                await asyncio.sleep(POLL_SECONDS)
        assert cluster.asked is not None, "a failover seals and fences"
        return clock.ms_between(began, decided), clock.ms_between(began, cluster.asked)


async def _cores(pid: int, work: Any) -> float:
    """Return how many cores a process uses while `work` is done."""
    used, began = processor_seconds([pid]), clock.now()
    await work
    return (processor_seconds([pid]) - used) * 1_000 / clock.ms_between(began, clock.now())


# -- files and processes ------------------------------------------------------------------------------------------------


def base_of(folder: Path, zookeeper: str) -> Settings:
    """Return the settings that all clusters have in common, and write the secret of all of them."""
    secret = folder / "secret"
    secret.write_text("simulated", encoding="utf-8")
    secret.chmod(0o600)
    (folder / "log").mkdir()
    sites, ports = ("clinic", "toronto", "montreal"), itertools.count(FIRST_PORT)
    return cluster_settings.check({
        "name": "base", "zookeeper": [zookeeper], "initial_primary": "db-clinic", "sites": sites, "token_file": secret,
        "accounts": {f"{one}_password_file": secret for one in ("admin", "replication", "verify")},
        "failover": {"automatic_max": AUTOMATIC_MAX},
        "nodes": [{"name": f"db-{site}", "site": site, "server_id": number, "port": next(ports),
                   "watchdog_port": next(ports), "pid_file": folder} for number, site in enumerate(sites, 1)],
        "replicators": [{"site": site, "server_id": 100 + number, "port": next(ports), "http_port": next(ports),
                         "archive": folder} for number, site in enumerate(sites)],
        "controllers": [{"name": f"controller-{site}", "site": site, "port": next(ports)} for site in sites[1:]],
    })  # fmt: skip


def write_clusters(base: Settings, folder: Path, count: int) -> Place:
    """Write the settings of so many clusters, each on a loopback address of its own."""
    folder.mkdir()
    paths = []
    for number in range(count):
        path = folder / f"{folder.name}-{number:03d}.toml"
        write(path, settings_of(base, path.stem, f"127.1.{number // 250 + 1}.{number % 250 + 1}"))
        paths.append(path)
    return Place(folder, tuple(paths))


def settings_of(base: Settings, name: str, host: str) -> Settings:
    """Return the settings of a cluster on a loopback address of its own."""
    return replace(
        base, name=name,
        nodes=tuple(replace(one, host=host) for one in base.nodes),
        replicators=tuple(replace(one, host=host) for one in base.replicators),
        controllers=tuple(replace(one, host=host) for one in base.controllers),
    )  # fmt: skip


def write_unusable(base: Settings, folder: Path) -> None:
    """Write what no cluster can be served of: a broken file, a secret that is missing, a ZooKeeper that is not there."""
    (folder / "unusable-file.toml").write_text("name = ", encoding="utf-8")
    write(
        folder / "unusable-secret.toml",
        replace(settings_of(base, "unusable-secret", "127.1.9.1"), token_file=folder / "missing"),
    )
    gone = replace(settings_of(base, "unusable-zookeeper", "127.1.9.2"), zookeeper=("127.1.9.2:1",))
    write(folder / "unusable-zookeeper.toml", gone)


def write(path: Path, settings: Settings) -> None:
    """Write a settings file."""
    told = ((one.name, getattr(settings, one.name)) for one in fields(settings))
    path.write_text("".join(f"{name} = {toml(value)}\n" for name, value in told if value is not None), encoding="utf-8")


def toml(value: object) -> str:
    """Return a value as TOML in one line."""
    if is_dataclass(value) and not isinstance(value, type):
        return toml({one.name: getattr(value, one.name) for one in fields(value)})
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(one)}" for key, one in value.items() if one is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(one) for one in value) + "]"
    return json.dumps(value if isinstance(value, bool | int | float) else str(value))


@contextmanager
def zookeeper(folder: Path) -> Iterator[str]:
    """Run one ZooKeeper as Debian configures it, its files in memory: the disk is not what is measured."""
    port = next(port for port in ZOOKEEPER_PORTS if preflight.is_free(port))
    configuration = folder / "zookeeper.cfg"
    configuration.write_text(
        f"tickTime=500\ndataDir={folder / 'zookeeper'}\nclientPort={port}\nclientPortAddress=127.0.0.1\n"
        "admin.enableServer=false\n", encoding="utf-8",
    )  # fmt: skip
    command = [preflight.programs().java, *JAVA_OPTIONS, "-cp", ":".join(map(str, ZOOKEEPER_JARS)), ZOOKEEPER_MAIN]
    with ended(subprocess.Popen([*command, str(configuration)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)):
        yield f"127.0.0.1:{port}"


@contextmanager
def controlling(place: Place) -> Iterator[int]:
    """Run one controller process for a folder; give its pid."""
    command = [
        preflight.programs().oscar_ha,
        "controller",
        "run",
        "--settings",
        str(place.folder),
        "--name",
        CONTROLLER,
    ]
    with (
        (place.folder.parent / "log" / f"controller-{place.folder.name}.log").open("wb") as log,
        ended(subprocess.Popen(command, stderr=log)) as process,
    ):
        yield process.pid


@contextmanager
def simulating(place: Place, broken: int) -> "Iterator[subprocess.Popen[str]]":
    """Run the clusters that are not measured, in a process of their own."""
    command = [sys.executable, "-m", "chaos.scale_nodes", str(broken), *map(str, place.others)]
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        yield process


@contextmanager
def ended(process: "subprocess.Popen[Any]") -> "Iterator[subprocess.Popen[Any]]":
    """End a process of ours, politely or by force."""
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_DEADLINE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
