"""The watchdog of one node: it alone opens and closes its database, and says to the others what it sees.

Rules: the role changes only by the table in roles.py; what must survive us is written before the effect; the lease is
looked at again after every call that could block; and whatever cannot be closed in time is killed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import structlog

from cluster import clock
from cluster.coordination import Coordination
from cluster.dialect import Dialect, Promoted, Replication, Session
from cluster.errors import Conflict, DeadlinePassed, Diverged, FencedOut, OscarHaError, Refused, Unreachable
from cluster.lineage import History, judge_history
from cluster.log import Repeated
from cluster.position import Position
from cluster.records import Alone, Database, EpochRecord, NodeReport, PlannedEpoch, Role
from cluster.settings import Node, Secrets, Settings
from healthcheck import fence as fencing
from healthcheck import halt as halting
from healthcheck import judge, stuck
from healthcheck.condition import Keeper
from healthcheck.halt import Halt
from healthcheck.heartbeat import Heartbeat
from healthcheck.judge import Memory, Standing
from healthcheck.kept import Kept
from healthcheck.maintaining import Maintaining
from healthcheck.memory import MemoryFile
from healthcheck.metrics import Metrics
from healthcheck.obey import Act
from healthcheck.obeying import Orders
from healthcheck.prober import Prober
from healthcheck.rescuing import Foreign, Rescuing
from healthcheck.restarting import Restarting
from healthcheck.right import Right
from healthcheck.roles import Signal, advance, allows
from healthcheck.seeding import Seeding
from healthcheck.stuck import Stuck
from healthcheck.waiting import Waiting
from healthcheck.worker import Worker

LEASE_LOOK_SECONDS = 0.1
EPOCH_REREAD_SECONDS = 5.0
ACCOUNTS_LOOK_MS = 5_000
RESTART_REPLICATION_MS = 2_000
BORN_FENCED_MS = 10_000.0
"""A server that is read-only from its birth may take this long to be closed in full: a starved host has just started it."""
KILL_DEADLINE_MS = 1_000.0
STOP_DEADLINE_MS = 60_000.0
"""A server that is to be replaced may take this long to end by itself."""
MS_PER_SECOND = 1000
CAUGHT_UP_LOOKS = 2
WORKERS = ("act", "fence", "halt", "drain", "memory")
SESSIONS = (1, 2, 1)
"""What is kept for acting, fencing and draining; a fence asks in one session while the other waits."""
_NOWHERE: int | None = None
"""Of the session that we have written in, and of the revision of the epoch's record that we have read in it after that."""
Result = TypeVar("Result")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Fenced:
    """The proof of a fence: where the database stopped (None when nobody can ask it) and how it was reached."""

    fenced: bool
    position: str | None
    how: str
    vouches: int | None = None
    """The epoch in which certainly no commit was answered alone without a record of that."""


class _Every:
    """Something done at most once in so many milliseconds."""

    def __init__(self, interval_ms: float) -> None:
        self._interval_ms = interval_ms
        self._last: clock.Nanos | None = None

    def due(self) -> bool:
        """Return whether it is time; if so, the interval begins anew."""
        now = clock.now()
        if self._last is not None and clock.ms_between(self._last, now) < self._interval_ms:
            return False
        self._last = now
        return True


class Watchdog:
    """One node's watchdog. Its methods are coroutines of one loop; `run` never returns by itself."""

    def __init__(
        self,
        node: Node,
        settings: Settings,
        secrets: Secrets,
        dialect: Dialect,
        coordination: Coordination,
        file: MemoryFile,
    ) -> None:
        self.node, self.settings, self.timing = node, settings, settings.timing
        self.coordination = coordination
        self._secrets, self._dialect, self._file = secrets, dialect, file
        self.memory: Memory = file.read()
        self.role = Role.FENCED
        self.why = "the watchdog has just started"
        self.record: EpochRecord | None = None
        self._seen_epoch = self.memory.sealed_epoch
        self._met = ""  # the generation that was checked and is certainly closed, or open by right
        self._closings, self._fences = 0, 0
        self._acting = asyncio.Lock()
        self._news = asyncio.Event()
        self._epoch_news, self._epoch_watched = asyncio.Event(), False
        self._written_in, self._certain = _NOWHERE, _NOWHERE
        self._published: object = None
        self._slow_look, self._accounts_look = _Every(self.timing.renew_interval_ms), _Every(ACCOUNTS_LOOK_MS)
        self._restart = _Every(RESTART_REPLICATION_MS)
        self._caught_up_looks, self._unmet_told, self._trouble = 0, tuple[str, ...](), Repeated()
        self._halt: Halt | None = None
        self._still = False  # from the beginning of a halt until the applier runs again
        self._actor, self._fencer, self._halter, self._drainer, self._writer = map(Worker, WORKERS)
        self._acts, self._fencing, self._drains = (Kept(self._connect, count) for count in SESSIONS)
        self.prober = Prober(node, self.timing, settings.health, self._connect, self._on_death)
        self.heartbeat = Heartbeat(node.name, self.timing, self._connect)
        self.metrics = Metrics(lambda: (self.report(), self._lease_seconds()))
        self.seeding, self.rescuing, self.restarting = Seeding(self, secrets), Rescuing(self), Restarting(self, secrets)
        self._stuck: Stuck | None = None
        self.orders = Orders(node.name, coordination, self._on_order)
        self.maintaining, self.condition = Maintaining(node.name, coordination, self._tell_changes), Keeper(self)
        self.right = Right(settings, node.site, secrets.token, coordination, self)
        self.waiting = Waiting(self, settings)

    # -- what others see ----------------------------------------------------------------------------------------------

    def report(self) -> NodeReport:
        """Return what we saw and what we do about it."""
        probe, slow, database, now = self.prober.probe, self.prober.slow, self._database(), clock.now()
        return NodeReport(
            node=self.node.name, site=self.node.site, server_id=self.node.server_id,
            role=self.role, database=database,
            epoch=self._seen_epoch,
            sealed_epoch=self.memory.sealed_epoch,
            read_only=probe.read_only if probe and database is Database.UP else None,
            position=probe.position if probe else None,
            position_age_ms=self.prober.age_ms() if self.right.is_settled(now) else None,
            lag_ms=slow.lag_ms if slow else None,
            lag_age_ms=self.prober.slow_age_ms(),
            lease_epoch=self.memory.opened_epoch if self.role is Role.PRIMARY else None,
            resumable=self.resumable,
            generation=self.prober.generation,
            server_version=self.prober.server_version,
            replicating=self._replicating(),
            why=self._why(database),
            url=self.node.watchdog_url,
            seeding=self.seeding.report,
            order=self.orders.report,
            unmet=self._unmet(),
            rescue=self.rescuing.report,
            stuck=stuck.told(self._stuck, clock.now()) if self.role in (Role.STANDBY, Role.JOINING) else "",
            crashed=database is Database.DOWN and self.restarting.crashed,
            restart=self.restarting.report,
            serial=self.right.serial,
            granted_by=self.right.granted_by(now) if self.role is Role.PRIMARY else (),
            health=self.condition.health,
            disk_free_bytes=self.condition.disk_free,
            waits_by=self.waiting.by,
            revision=self._revision,
            holds=self.may_hold and self.right.by_hold(now),
            alone=self._alone,
            vouches=self.memory.vouches,
        )  # fmt: skip

    @property
    def _revision(self) -> int | None:
        record = self.record
        return record.revision if record is not None and self.writes_epoch == record.epoch else None

    @property
    def _alone(self) -> Alone | None:
        """Return that commits were answered alone in the newest epoch; what was of an older one its failover has judged."""
        alone = self.memory.alone
        return alone if alone is not None and alone.epoch == self._seen_epoch else None

    def _database(self) -> Database:
        """Return the state of the database; one that answers but was not dealt with yet is nobody's to use."""
        database = self.prober.database()
        return Database.UNKNOWN if database is Database.UP and self._met != self.prober.generation else database

    @property
    def resumable(self) -> bool:
        """Return whether we closed only because the lease ended (or we died), and may open again by ourselves."""
        return (
            self.role is Role.FENCED
            and self.memory.opened_epoch is not None
            and self.memory.generation == self.prober.generation
            and self.prober.server is not None
        )

    def why_not_primary(self) -> str | None:
        """Answer HAProxy from memory."""
        probe = self.prober.probe
        return judge.why_not_primary(
            Standing(
                node=self.node.name,
                role=self.role,
                database=self.prober.database(),
                read_only=probe.read_only if probe else None,
                lease_valid=self.right.valid(clock.now()),
                record=self.record,
                memory=self.memory,
            )
        )

    def why_not_standby(self, max_lag_ms: float) -> str | None:
        """Answer who asks for a standby to read from."""
        slow = self.prober.slow
        if self.orders.holds and self.orders.order is not None and self.role is Role.STANDBY:
            return self.orders.order.text
        return judge.why_not_standby(
            self.role, self.prober.database(), self._replicating(), slow.lag_ms if slow else None, max_lag_ms
        )

    def _replicating(self) -> bool | None:
        slow = self.prober.slow
        return None if slow is None else slow.replication is not None and slow.replication.running

    def _why(self, database: Database) -> str:
        if (seeded := self.seeding.why()) is not None:
            return seeded
        if database is not Database.UP:
            return f"the database is {database.value}: {self.prober.trouble or self.why}"
        if unmet := self._unmet():
            return "; ".join(unmet)
        if self.role is Role.PRIMARY and self._alone is not None:
            return f"{self._alone.text}; no durability record says so yet"
        if self.role is Role.PRIMARY and self.right.by_hold(clock.now()):
            return "it is cut off from ZooKeeper and holds: nobody is promoted meanwhile but by an operator's word"
        if self.role is Role.PRIMARY and not self.prober.commits_wait and self.right.durability is not None:
            return f"durability is degraded since {self.right.durability.since}: no commit waits for another site"
        if self.role is Role.PRIMARY and self.prober.probe is not None and self.prober.probe.read_only:
            return "somebody made the primary read-only"
        if self.role is Role.PRIMARY and (health := self.condition.health) is not None and health.reasons:
            return health.text
        if self.role is Role.PRIMARY and (sites := self.right.granted_by(clock.now())):
            return f"ZooKeeper is gone: it writes by the direct word of {' and '.join(sites)}; a failover is not possible now"
        slow = self.prober.slow
        if self.role in (Role.STANDBY, Role.JOINING) and slow and slow.replication and slow.replication.error:
            return f"replication: {slow.replication.error}"
        if self.role in (Role.STANDBY, Role.JOINING):
            return self.orders.why(slow.lag_ms if slow else None) or self.why
        return (self.role is Role.FENCED and self._ahead()) or self.why

    def _lease_seconds(self) -> float:
        until = self.coordination.lease_until
        return clock.seconds_left(until) if until is not None and self.role is Role.PRIMARY else 0.0

    # -- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until cancelled. Raises Conflict when another process took our name over."""
        self.coordination.listen(lambda _: self._on_epoch_news())
        async with asyncio.TaskGroup() as group:
            for loop in (
                self._probe_loop,
                self._publish_loop,
                self._lease_loop,
                self._epoch_loop,
                self._heartbeat_loop,
                self.seeding.run,
                self.rescuing.run,
                self.restarting.run,
                self.orders.run,
                self.maintaining.run,
                self.right.run,
                self.condition.run,
                self.waiting.run,
            ):
                group.create_task(loop())

    async def _probe_loop(self) -> None:
        while True:
            started = clock.now()
            await self._guarded("probe", self.tick)
            self._tell_changes()
            pause_ms = self.timing.probe_interval_ms - clock.ms_between(started, clock.now())
            await asyncio.sleep(max(0.0, pause_ms) / MS_PER_SECOND)

    async def _publish_loop(self) -> None:
        """Publish changes at once, and often enough to keep the lease."""
        while True:
            self._news.clear()
            report = self.report()
            self._published = _essence(report)
            try:
                await self._publish(report)
                self._trouble.is_over("publish")
            except Unreachable as error:
                self._published = None
                if self._trouble.is_news("publish", str(error)):
                    log.info("publish.failed", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(self.timing.renew_interval_ms / MS_PER_SECOND):
                    await self._news.wait()

    async def _lease_loop(self) -> None:
        """Close when lease and grants end, on our own clock: ZooKeeper and kazoo are not asked."""
        while True:
            if self.role is Role.PRIMARY and not self.right.valid(clock.now()):
                why = "a plan for a later epoch runs" if self.right.must_let_go else "the lease ended"
                await self._guarded("lease", partial(self._close, why))
            await asyncio.sleep(LEASE_LOOK_SECONDS)

    async def _epoch_loop(self) -> None:
        """Follow the record of the epoch: by watch, after every reconnect, and now and then for certainty."""
        while True:
            self._epoch_news.clear()
            await self._guarded("epoch", self.read_epoch)
            with suppress(TimeoutError):
                async with asyncio.timeout(EPOCH_REREAD_SECONDS):
                    await self._epoch_news.wait()

    async def _heartbeat_loop(self) -> None:
        while True:
            if self.role is Role.PRIMARY and self.memory.opened_epoch is not None and self.prober.server is not None:
                self.heartbeat.beat(self.prober.generation, self.memory.opened_epoch)
            await asyncio.sleep(self.timing.heartbeat_interval_ms / MS_PER_SECOND)

    async def _guarded(self, what: str, call: Callable[[], Awaitable[object]]) -> None:
        """Run one round of a loop; what failed is tried again by the next round."""
        try:
            await call()
            self._trouble.is_over(what)
        except OscarHaError as error:
            if self._trouble.is_news(what, str(error)):
                log.warning(f"{what}.failed", error=str(error))

    # -- looking ------------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Look at the server process, ask the database, and put right what is not as it must be."""
        self.prober.look()
        if self.prober.server is None:
            return
        # While it stands still by order of a comparison, what replication looks like says nothing.
        slow = not self._still and (self.prober.slow is None or self.role is Role.JOINING or self._slow_look.due())
        started = clock.now()
        writer = self.heartbeat.number if self.heartbeat.since is not None else None
        if not await self.prober.ask(slow=slow, opened=self.role is Role.PRIMARY, writer=writer):
            return
        self.metrics.probes.observe(clock.ms_between(started, clock.now()) / MS_PER_SECOND)
        if self._halt is not None and self._halt.over:
            await self._end_halt("its time is over")
        if self._met != self.prober.generation:
            await self._meet()
        elif self.role is not Role.PRIMARY:
            await self._keep_closed()
        elif self._accounts_look.due():
            await self._warm(self._fencer, self._fencing)
        if slow:
            await self._watch_replication()
            await self._watch_requirements()

    async def _meet(self) -> None:
        """Decide what a server process is that we have not dealt with: ours by right, a standby, or to be closed."""
        follows = self._follows_already()  # an order that comes in the next moment makes what was seen uncertain
        problems = await self._actor.run(self._in_session, lambda session: session.requirements(self.node))
        if problems:
            await self._close("; ".join(problems))
            self._signal(Signal.REJECT, "; ".join(problems))
        elif self._is_open_by_right() and await self._resume():
            pass
        elif follows:
            await self._actor.run(self._in_session, fencing.close_accounts)
            self._signal(Signal.FOLLOW, "follows as it did before the watchdog restarted")
        else:
            closed = self.prober.probe is not None and self.prober.probe.read_only
            why = "the lease ended" if self.resumable else "born fenced: nobody has opened it"
            if not self.coordination.connected:
                why += ("; ZooKeeper is not heard, so nobody knows whether another one was promoted meanwhile: it stays closed"
                        " until the line is mended")  # fmt: skip
            await self._close(why, limit_ms=BORN_FENCED_MS if closed else None)
        self._met = self.prober.generation
        self._tell_changes()

    def _is_open_by_right(self) -> bool:
        """Return whether it is the primary we opened before we were restarted."""
        return self.resumable and self.prober.probe is not None and not self.prober.probe.read_only

    def _follows_already(self) -> bool:
        """Return whether the server is closed and replicates from where it should: only we were away."""
        probe, slow, source = self.prober.probe, self.prober.slow, self.settings.replicator(self.node.site)
        if probe is None or slow is None or slow.replication is None or not probe.read_only:
            return False
        return (slow.replication.host, slow.replication.port) == (source.host, source.port)

    async def _keep_closed(self) -> None:
        probe = self.prober.probe
        if probe is not None and not probe.read_only and not self._acting.locked() and not self._fences:
            await self._close("somebody made it writable without an epoch")
        elif self.resumable:
            await self._resume()
        elif self._accounts_look.due():
            locked = await self._actor.run(self._in_session, fencing.close_accounts)
            await self._warm(self._drainer, self._drains)
            if locked:
                log.warning("accounts.locked", count=locked, why="they could write to a read-only server")

    async def _warm(self, worker: Worker, kept: Kept) -> None:
        """Have the sessions ready of a thread that clinics may wait for next; while it is busy it has them."""
        if not worker.busy:
            await worker.run(kept.warm, self.timing.call_deadline_ms)

    async def _resume(self) -> bool:
        """Open again after the lease ended, if nothing else happened. Returns whether the database is open now."""
        if not self.coordination.connected:
            return False
        await self._take_lease()
        await self.read_epoch()
        if self.role is Role.PRIMARY:
            return True
        plan = await self.coordination.get("plan")
        if plan is not None or not self.resumable:
            return False
        if self.record is None or self.record.epoch != self.memory.opened_epoch:
            return False
        await self._open(self.record, "opened again: the lease is back and nothing else happened")
        return True

    async def _watch_replication(self) -> None:
        """Note when a joining node has caught up, start again what stopped, note when the source was removed."""
        slow = self.prober.slow
        if slow is None or self.role not in (Role.JOINING, Role.STANDBY) or self._acting.locked() or self._still:
            return
        if self.seeding.replacing:
            return
        if self.prober.probe is not None:
            self._stuck = stuck.look(self._stuck, slow.replication, self.prober.probe.position, clock.now())
        if slow.replication is None:
            self._signal(Signal.LOST_SOURCE, "replication has no source: somebody removed it")
        elif slow.replication.receiving and not slow.replication.complete:
            await self._actor.run(self._in_session, lambda session: session.stop_following())
            self._signal(
                Signal.LOST_SOURCE, "its source does not speak semi-sync: our own transactions would be skipped"
            )
        elif self.prober.probe is None:
            return
        elif self._must_obey(slow.replication, self.prober.probe.position) is not Act.LEAVE:
            self._caught_up_looks = 0
            if self.maintaining.record is None and self._restart.due():
                await self._obey()
        elif self.role is Role.JOINING and self.orders.is_caught_up(slow.replication):
            self._caught_up_looks += 1
            if self._caught_up_looks >= CAUGHT_UP_LOOKS:
                self._signal(Signal.CAUGHT_UP, "follows the replicator of its site")

    def _must_obey(self, replication: Replication, position: str) -> Act:
        return self.orders.look(replication, position, self.prober.generation)

    async def _obey(self) -> None:
        """Bring replication to what is ordered; look again at once at what came of it."""
        async with self._acting:
            if self.role in (Role.JOINING, Role.STANDBY):
                await self._actor.run(self._in_session, self._replicate)
        self.prober.forget_slow()

    def _replicate(self, session: Session) -> None:
        self.orders.apply(session, self.settings.replicator(self.node.site), self.prober.generation)

    def _on_order(self) -> None:
        """An order came: it is compared with what is at the next tick, and a halt that stands in its way ends."""
        self._restart = _Every(RESTART_REPLICATION_MS)
        if self._halt is not None:
            self._halt = replace(self._halt, until=clock.now())
        self.prober.forget_slow()
        self._tell_changes()

    async def _watch_requirements(self) -> None:
        """Put back what somebody's SET GLOBAL took from an open primary: its clients rely on a promise without it.

        Without `_acting`, which the end of the lease may need at once. `promote` and `follow` run in the same thread as
        this, so nothing is put back on a server that follows.
        """
        unmet, told = self._unmet(), self._unmet_told
        self._unmet_told = unmet
        if unmet and unmet != told:
            log.error("requirements.unmet", unmet=unmet)
        if unmet and not self._acting.locked():
            await self._actor.run(
                self._in_session, lambda session: session.meet_requirements(waits=self.prober.commits_wait)
            )

    def _unmet(self) -> tuple[str, ...]:
        return self.prober.slow.unmet if self.role is Role.PRIMARY and self.prober.slow is not None else ()

    def _on_death(self) -> None:
        self._met, self._halt, self._still, self._stuck = "", None, False, None
        self.orders.forget()
        self._signal(Signal.NEW_SERVER, "the server process ended")
        if self.seeding.replacing:
            self._signal(Signal.SEED, "its data is being replaced")
        log.warning("server.died")

    # -- the epoch ----------------------------------------------------------------------------------------------------

    def _on_epoch_news(self) -> None:
        self._epoch_watched = False
        self._epoch_news.set()

    async def read_epoch(self) -> None:
        # One watch at a time: kazoo keeps every one it is given until it fires.
        watch, self._epoch_watched = None if self._epoch_watched else self._on_epoch_news, True
        written_in = self._written_in
        try:
            found = await self.coordination.read(EpochRecord, "epoch", watch)
        except OscarHaError:
            self._epoch_watched = False
            raise
        if found is None or (self.record is not None and _age(found[0]) < _age(self.record)):
            return  # a member that lags behind the quorum answers with the past
        self._note_record(record := found[0], written_in)
        self._seen_epoch = max(self._seen_epoch, record.epoch)
        self._tell_changes()
        why = judge.must_fence(self.node.name, record, self.memory)
        if self.memory.opened_epoch is not None and why is not None:
            await self._seal(record.epoch - 1)
            if self.role is Role.PRIMARY:
                await self._close(why)
        # What was open before opens again only by `_resume`, which looks for a plan; this is the first time.
        never_open = self.memory.promoted_epoch == record.epoch != self.memory.opened_epoch
        if (
            self.role is Role.FENCED
            and never_open
            and judge.why_not_open(self.node.name, self.prober.generation, record, self.memory) is None
        ):
            # The controller may have died between naming us and telling us.
            await self._open(record, f"primary of epoch {record.epoch}")

    def _note_record(self, record: EpochRecord, written_in: int | None) -> None:
        """Keep a record. Read in a session in which we had written before, it is not of the past of that write."""
        self.record = record
        if written_in is not None and written_in == self.coordination.session_id:
            self._certain = record.revision

    async def _publish(self, report: NodeReport) -> None:
        session = self.coordination.session_id
        await self.coordination.publish(f"nodes/{self.node.name}", report)
        self._written_in = session if session == self.coordination.session_id else None

    # -- commands -----------------------------------------------------------------------------------------------------

    async def fence(self, epoch: int, *, polite: bool = False, deadline_ms: int | None = None) -> Fenced:
        """Close the database for good as far as `epoch` and older go. Safe to repeat. Raises FencedOut."""
        if self.record is not None and epoch < self.record.epoch:
            raise FencedOut(f"epoch {epoch} is older than {self.record.epoch}")
        if self.record is not None and epoch > self.record.epoch + 1:
            raise Refused(
                f"epoch {epoch} is not known here, the newest is {self.record.epoch}", hint="a seal is for ever"
            )
        self._seen_epoch = max(self._seen_epoch, epoch)
        limit_ms = min(deadline_ms or self.timing.fence_deadline_ms, self.timing.fence_deadline_ms)
        self._fences += 1  # until this one ends, still writable is no reason to close it a second time, impolitely
        try:
            if self.role is Role.PRIMARY:
                self._signal(Signal.FENCE, f"fenced at the end of epoch {epoch}")
            if not await self._sealed_within(limit_ms, epoch):
                return await self._kill("the seal could not be made durable")
            return await self._close(f"fenced at the end of epoch {epoch}", polite=polite, limit_ms=limit_ms)
        finally:
            self._fences -= 1

    async def _sealed_within(self, limit_ms: float, epoch: int) -> bool:
        try:
            async with asyncio.timeout(limit_ms / MS_PER_SECOND):
                await self._seal(epoch)
        except (OscarHaError, TimeoutError) as error:
            log.error("seal.not_durable", error=str(error) or "deadline")
            return False
        return True

    async def promote(self, epoch: int) -> Promoted:
        """Make the database ready to be opened for `epoch`; it stays read-only. The same answer for the same epoch."""
        self._require_current(epoch)
        self.seeding.giving.stop(f"promoted for epoch {epoch}")
        async with self._acting:
            generation = self.prober.generation
            if self.memory.generation == generation and self.memory.promoted_epoch == epoch:
                return self._promoted_before()
            if self.role is Role.PRIMARY:
                raise Refused(f"it is the primary of epoch {self.memory.opened_epoch}", hint="fence it first")
            self._require_up(Signal.PROMOTE)
            if self.role is not Role.FENCED:  # a fenced one that is opened again follows nobody, and obeys no order
                self.orders.require_free_to_move("be promoted")
            closings, self._halt, self._still = self._closings, None, False
            promoted: Promoted = await self._actor.run(self._in_session, lambda session: session.promote())
            if self.prober.generation != generation or closings != self._closings or self.seeding.replacing:
                raise Refused("the server was fenced, restarted or to be seeded while it was promoted")
            await self._remember(
                self.memory.for_generation(generation).promoted(epoch, promoted.file, promoted.position)
            )
            self.prober.forget_slow()
            self._signal(Signal.PROMOTE, f"promoted for epoch {epoch}, not open yet")
        return promoted

    async def open(self, epoch: int) -> Role:
        """Open the database as the primary of `epoch`, if ZooKeeper says so now. Raises FencedOut."""
        written_in = self._written_in
        found = await self.coordination.read(EpochRecord, "epoch")
        if found is None or found[0].epoch < epoch:
            raise Conflict(f"epoch {epoch} is not recorded yet", hint="try again")
        record = found[0]
        if record.epoch != epoch or record.primary != self.node.name or epoch <= self.memory.sealed_epoch:
            raise FencedOut(f"epoch {record.epoch} names {record.primary}, sealed is {self.memory.sealed_epoch}")
        if self.record is None or _age(record) >= _age(self.record):
            self._note_record(record, written_in)
        self._seen_epoch = max(self._seen_epoch, epoch)
        await self._open(record, f"primary of epoch {epoch}")
        return self.role

    async def follow(self, epoch: int) -> Role:
        """Replicate from the replicator of our site. Refuses what would mix two histories. Safe to repeat."""
        if epoch < self._seen_epoch:
            raise FencedOut(f"epoch {epoch} is older than {self._seen_epoch}")
        if self.record is None or self.record.epoch < epoch:
            await self.read_epoch()
        await self._end_halt("it is told to follow")
        async with self._acting:
            if self.role is Role.PRIMARY or (self.resumable and self._names_us()):
                raise Refused(f"it is the primary of epoch {self.memory.opened_epoch}", hint="fence it first")
            self._require_up(Signal.FOLLOW)
            # A fenced one may replicate too, after a seeding that ended before its server did: it is to be a standby again.
            if self.role is not Role.FENCED and self._follows_already() and self._replicating():
                return self.role
            self._require_in_history()
            await self._actor.run(self._in_session, self._follow)
            await self._remember(self.memory.for_generation("").for_generation(self.prober.generation))
            self.prober.forget_slow()
            self._caught_up_looks = 0
            self._restart.due()
            self._signal(Signal.FOLLOW, f"follows the replicator of {self.node.site}")
        return self.role

    async def drain(self, epoch: int, position: str, *, deadline_ms: int | None = None) -> str:
        """Wait until `position` is applied and return where the database is. Raises DeadlinePassed."""
        if epoch < self.memory.sealed_epoch or (self.record is not None and epoch < self.record.epoch):
            raise FencedOut(f"epoch {epoch} is older than {max(self._seen_epoch, self.memory.sealed_epoch)}")
        self.seeding.giving.stop("what was received must be applied now")
        wanted = Position.parse(position)
        wait_ms = deadline_ms or self.timing.step_deadline_ms
        self.orders.require_free_to_move("catch up")
        await self._end_halt("a plan waits for it")
        if self.orders.lift(wait_ms):
            await self._obey()

        def wait() -> tuple[str, str]:
            with self._drains.session(wait_ms + self.timing.call_deadline_ms) as session:
                here = session.probe().position
                if Position.parse(here).covers(wanted) or session.applied(
                    position, wait_seconds=wait_ms / MS_PER_SECOND
                ):
                    return session.probe().position, ""
                return session.probe().position, session.applying()

        here, busy = await self._drainer.run(wait)
        if not Position.parse(here).covers(wanted):
            hint = "a table without a primary key takes this long: give it one" if busy else ""
            now = f"; the applier is in {busy}" if busy else ""
            raise DeadlinePassed(
                f"{position} is not applied within {wait_ms} ms, only {here or 'nothing'}{now}", hint=hint
            )
        return here

    # -- standing still for a moment ----------------------------------------------------------------------------------

    async def halt(self, epoch: int, for_ms: float) -> tuple[str, str]:
        """Stop applying for at most `for_ms`; return the halt's name and what is applied. The receiver goes on."""
        if self.record is None or epoch != self.record.epoch:
            raise FencedOut(f"epoch {epoch} is not the newest, {self.record.epoch if self.record else 'none'} is")
        async with self._acting:
            self.orders.require_nothing_ordered("stand still for a comparison")
            if self.role is not Role.STANDBY or not self._replicating():
                raise Refused(f"it is {self.role.value} and does not replicate", hint="see 'oscar-ha status'")
            if self._still:
                raise Conflict("it stands still already for somebody else", hint="try again")
            self._halt, self._still = Halt.for_ms(for_ms), True
            name = self._halt.name
            self.prober.doubt()
            try:
                return name, await self._actor.run(self._in_session, lambda session: session.stop_applying())
            except OscarHaError:
                self._halt, self._still = None, False  # what may have stopped is started again by the next look
                raise

    async def halt_at(self, name: str, file: str, offset: int, position: str) -> str:
        """Apply up to a place of the primary's binlog and stand still there; return what is applied."""
        here = halting.require(self._halt, name)

        def go() -> str:
            with self._connect(here.seconds_left * MS_PER_SECOND + self.timing.call_deadline_ms) as session:
                return session.apply_until(file, offset, position, wait_seconds=here.seconds_left)

        try:
            return await self._halter.run(go)
        finally:
            if self._halt is not here:  # somebody needed it meanwhile: what `go` may have stopped must run
                await self._apply_on()
            halting.require(self._halt, name)

    async def end_halt(self, name: str) -> None:
        """Apply again. Raises Refused when it had ended before, so that something may have been applied meanwhile."""
        halting.require(self._halt, name)
        await self._end_halt("done")

    async def _end_halt(self, why: str) -> None:
        halt, self._halt = self._halt, None
        if halt is not None:
            log.info("halt.ended", why=why)
            try:
                await self._apply_on()
            finally:
                self._still = False
                self.prober.doubt()

    async def _apply_on(self) -> None:
        async with self._acting:
            if self.role in (Role.STANDBY, Role.JOINING) and not self.orders.holds:
                await self._actor.run(self._in_session, lambda session: session.apply_on())

    # -- opening ------------------------------------------------------------------------------------------------------

    async def _open(self, record: EpochRecord, why: str) -> None:
        async with self._acting:
            if self.role is Role.PRIMARY and self.memory.opened_epoch == record.epoch:
                return
            generation, closings = self.prober.generation, self._closings
            refusal = judge.why_not_open(self.node.name, generation, record, self.memory)
            if refusal is not None:
                raise Refused(refusal, hint="promote it first")
            if self.prober.database() is not Database.UP:
                raise Unreachable(f"the database is {self.prober.database().value}")
            remembered = asyncio.ensure_future(self._remember(replace(self.memory, opened_epoch=record.epoch)))
            try:
                await self._take_lease()
                await self.right.count(record.epoch)
            finally:
                await remembered
            await self._actor.run(self._in_session, self._open_writes)
            undo = self._why_undo(record, generation, closings)
            if undo is None:
                self.prober.expect(read_only=False)
                self._signal(Signal.OPEN, why)
                self.heartbeat.beat(generation, record.epoch)
        if undo is not None:
            await self._close(undo)
            raise Refused(f"not opened: {undo}")

    def _why_undo(self, record: EpochRecord, generation: str, closings: int) -> str | None:
        """Return why what was just opened must be closed again: the call may have taken long."""
        if not self.right.by_lease(clock.now()):
            return "the lease ended while it was opened"
        if closings != self._closings or record.epoch <= self.memory.sealed_epoch:
            return "it was fenced while it was opened"
        if self.prober.generation != generation:
            return "the server restarted while it was opened"
        return None

    async def _take_lease(self) -> None:
        """Make sure of a lease that lasts: half of one is left, or a new one is taken now."""
        enough_ms = (self.timing.session_ttl_ms - self.timing.lease_margin_ms) / 2
        if not self.coordination.lease_valid(clock.after(clock.now(), enough_ms)):
            await self._publish(self.report())
        if not self.coordination.lease_valid(clock.now()):
            raise Unreachable("the lease was not granted")

    async def require_no_newer_plan(self, epoch: int) -> None:
        """Refuse to open when a plan for a later epoch runs: the end of an earlier lease of ours may be its proof of fence.

        Asked after the lease was taken: a plan that begins later than that sees our lease, and has us fenced.
        """
        found = await self.coordination.read(PlannedEpoch, "plan")
        if found is not None and found[0].epoch > epoch:
            raise Refused(f"a plan for epoch {found[0].epoch} runs", hint="wait for its end")

    def _open_writes(self, session: Session) -> None:
        self.waiting.before_opening(session)
        session.unlock_accounts()
        if self.coordination.lease_valid(clock.now()):  # the call before may have blocked
            session.open_writes(events=self.settings.event_scheduler)

    def _follow(self, session: Session) -> None:
        deadline = clock.after(clock.now(), self.timing.call_deadline_ms)
        fencing.let_commits_go(session, deadline=deadline, keep=self.prober.session_numbers)
        self._replicate(session)

    # -- closing ------------------------------------------------------------------------------------------------------

    async def _close(self, why: str, *, polite: bool = False, limit_ms: float | None = None) -> Fenced:
        """Close the database or kill its process. From the first line on `/primary` says no."""
        self.seeding.giving.stop(why)  # its locks would make the fence wait
        limit_ms = limit_ms or self.timing.fence_deadline_ms
        deadline = clock.after(clock.now(), limit_ms)
        follows = self.role in (Role.STANDBY, Role.JOINING)
        self._closings += 1
        self._signal(Signal.FENCE, why)
        try:
            async with asyncio.timeout(limit_ms / MS_PER_SECOND), self._acting:
                if self.prober.database() is Database.DOWN:
                    return self._fenced("process dead", None)
                if self.prober.database() is Database.HUNG:
                    return await self._kill("the database is hung")
                patience = clock.after(clock.now(), limit_ms / 2 if polite else 0)
                closed = await self._fencer.run(self._close_blocking, patience, deadline, follows)
                self.prober.expect(read_only=True, position=closed.position)
                return self._fenced("read_only", closed.position)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, it is not closed: then it must not live
            log.warning("fence.not_by_itself", error=str(error) or "deadline")
            return await self._kill(str(error) or "not closed in time")

    def _close_blocking(self, patience: clock.Nanos, deadline: clock.Nanos, follows: bool) -> fencing.Closed:
        if follows:  # it is closed already, and clients may read from it
            with self._fencing.session(clock.ms_between(clock.now(), deadline)) as session:
                fencing.close_accounts(session)
                probe = session.probe()
                if probe.read_only:
                    return fencing.Closed(probe.position)
        return fencing.close(
            self._fencing.session, patience=patience, deadline=deadline, keep=self.prober.session_numbers
        )

    async def close_unwatched(self) -> None:
        """Close what answers its clients alone, before we end because ZooKeeper is not heard: nobody would watch it."""
        self.prober.look()
        alone = self.memory.alone
        if alone is None or alone.epoch != self.memory.opened_epoch or self.memory.generation != self.prober.generation:
            return
        await self.prober.ask(slow=False, opened=False, writer=None)
        await self._close("it answered alone, and ZooKeeper is not heard")

    async def _kill(self, why: str) -> Fenced:
        """Kill the server process: no process, no writes. Raises DeadlinePassed when it does not even die."""
        server = self.prober.server
        if server is None and self.prober.database() is not Database.DOWN:
            raise Unreachable(f"the server process cannot be ended: {self.prober.trouble}", hint="stop it by hand")
        if server is None:
            return self._fenced("process dead", None)
        log.warning("server.killed", why=why, pid=server.pid)
        ended = asyncio.get_running_loop().time() + KILL_DEADLINE_MS / MS_PER_SECOND
        server.kill()
        while self.prober.server is server:
            if server.is_held():  # a hung disk holds it: nothing of it runs any more all the same
                return self._fenced("killed, held by the kernel", None)
            if asyncio.get_running_loop().time() > ended:
                raise DeadlinePassed(f"process {server.pid} does not end on SIGKILL", hint="stop the host")
            await asyncio.sleep(0.001)
        return self._fenced("killed", None)

    def _fenced(self, how: str, position: str | None) -> Fenced:
        self.metrics.fences.labels(how).inc()
        log.info("fenced", how=how, position=position, why=self.why)
        return Fenced(True, position, how, self.memory.vouches)

    # -- what healthcheck/right.py is lent ----------------------------------------------------------------------------

    @property
    def writes_epoch(self) -> int | None:
        return self.memory.opened_epoch if self.role is Role.PRIMARY else None

    @property
    def may_hold(self) -> bool:
        return self.role is Role.PRIMARY and judge.may_hold(self.record, self.memory, self._certain)

    # -- what healthcheck/waiting.py is lent --------------------------------------------------------------------------

    async def note_alone(self, alone: Alone | None) -> None:
        await self._remember(replace(self.memory, alone=alone))
        self._tell_changes()

    async def ask(self, call: Callable[[Session], Result]) -> Result:
        """Ask the server in the thread that also promotes it and lets it follow."""
        return await self._actor.run(self._in_session, call)

    # -- what healthcheck/rescuing.py is lent -------------------------------------------------------------------------

    def foreign(self) -> Foreign | None:
        """Return what this server has and the cluster has not, once it is closed for good."""
        probe, record = self.prober.probe, self.record
        if self.role not in (Role.FENCED, Role.FAILED) or self.resumable or self.seeding.replacing:
            return None
        if self._database() is not Database.UP or probe is None or record is None or self._ahead() is None:
            return None
        return Foreign(record.epoch, probe.position, record.lineage)

    def connect(self, deadline_ms: float) -> Session:
        return self._connect(deadline_ms)

    # -- seeding: what healthcheck/seeding.py is lent ------------------------------------------------------------------

    def rescued(self) -> bool:
        """Return whether what only this server has is safely on disk elsewhere."""
        return self.prober.probe is not None and self.rescuing.survives(self.prober.probe.position)

    @property
    def seen_epoch(self) -> int:
        return self._seen_epoch

    @property
    def database(self) -> Database:
        return self._database()

    @property
    def running(self) -> bool:
        return self.prober.server is not None

    def promised(self) -> str | None:
        """Return why this server is, or is about to be, the primary; None when it is not."""
        memory, record = self.memory, self.record
        if self.role is Role.PRIMARY or self._names_us():
            return "is the primary"
        promoted = memory.promoted_epoch if memory.generation == self.prober.generation else None
        if promoted is not None and (record is None or promoted > record.epoch):
            return f"was promoted for epoch {promoted} and is to be opened"
        return None

    def own_history(self) -> str | None:
        """Return what this server has that the cluster has not. Raises Unreachable when nobody can know."""
        if self._database() is not Database.UP or self.record is None or self.prober.probe is None:
            raise Unreachable("its position is not known")
        return self._ahead()

    async def require_no_plan(self) -> None:
        """Raise Conflict while a plan runs: repairs yield to it, and it may need this node as it is."""
        if await self.coordination.read(PlannedEpoch, "plan") is not None:
            raise Conflict("a plan is running: a repair waits for it", hint="wait for its end")

    def seeding_begins(self, why: str) -> None:
        self._signal(Signal.SEED, why)

    def seeding_ended(self, why: str) -> None:
        self._signal(Signal.SEED_ENDED, why)

    def tell_changes(self) -> None:
        self._tell_changes()

    async def stop_server(self) -> None:
        """End the server process, politely first; it is gone when this returns. Raises DeadlinePassed."""
        server, ended = self.prober.server, clock.after(clock.now(), STOP_DEADLINE_MS)
        if server is None:
            return
        try:
            await self._actor.run(self._in_session, lambda session: session.shut_down())
        except OscarHaError as error:
            log.warning("server.asked_by_signal", error=str(error))
            server.ask_to_end()
        while self.prober.server is server:
            if clock.seconds_left(ended) == 0.0:
                await self._kill("it does not end by itself")
            await asyncio.sleep(LEASE_LOOK_SECONDS)

    # -- below --------------------------------------------------------------------------------------------------------

    def _signal(self, signal: Signal, why: str) -> None:
        role = advance(self.role, signal)
        if role is not self.role:
            log.info("role.changed", role=role.value, was=self.role.value, why=why)
        if role is not self.role or role in (Role.FENCED, Role.FAILED):
            self.why = why
        self.role = role
        self._tell_changes()

    def _tell_changes(self) -> None:
        if self._published != _essence(self.report()):
            self._news.set()

    async def _seal(self, epoch: int) -> None:
        await self._remember(self.memory.sealed(epoch))

    async def _remember(self, memory: Memory) -> None:
        if memory == self.memory:
            return
        self.memory = memory
        await self._writer.run(self._file.write, memory)

    def _connect(self, deadline_ms: float) -> Session:
        return self._dialect.connect(self.node, self.settings, self._secrets, deadline_ms=deadline_ms)

    def _in_session(self, call: Callable[[Session], Result]) -> Result:
        with self._acts.session(self.timing.call_deadline_ms) as session:
            return call(session)

    def _promoted_before(self) -> Promoted:
        memory = self.memory
        return Promoted(server_id=self.node.server_id, file=memory.promoted_file, position=memory.promoted_position)

    def _names_us(self) -> bool:
        return self.record is not None and self.record.primary == self.node.name

    def _require_current(self, epoch: int) -> None:
        """Refuse an epoch that is sealed, over, or somebody else's."""
        if epoch <= self.memory.sealed_epoch:
            raise FencedOut(f"epoch {epoch} is sealed, as are all up to {self.memory.sealed_epoch}")
        record = self.record
        if record is not None and (epoch < record.epoch or (epoch == record.epoch and not self._names_us())):
            raise FencedOut(f"epoch {record.epoch} names {record.primary}")

    def _require_up(self, signal: Signal) -> None:
        if self.seeding.replacing:
            raise Refused(f"{self.node.name} is {self.seeding.why()}", hint="wait until that is over")
        database = self._database()
        if database is not Database.UP:
            raise Unreachable(f"the database is {database.value}: {self.prober.trouble or self.why}")
        if not allows(self.role, signal):
            raise Refused(f"a node that is {self.role.value} cannot {signal.value}: {self.why}")

    def _require_in_history(self) -> None:
        ahead = self._ahead()
        if ahead is not None:
            raise Diverged(ahead, hint="rescue them, then rewind or reseed this node")

    def _ahead(self) -> str | None:
        """Return what this server has that the cluster has not, None when there is nothing or it is not known."""
        probe, record = self.prober.probe, self.record
        if record is None or probe is None:
            return None
        if judge_history(Position.parse(probe.position), record.lineage, None) is History.EQUAL_OR_BEHIND:
            return None
        return f"ahead: it has transactions up to {probe.position} that are not in the cluster's history"


def _age(record: EpochRecord) -> tuple[int, int]:
    return record.epoch, record.revision


def _essence(report: NodeReport) -> object:
    """Return what is worth telling at once: all but what changes all the time."""
    seeding = report.seeding and replace(report.seeding, bytes=0, bytes_per_second=None)
    why = "" if seeding and not seeding.phase.over else report.why
    return replace(
        report, position=None, position_age_ms=None, lag_ms=None, seeding=seeding, why=why, disk_free_bytes=None
    )
