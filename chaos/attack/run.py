"""`script/chaos`: rounds of faults against one lab, clinics at work meanwhile, and at the end a verdict on every promise.

What a supervisor does is done (a process that has ended is started) and nothing that a person does: what is not whole again
within its deadline is *broken*. Whatever ends an attack, all that it broke is healed and its lab taken down.
"""

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from chaos import archives, checks
from chaos.attack import verdicts, workloads
from chaos.attack.catalogue import Fault, Lab
from chaos.attack.inject import Injected, Injector
from chaos.attack.observe import Observer
from chaos.attack.plan import Round, Turn, timeline
from chaos.attack.told import FaultTold, RoundTold, Told, lag_per_second, per_second, role_spans
from chaos.attack.verdicts import Record, Recovery
from chaos.attack.workloads import TOTAL, Workloads
from chaos.history import Finding, Write
from chaos.lab import build, control, ledger, rebuild, remove
from chaos.lab.layout import AUTOMATIC_MAX, Layout, Option, Request, Wires
from chaos.lab.names import SITES, Kind, Part, node_name
from chaos.lab_remote import RemoteLab, wait_until
from chaos.run_folder import keep_logs
from chaos.traffic import Traffic, prepare
from chaos.traffic_journal import Journal
from chaos.whole import ended, longest_pause_ms, marks, not_whole_by_all
from cluster import clock, settings
from cluster.binlog.framing import MIB
from cluster.clock import Nanos
from cluster.errors import DeadlinePassed, OscarHaError

CLINICS = 2
WRITES_PER_SECOND = 25.0
"""Of each clinic, besides lists, bank and upgrade."""
PREPARE_DEADLINE_MS = 30_000.0
FIRST_WHOLE_DEADLINE_MS = 90_000.0
WRITING_MS_MAX, WHOLE_MS_MAX = 60_000.0, 240_000.0
"""So long after the last heal clinics write again, and the cluster is whole: built anew, rescued, all by itself."""
CHECK_DEADLINE_MS = 90_000.0
RESTART_AFTER_SECONDS = 20
"""Instead of five minutes: nobody else is there who could start a crashed server."""
SCRUB_SECONDS = 5
"""Instead of a week: a damaged byte must be found while it is waited for."""
ARCHIVE_DISK_BYTES = 1024 * MIB
SLOW_MS, REASONS_TOLD_MAX = 30_000.0, 4
"""Of a round that took so long it is told what was waited for most."""
STARTS_MAX = 30
"""So often what ended by itself is started; then it is called stuck."""
TRAFFIC_SECONDS_MAX = 3_600.0
HISTORY_MAX = 500
LISTS_LOST, VISIBLE, STAYS = "no acknowledged append lost", "acknowledged is visible", "what was read stays"
TOTALS, TELLS, RECOVERS = "totals constant", "the history tells what happened", "recovers by itself"
AGREE, REPLAYS = "archives equal each other", "an archive replays to the same data"
Say = Callable[[str], None]


class Attack:
    """One lab under attack. Use as a context manager: leaving it heals everything and takes the lab down."""

    def __init__(self, folder: Path, say: Say, *, seed: int, minutes: float, network: Wires) -> None:
        self.told = Told(seed=seed, minutes=minutes)
        self._folder, self._say = folder, say
        self._lab = RemoteLab(folder / "lab")
        self.request = Request(
            directory=folder / "lab", clinics=CLINICS, zookeepers=3, wires=network, owner=os.getpid(),
            archive_disk_bytes=ARCHIVE_DISK_BYTES, options=(Option("slave_parallel_threads", "4"),),
            policies={
                "rejoin": {"attempts_max": AUTOMATIC_MAX, "restart_after_seconds": RESTART_AFTER_SECONDS},
                "archive": {"scrub_every_hours": SCRUB_SECONDS / 3_600},
            },
        )  # fmt: skip
        self._layout = Layout(folder / "lab")
        self._injector = Injector(self._lab)
        self._recoveries: list[Recovery] = []
        self._starts = 0
        self._waited_for: Counter[str] = Counter()
        self._began: Nanos = clock.now()

    def __enter__(self) -> "Attack":
        remove.down(self._lab.directory, keep=False)
        shutil.rmtree(self._folder / "logs", ignore_errors=True)
        (self._folder / "journal.jsonl").unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._heal()
        remove.down(self._lab.directory, keep=False)

    def attack(self, rounds_for: Callable[[Lab], Sequence[Round]]) -> Told:
        """Start the lab, do as many rounds as there is time for, and judge. What goes wrong is a problem in what is told."""
        begun = clock.now()
        try:
            self._run(rounds_for(self._up()))
        except OscarHaError as error:
            self.told.problems.append(str(error))
        if not self.told.passed:
            keep_logs(self._lab.directory, self._folder / "logs")
        self.told.seconds = clock.ms_between(begun, clock.now()) / 1_000
        return self.told

    def _up(self) -> Lab:
        """Start the lab, and return what is possible in it."""
        self._say("a lab of three sites starts …")
        reporter = _Listening()
        lab = build.up(self.request, reporter, keep=True)
        self.told.network = reporter.network or "loopback, as asked: nothing can be cut"
        self._say(f"network: {self.told.network}")
        clinic = self._lab.file.clinics[0]
        prepare(clinic, deadline_ms=PREPARE_DEADLINE_MS)
        workloads.prepare(clinic)
        if reporter.disks:
            self._say(f"disks: {reporter.disks}")
        return Lab(clinics=CLINICS, has_network=lab.network is not None, has_disks=not reporter.disks)

    def _run(self, rounds: Sequence[Round]) -> None:
        lab = self._lab.file
        journal = Journal(self._folder / "journal.jsonl")
        self._began = clock.now()
        traffic = Traffic(lab.clinics, journal, seconds=TRAFFIC_SECONDS_MAX, writes_per_second=WRITES_PER_SECOND,
                          seed=self.told.seed, nodes=lab.nodes)  # fmt: skip
        observer = Observer(self._lab, tuple(clinic.name for clinic in lab.clinics))
        try:
            with traffic, Workloads(lab.clinics, self.told.seed) as work, observer:
                try:
                    self._rounds(rounds, traffic, observer)
                finally:
                    self._heal()
                    self._note_timeline(traffic.history, observer)
                self._say("the clinics close; everything is compared …")
                work.stop()
                traffic.stop()
        finally:
            journal.close()
        self.told.verdicts[RECOVERS] = verdicts.recovers_by_itself(
            self._recoveries, writing_ms_max=WRITING_MS_MAX, whole_ms_max=WHOLE_MS_MAX
        )
        if not self.told.problems:
            self._judge(traffic.history, work, observer)

    # -- one round ---------------------------------------------------------------------------------------------------

    def _rounds(self, rounds: Sequence[Round], traffic: Traffic, observer: Observer) -> None:
        self._wait_whole(observer, (), FIRST_WHOLE_DEADLINE_MS)
        limit = clock.after(clock.now(), self.told.minutes * 60_000)
        for number, one in enumerate(rounds, start=1):
            if clock.now() >= limit:
                return
            threading.Event().wait(one.pause_ms / 1_000)
            recovered = self._round(number, one, traffic, observer)
            if recovered.whole_ms is None or recovered.writing_ms is None:
                self.told.problems.append(f"round {number}: the cluster is stuck")
                return

    def _round(self, number: int, one: Round, traffic: Traffic, observer: Observer) -> Recovery:
        begun, since = clock.now(), marks(traffic)
        done = self._do(one, begun, observer)
        healed = clock.now()
        recovery = self._recover(one.kinds, healed, done, traffic, observer)
        self._recoveries.append(recovery)
        told = RoundTold(
            number=number, plan=one, faults=tuple(self._fault_told(each) for each in done),
            outage_ms=longest_pause_ms(traffic, since, begun), writing_ms=recovery.writing_ms, whole_ms=recovery.whole_ms,
            epoch=observer.samples[-1].epoch if observer.samples else None,
        )  # fmt: skip
        self.told.rounds.append(told)
        self._say_story(told, done, begun)
        return recovery

    def _say_story(self, told: RoundTold, done: Sequence[Injected], begun: Nanos) -> None:
        self._say(story(told, [each.text for each in done], clock.ms_between(self._began, begun) / 1_000))
        if (told.whole_ms or SLOW_MS) >= SLOW_MS:
            for what, looks in self._waited_for.most_common(REASONS_TOLD_MAX):
                self.told.events.append(f"round {told.number} waited {looks} looks for: {what}")
                self._say(f"      {looks:>5} looks: {what or 'whole'}")

    def _do(self, one: Round, begun: Nanos, observer: Observer) -> list[Injected]:
        """Do everything of a round at its moment; whatever happens, all of it is healed."""
        done: dict[int, Injected] = {}
        try:
            for moment in timeline(one):
                threading.Event().wait(clock.seconds_left(clock.after(begun, moment.at_ms)))
                fault: Fault = one.faults[moment.fault]
                match moment.turn:
                    case Turn.BEGIN:
                        done[moment.fault] = self._injector.begin(fault, observer.parts)
                    case Turn.AGAIN:
                        self._injector.again(done[moment.fault])
                    case Turn.END:
                        self._injector.end(done[moment.fault])
        except BaseException:
            self._heal()
            raise
        return [done[number] for number in sorted(done)]

    def _heal(self) -> None:
        """Heal everything; what cannot be healed is a problem, and keeps nothing else from being done."""
        try:
            if self._layout.ledger.exists():
                self._injector.heal_all()
        except OscarHaError as error:
            self.told.problems.append(f"not healed: {error}")

    def _recover(
        self, what: str, healed: Nanos, done: Sequence[Injected], traffic: Traffic, observer: Observer
    ) -> Recovery:
        writing_ms = self._waited(
            lambda: ", ".join(one.clinic.name for one in traffic.writers if not one.has_written(healed)),
            healed, WRITING_MS_MAX, f"{what}: clinics do not write again",
        )  # fmt: skip
        if writing_ms is None:
            return Recovery(what=what, writing_ms=None, whole_ms=None)
        try:
            self._wait_whole(observer, done, WHOLE_MS_MAX)
        except DeadlinePassed as error:
            self.told.problems.append(str(error))
            return Recovery(what=what, writing_ms=writing_ms, whole_ms=None)
        return Recovery(what=what, writing_ms=writing_ms, whole_ms=clock.ms_between(healed, clock.now()))

    def _waited(self, missing: Callable[[], str], since: Nanos, deadline_ms: float, what: str) -> float | None:
        def missing_or_dead() -> str:
            self._start_what_ended()
            return missing()

        try:
            wait_until(missing_or_dead, deadline_ms=deadline_ms, what=what)
        except DeadlinePassed as error:
            self.told.problems.append(str(error))
            return None
        return clock.ms_between(since, clock.now())

    # -- whole again -------------------------------------------------------------------------------------------------

    def _wait_whole(self, observer: Observer, done: Sequence[Injected], deadline_ms: float) -> None:
        self._waited_for.clear()

        def missing() -> str:
            self._start_what_ended()
            found = next(filter(None, map(self._lacks, done)), "")
            if not found:  # asked only now: what is said must be of after that
                states = self._lab.clusters()
                observer.saw(states[0])
                found = not_whole_by_all(states)
            self._waited_for[found] += 1
            return found

        wait_until(missing, deadline_ms=deadline_ms, what="the cluster does not become whole")

    def _lacks(self, one: Injected) -> str:
        return self._injector.unserved(one) or self._injector.answered(one) or self._injector.unmended(one)

    def _start_what_ended(self) -> None:
        """Start what has ended, as a supervisor does; a database is its watchdog's, who may be building it anew."""
        for one in ended(self._lab.directory, _is_supervised):
            try:
                control.start(self._lab.directory, one.part.name, wait=False)
            except ledger.Busy:  # a watchdog is starting its server: the next look is soon
                return
            self._starts += 1
            if self._starts > STARTS_MAX:
                raise OscarHaError(f"{one.part.name} ends again and again: {one.said}")
            self.told.events.append(f"{one.part.name} ended by itself: {one.said}")
            self._say(f"      {one.part.name} ended by itself and was started: {one.said}")

    # -- the end -----------------------------------------------------------------------------------------------------

    def _judge(self, history: Sequence[Write], work: Workloads, observer: Observer) -> None:
        lab, found = self._lab.file, self.told.verdicts
        self._wait_whole(observer, (), WHOLE_MS_MAX)
        found |= checks.judge(history, lab, deadline_ms=CHECK_DEADLINE_MS)
        found[checks.ONE_WRITER] = verdicts.one_epoch_at_a_time(history)
        final = workloads.final_lists(lab.clinics[0])
        found[LISTS_LOST] = verdicts.no_append_lost(work.appends, final)
        found[VISIBLE] = verdicts.acknowledged_is_visible(work.appends, work.reads)
        found[STAYS] = verdicts.what_was_read_stays(work.reads, final)
        totals = [*work.totals, workloads.final_total(lab.clinics[0])]
        found[TOTALS] = verdicts.totals_constant(totals, TOTAL, transfers=work.transfers)
        found[TELLS] = verdicts.history_tells(history, self._records(), self._server_ids())
        found[AGREE] = self._archives_agree()
        found[REPLAYS] = self._replayed(observer)
        self.told.counts = {
            "acknowledged": sum(1 for write in history if write.acknowledged),
            "appends": sum(1 for one in work.appends if one.acknowledged),
            "reads": len(work.reads), "transfers": work.transfers, "totals": len(totals),
            "epochs": self._lab.primary()[1],
        }  # fmt: skip

    def _records(self) -> list[Record]:
        return [
            Record(epoch=int(one["epoch"]), kind=str(one["kind"]), new=one["new"], proof=one["proof"],
                   outcome=str(one["outcome"]))
            for one in self._lab.history(HISTORY_MAX)
        ]  # fmt: skip

    def _server_ids(self) -> dict[int, str]:
        nodes = settings.load(self._layout.settings).nodes
        return {node.server_id: node.name for node in nodes}

    def _archives_agree(self) -> Finding:
        layout = self._layout
        return archives.equal_to_each_other({site: archives.files_of(layout.archive(site)) for site in SITES})

    def _replayed(self, observer: Observer) -> Finding:
        """Make a standby anew from nothing but the archive of its site, and compare it with the others."""
        primary = self._lab.primary()[0]
        node = next(node_name(site) for site in reversed(SITES) if node_name(site) != primary)
        self._say(f"{node} is made anew from the archive of its site …")
        rebuild.rebuild(self.request, node)
        self._wait_whole(observer, (), WHOLE_MS_MAX)
        equal = checks.databases_equal(self._lab.file.nodes, deadline_ms=CHECK_DEADLINE_MS)
        return Finding(verdict=equal.verdict, why=f"{node} from its archive: {equal.why}")

    def _note_timeline(self, history: Sequence[Write], observer: Observer) -> None:
        samples = tuple(observer.samples)
        self.told.timeline = {
            "writes": per_second(history, self._began, clock.now()),
            "lag_ms": lag_per_second(samples, self._began),
            "roles": role_spans(samples, self._began),
        }

    def _fault_told(self, one: Injected) -> FaultTold:
        def seconds(instant: Nanos | None) -> float | None:
            return None if instant is None else round(clock.ms_between(self._began, instant) / 1_000, 2)

        return FaultTold(kind=one.fault.kind, hit=one.hit.text, began_s=seconds(one.began) or 0.0,
                         healed_s=seconds(one.healed), did_not=one.did_not, told=one.told)  # fmt: skip


def story(told: RoundTold, faults_text: Sequence[str], at_s: float) -> str:
    """Return the line of a round."""
    outage = "not known" if told.outage_ms is None else f"{told.outage_ms:.0f} ms"
    whole = "never whole again" if told.whole_ms is None else f"whole {told.whole_ms / 1_000:.1f} s after the last heal"
    clock_text = f"{int(at_s // 60):>3}:{at_s % 60:04.1f}"
    return (
        f"{clock_text} {told.number:>4}  {'; '.join(faults_text)}: longest pause {outage}, {whole}, epoch {told.epoch}"
    )


def _is_supervised(part: Part) -> bool:
    return part.kind is not Kind.DATABASE


class _Listening:
    """A reporter that only hears what network it has become."""

    network, disks = "", ""

    def working(self, what: str) -> None:
        """Nobody watches."""

    def done(self, what: str, detail: str = "") -> None:
        if what == "network":
            self.network = detail
        elif what == "disks":
            self.disks = detail
