"""A real ZooKeeper 3.8, one member or an ensemble, from Debian's jars, started by java itself."""

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.servers.process import ServerFailed, ServerProcess, free_port

# Debian's zkEnv.sh uses this jar; its manifest names all the others. The second only makes messages visible.
JARS = ("/usr/share/java/zookeeper.jar", "/usr/share/java/slf4j-simple.jar")
MAIN_CLASS = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
JAVA_OPTIONS = (
    "-Xmx128m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dzookeeper.forceSync=no",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
START_DEADLINE_MS = 30_000
START_ATTEMPTS_MAX = 3
ANSWER_DEADLINE_S = 1.0


def missing() -> str:
    """Return what is not installed, empty when all is there."""
    if shutil.which("java") is None:
        return "java (package openjdk-17-jre-headless)"
    return "" if Path(JARS[0]).exists() else f"{JARS[0]} (package libzookeeper-java)"


class ZooKeeperServer:
    """One member. Sessions last between 2 and 20 ticks. Data stay in `directory` between stop and start."""

    def __init__(self, directory: Path, tick_ms: int = 500, ensemble: Sequence[str] = ()) -> None:
        self.directory = directory
        self.tick_ms = tick_ms
        self.ensemble = tuple(ensemble)
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        self.process = ServerProcess("zookeeper", directory / "zookeeper.log")

    @property
    def address(self) -> str:
        """Return host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.alive

    def start(self) -> None:
        """Start it, and return when it answers. A port that was taken meanwhile is replaced at the first start."""
        first = not (self.directory / "data").exists()
        for attempt in range(1, START_ATTEMPTS_MAX + 1):
            try:
                self._launch()
                return
            except ServerFailed:
                self.kill()
                if not first or attempt == START_ATTEMPTS_MAX:
                    raise
                self.port = free_port()

    def _launch(self) -> None:
        self.begin()
        self.wait_ready()

    def begin(self) -> None:
        """Start it without waiting: a member of an ensemble answers only once a majority runs."""
        configuration = self.directory / "zoo.cfg"
        lines = [
            f"tickTime={self.tick_ms}",
            f"dataDir={self.directory / 'data'}",
            f"clientPort={self.port}",
            "clientPortAddress=127.0.0.1",
            "admin.enableServer=false",
            "4lw.commands.whitelist=srvr",
            *(("initLimit=10", "syncLimit=4") if self.ensemble else ()),
            *self.ensemble,
        ]
        configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.process.launch(["java", *JAVA_OPTIONS, "-cp", ":".join(JARS), MAIN_CLASS, str(configuration)])

    def wait_ready(self) -> None:
        """Return when it answers. Raises ServerFailed."""
        self.process.wait_until(self.answers, deadline_ms=START_DEADLINE_MS, what="answering")

    def answers(self) -> bool:
        """Return whether it serves clients now."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_DEADLINE_S) as connection:
                connection.sendall(b"srvr")
                text = b"".join(iter(lambda: connection.recv(4096), b""))
        except OSError:
            return False
        return b"Mode: " in text

    def stop(self) -> None:
        """End it politely."""
        self.process.stop()

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()

    def freeze(self) -> None:
        """Make it silent with its connections open."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.process.thaw()


def make_ensemble(directory: Path, size: int = 3) -> list[ZooKeeperServer]:
    """Return the members of an ensemble, not started yet: call `begin` of each, then `wait_ready`."""
    lines = [f"server.{number}=127.0.0.1:{free_port()}:{free_port()}" for number in range(1, size + 1)]
    members = [ZooKeeperServer(directory / f"member-{number}", ensemble=lines) for number in range(1, size + 1)]
    for number, member in enumerate(members, 1):
        data = member.directory / "data"
        data.mkdir()
        (data / "myid").write_text(f"{number}\n", encoding="utf-8")
    return members
