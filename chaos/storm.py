"""`script/storm`: kill -9 of databases and replicators at random moments, under load, until it has been done often enough.

The whole product runs: watchdogs, controllers, HAProxy, clinics that write. A killed primary is a failover, and the old
one must come back as a standby; one that cannot is made anew from its site's archive. Afterwards everything is compared:
what was acknowledged with what is there, database with database, archive with archive and with the binlogs themselves.
"""

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import archives, checks
from chaos.attack.catalogue import Parts
from chaos.bench_figures import figure
from chaos.history import Finding, all_kept
from chaos.lab import build, control, rebuild, remove
from chaos.lab.layout import ARCHIVE_KEYS, Layout, Option, Request
from chaos.lab.names import SITES, Kind, node_name
from chaos.lab_remote import RemoteLab, stays_away, wait_until, wait_writing
from chaos.run_folder import keep_logs
from chaos.storm_plan import Blow, Burst, Victim, plan
from chaos.traffic import Traffic, open_connection, prepare
from chaos.traffic_journal import Journal
from chaos.whole import ended, longest_pause_ms, marks, not_whole, playing
from cluster import clock
from cluster.clock import Nanos
from cluster.errors import OscarHaError, Unreachable
from cluster.position import Position
from replicator.keys import NO_KEYS, read_keys

CLINICS = 2
WRITES_PER_SECOND = 60.0
"""Of each clinic."""
SECONDS_MAX = 3_600.0
PREPARE_DEADLINE_MS = 30_000.0
WRITE_DEADLINE_MS = 90_000.0
WHOLE_DEADLINE_MS = 300_000.0
CHECK_DEADLINE_MS = 60_000.0
APPLIERS = Option("slave_parallel_threads", "4")
"""A node that is made anew late in a storm has all of it to apply."""
STRAY_SETTLED_MS = 3_000.0
"""A node that is fenced with a history of its own for this long stays so: then it is made anew."""
NODE_TIMEOUT_S = 2
KIND_OF = {
    Victim.PRIMARY: "primary", Victim.STANDBY: "standby", Victim.ACKER: "replicator", Victim.REPLICATOR: "replicator",
}  # fmt: skip
BYTES, AGREE = "archives equal the binlogs", "archives equal each other"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Hit:
    """What a blow hit, and when it was certainly dead."""

    victim: Victim
    process: str
    at: Nanos


@dataclass(slots=True)
class Told:
    """What a storm has done and found so far."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    outage_ms: dict[str, list[float]] = field(default_factory=dict)
    whole_ms: dict[str, list[float]] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    verdicts: dict[str, Finding] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    acknowledged: int = 0
    epochs: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.problems and all_kept(self.verdicts.values())

    def document(self) -> dict[str, Any]:
        """Return the JSON file of the storm."""
        return {
            "seed": self.seed,
            "kills": dict(self.kills),
            "moments": dict(self.moments),
            "verdicts": {claim: finding.verdict.value for claim, finding in self.verdicts.items()},
            "why": {claim: finding.why for claim, finding in self.verdicts.items()},
            "outage_ms": {kind: figure(values, "ms") for kind, values in sorted(self.outage_ms.items())},
            "whole_ms": {kind: figure(values, "ms") for kind, values in sorted(self.whole_ms.items())},
            "acknowledged": self.acknowledged,
            "epochs": self.epochs,
            "rebuilt": self.rebuilt,
            "problems": self.problems,
            "seconds": round(self.seconds, 1),
            "faults": self.faults,
        }


class Storm:
    """One lab under one storm. Use as a context manager: leaving it takes the lab down, whatever happened."""

    def __init__(self, folder: Path, say: Say, *, kills: int, seed: int, encrypt_archive: bool = False) -> None:
        self.told = Told(seed)
        self._folder = folder
        self._request = Request(directory=folder / "lab", clinics=CLINICS, options=(APPLIERS,),
                                encrypt_archive=encrypt_archive)  # fmt: skip
        self._lab = RemoteLab(folder / "lab")
        self._layout = Layout(folder / "lab")
        self._bursts = plan(kills, seed)
        self._say = say
        self._due: list[tuple[Nanos, str]] = []
        """What is dead and when it is started again."""
        self._parts = Parts()
        """As the controllers said last; while a failover runs nobody may be able to say."""

    def __enter__(self) -> "Storm":
        remove.down(self._lab.directory, keep=False)
        shutil.rmtree(self._folder / "logs", ignore_errors=True)
        (self._folder / "journal.jsonl").unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        remove.down(self._lab.directory, keep=False)

    def run(self) -> Told:
        """Do all of it. What goes wrong is a problem in what is told."""
        began = clock.now()
        try:
            self._run()
        except OscarHaError as error:
            self.told.problems.append(str(error))
        if not self.told.passed:
            keep_logs(self._lab.directory, self._folder / "logs")
        self.told.seconds = clock.ms_between(began, clock.now()) / 1_000
        return self.told

    def _run(self) -> None:
        self._say("a lab of three sites starts …")
        build.up(self._request, _Silent(), keep=True)
        lab = self._lab.file
        prepare(lab.clinics[0], deadline_ms=PREPARE_DEADLINE_MS)
        journal = Journal(self._folder / "journal.jsonl")
        traffic = Traffic(
            lab.clinics, journal, seconds=SECONDS_MAX, writes_per_second=WRITES_PER_SECOND, seed=self.told.seed,
            nodes=lab.nodes,
        )  # fmt: skip
        try:
            with traffic:
                self._await_whole()
                for number, burst in enumerate(self._bursts, start=1):
                    self._strike(number, burst, traffic)
                traffic.stop()
        finally:
            journal.close()
        self._judge(traffic)

    # -- one burst ---------------------------------------------------------------------------------------------------

    def _strike(self, number: int, burst: Burst, traffic: Traffic) -> None:
        """Hit, start again, wait until all is whole, and tell it."""
        since = marks(traffic)
        self._sleep_until(clock.after(clock.now(), burst.pause_ms))
        hits: list[Hit] = []
        for blow in burst.blows:
            hits.append(self._hit(blow, hits[-1] if hits else None))
        self._start_all()
        last = hits[-1].at
        wait_writing(traffic, after=last, deadline_ms=WRITE_DEADLINE_MS)
        self._await_whole()
        whole_ms = clock.ms_between(last, clock.now())
        self._note(number, burst, hits, longest_pause_ms(traffic, since, hits[0].at), whole_ms)

    def _hit(self, blow: Blow, before: Hit | None) -> Hit:
        """Do one blow. It is exact about which process it kills, and says which part that played."""
        if blow.again and before is not None:
            self._start_all()
        if blow.rotates:
            self._rotate()
        self._sleep_until(clock.after(clock.now(), blow.wait_ms))
        name = before.process if blow.again and before is not None else self._find(blow)
        (done,) = control.kill(self._lab.directory, name)
        at = clock.now()
        self._due.append((clock.after(at, blow.down_ms), name))
        self.told.kills[KIND_OF[blow.victim]] += done.what == "killed"  # its watchdog may have been faster
        return Hit(blow.victim, name, at)

    def _find(self, blow: Blow) -> str:
        self._learn()
        dead = {name for _, name in self._due}
        match blow.victim:
            case Victim.PRIMARY:
                return self._primary
            case Victim.STANDBY:
                found = [node_name(site) for site in SITES if node_name(site) not in {*dead, self._primary}]
            case Victim.ACKER:
                return f"replicator-{self._parts.ackers[0]}"
            case Victim.REPLICATOR:
                others = [f"replicator-{site}" for site in SITES if site not in self._parts.ackers]
                found = [name for name in others if name not in dead]
        return found[blow.which % len(found)]

    @property
    def _primary(self) -> str:
        return node_name(self._parts.primary)

    def _learn(self) -> None:
        """Ask who plays which part; nobody may be able to tell while two processes are dead."""
        with suppress(Unreachable):
            self._parts = playing(self._lab.cluster(), self._parts)

    def _rotate(self) -> None:
        """Begin a new binlog file on the primary, in a thread of its own: the blow comes while it does."""
        self._learn()
        node = self._lab.file.node(self._primary)

        def flush() -> None:
            connection = open_connection(
                host=node.host, port=node.admin_port or node.port, user=node.admin_user, password=node.admin_password,
                read_timeout=NODE_TIMEOUT_S,
            )  # fmt: skip
            ready.set()
            with connection, connection.cursor() as cursor:
                cursor.execute("FLUSH BINARY LOGS")

        ready = threading.Event()
        threading.Thread(target=_quietly, args=(flush,), daemon=True).start()
        ready.wait(NODE_TIMEOUT_S)

    # -- starting again ----------------------------------------------------------------------------------------------

    def _sleep_until(self, instant: Nanos) -> None:
        """Wait, and start meanwhile what is due."""
        pause = threading.Event()
        while True:
            now = clock.now()
            for entry in [one for one in self._due if one[0] <= now]:
                self._due.remove(entry)
                control.start(self._lab.directory, entry[1], wait=False)
            if now >= instant:
                return
            pause.wait(clock.seconds_left(min([instant, *(at for at, _ in self._due)])))

    def _start_all(self) -> None:
        self._sleep_until(max((at for at, _ in self._due), default=clock.now()))

    # -- whole again -------------------------------------------------------------------------------------------------

    def _await_whole(self) -> None:
        """Wait until every part does its work again. Raises DeadlinePassed with what is missing."""
        mender = _Mender(self._lab, self._request, self.told, self._say)
        wait_until(mender.missing, deadline_ms=WHOLE_DEADLINE_MS, what="the cluster does not become whole")

    def _note(self, number: int, burst: Burst, hits: list[Hit], gap_ms: float | None, whole_ms: float) -> None:
        kind = KIND_OF[hits[0].victim] if len(hits) == 1 else burst.moment.value
        self.told.moments[burst.moment.value] += len(hits)
        if gap_ms is not None:
            self.told.outage_ms.setdefault(kind, []).append(gap_ms)
        self.told.whole_ms.setdefault(kind, []).append(whole_ms)
        self.told.faults.append(
            {"moment": burst.moment.value, "killed": [f"{hit.victim.value} {hit.process}" for hit in hits],
             "outage_ms": gap_ms, "whole_ms": round(whole_ms)}
        )  # fmt: skip
        told = " and ".join(f"{hit.victim.value} {hit.process}" for hit in hits)
        gap = "no longer pause seen" if gap_ms is None else f"longest pause {gap_ms:.0f} ms"
        self._say(
            f"{number:>4} of {len(self._bursts)}  {burst.moment.value:<14} {told:<62} {gap}, whole after {whole_ms:.0f} ms"
        )

    # -- the end -----------------------------------------------------------------------------------------------------

    def _judge(self, traffic: Traffic) -> None:
        self._say("the clinics close; everything is compared …")
        self._await_whole()
        told, lab, history = self.told, self._lab.file, traffic.history
        told.acknowledged = sum(1 for write in history if write.acknowledged)
        told.epochs = self._lab.primary()[1]
        told.verdicts = checks.judge(history, lab, deadline_ms=CHECK_DEADLINE_MS)
        wait_until(self._behind, deadline_ms=CHECK_DEADLINE_MS, what="an archive does not become complete")
        keys = read_keys(self._layout.secret(ARCHIVE_KEYS)) if self._request.encrypt_archive else NO_KEYS
        files = {site: archives.files_of(self._layout.archive(site), keys) for site in SITES}
        places = {
            number: rebuild.binlog_folders(self._lab.directory, node_name(site)) for number, site in enumerate(SITES, 1)
        }
        told.verdicts[BYTES] = archives.equal_to_binlogs(files, places)
        told.verdicts[AGREE] = archives.equal_to_each_other(files)

    def _behind(self) -> str:
        """Return which archive has not yet what the primary has."""
        state = self._lab.cluster()
        head = max((Position.parse(one["position"] or "") for one in state["nodes"]), key=_sequence)
        missing = [one["site"] for one in state["replicators"] if not Position.parse(one["durable"] or "").covers(head)]
        return f"{', '.join(missing)} has not {head}" if missing else ""


class _Mender:
    """Looks whether the cluster is whole, and does the two things that a person would do: start, and make anew."""

    def __init__(self, lab: RemoteLab, request: Request, told: Told, say: Say) -> None:
        self._lab, self._request, self._told, self._say = lab, request, told, say
        self._started: Counter[str] = Counter()
        self._stray_since: dict[str, Nanos] = {}

    def missing(self) -> str:
        """Return what is not whole, in words; nothing when all is well."""
        dead = self._start_what_ended()
        state = self._lab.cluster()
        for report in state["nodes"]:
            self._make_anew_if_stray(report, state)
        return dead or not_whole(state)

    def _start_what_ended(self) -> str:
        """Start what ended by itself: a supervisor would. A database that ends again is made anew."""
        for one in ended(self._lab.directory):
            part, said = one.part, one.said
            self._started[part.name] += 1
            if part.kind is Kind.DATABASE and self._started[part.name] > 1:
                self._make_anew(part.name, said)
            else:
                if part.kind is not Kind.DATABASE:
                    self._told.problems.append(f"{part.name} ended by itself: {said}")
                control.start(self._lab.directory, part.name, wait=False)
            return f"{part.name} has ended: {said}"
        return ""

    def _make_anew_if_stray(self, report: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        name = str(report["node"])
        stray = stays_away(report, state.get("epoch"))
        if not stray:
            self._stray_since.pop(name, None)
        elif clock.ms_between(self._stray_since.setdefault(name, clock.now()), clock.now()) > STRAY_SETTLED_MS:
            del self._stray_since[name]
            self._make_anew(name, stray)

    def _make_anew(self, node: str, why: str) -> None:
        self._say(f"      {node} is made anew from its site's archive: {why}")
        self._told.rebuilt.append(f"{node}: {why}")
        rebuild.rebuild(self._request, node)
        self._started.pop(node, None)


def _sequence(position: Position) -> int:
    return max((gtid.sequence for gtid in position.last.values()), default=0)


def _quietly(work: Callable[[], None]) -> None:
    """Run what a blow may cut off."""
    try:
        work()
    except Exception:  # noqa: BLE001 - the server is being killed: whatever it answers is right
        return


class _Silent:
    def working(self, what: str) -> None:
        """Nobody watches."""

    def done(self, what: str, detail: str = "") -> None:
        """Nobody watches."""
