"""One replicator: it follows the epoch in ZooKeeper, and answers `seal`, `level` and `grant`.

Eight loops: read (what ZooKeeper says), publish (our report, which renews our lease), follow (stop, cut, pull), fill
(what is missing), listen (to the other ackers), keep (the closed files), mend (what is damaged), retain (no more than is
wanted). The pulling thread is the only one that acknowledges; what it may do is
handed to it as a `Standing`.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from cluster import clock
from cluster.clock import Nanos
from cluster.coordination import Coordination
from cluster.errors import BadInput, Bug, DeadlinePassed, Diverged, OscarHaError, Refused, Unreachable
from cluster.position import Position
from cluster.records import (
    Acks,
    DurabilityRecord,
    EpochRecord,
    Grant,
    GrantRequest,
    LineageEntry,
    PlannedEpoch,
    ReplicatorReport,
    Word,
)
from cluster.settings import Replicator, Secrets, Settings
from replicator.archive import Archive, EpochArchive
from replicator.change_reader import ChangeReader
from replicator.follow import epoch_to_pull, past_epochs
from replicator.granting import Grants
from replicator.intake import fetch
from replicator.keeping import Keeper
from replicator.mending import REPORTED_MAX, Mender, Source
from replicator.metrics import Metrics
from replicator.pace import Pace
from replicator.packing import Packer
from replicator.permission import Standing
from replicator.pull import STOPPED, Puller
from replicator.remedy import SameServerId, lacking, named
from replicator.retaining import RETAIN_EVERY_MS, Retainer
from replicator.scrubbing import Scrubber
from replicator.source import Target, mending_server_id
from replicator.streaming import News
from replicator.witness import Witness
from replicator.words import Listener, Teller

FILL_EVERY_MS = 2_000
READ_AGAIN_MS = 10_000
KEEP_EVERY_MS = 5_000
QUIET_DEADLINE_SECONDS = 5.0
TELL_PAUSE_MS = 2
"""So long what is new for the readers may wait for more of it: a part of a standby's lag."""
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Lacked:
    """What the primary of an epoch lacks of what we need next."""

    epoch: int
    why: str
    """As the pulling thread says it."""
    told: str
    """With who may have it, or who must act."""


class Service:
    """Everything of a replicator but its two servers. All methods are coroutines of one loop."""

    def __init__(
        self, settings: Settings, site: str, secrets: Secrets, archive: Archive, coordination: Coordination,
        metrics: Metrics, news: News,
    ) -> None:  # fmt: skip
        self.settings, self.archive, self.news, self.metrics = settings, archive, news, metrics
        self.us = settings.replicator(site)
        self._secrets, self._coordination = secrets, coordination
        self._record: EpochRecord | None = None
        self._durability: DurabilityRecord | None = None
        self._counted: Nanos | None = None  # the making of our record since which both were read, and no plan found
        self._sealing = archive.sealed_epoch
        self._grants = Grants(site, archive.directory, settings.timing)
        self._puller: Puller | None = None
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(self._loop, self._progressed, pause_ms=TELL_PAUSE_MS)
        self._stopping = threading.Event()
        self._records_changed, self._report_changed = asyncio.Event(), asyncio.Event()
        self._follow_now, self._fill_now = asyncio.Event(), asyncio.Event()
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        """For every epoch: held by whoever changes it while it is not being pulled."""
        self._lost: set[int] = set()
        """Epochs whose end nobody has any more: every other replicator was asked, and each answered."""
        self.teller = Teller(settings, news, self.word)
        self._listener = Listener(settings, secrets.token, self._hear)
        self.readers_told: Callable[[], list[str]] = list
        """What is wrong with those who read from us, one sentence each."""
        self._idle_why = "starting"
        self._lacked: Lacked | None = None
        """It stands until a stream lasts; it is what we say until one ends for another reason."""
        self._published: ReplicatorReport | None = None
        self._changes = ChangeReader(archive, settings.alarm, metrics, self._alarmed)
        self._keeper = Keeper(archive, self._stopping)
        self._witness = Witness(coordination, site)
        self.mender = Mender(archive, settings, metrics, self._stopping, self._sources, self._locks.__getitem__,
                             self._mended)  # fmt: skip
        self._scrubber = Scrubber(archive, settings.archive, metrics, self._found_damage)
        self._packer = Packer(archive, settings.archive, metrics)
        self.retainer = Retainer(
            settings, site, archive, coordination, metrics, self._lineage, lambda: frozenset(self._lost)
        )

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled. Raises what must end this process."""
        self._coordination.listen(self._on_connection)
        for event in (self._records_changed, self._report_changed, self._follow_now, self._fill_now):
            event.set()
        self._changes.start()
        for identity in self._scrubber.state.damaged:
            self.mender.suspect(identity)
        self._scrubber.start()
        self._packer.start()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_loop())
                group.create_task(self._publish_loop())
                group.create_task(self._follow_loop())
                group.create_task(self._fill_loop())
                group.create_task(self._listener.run())
                group.create_task(self._keep_loop())
                group.create_task(self.mender.run())
                group.create_task(self._retain_loop())
        finally:
            self._stopping.set()
            await self._stop_pulling()
            await asyncio.to_thread(self._changes.stop)
            await asyncio.to_thread(self._scrubber.stop)
            await asyncio.to_thread(self._packer.stop)

    def _on_connection(self, connected: bool) -> None:
        if connected:
            self._records_changed.set()
        self._report_changed.set()

    async def _read_loop(self) -> None:
        while True:
            await _wait(self._records_changed, READ_AGAIN_MS)
            watch = self._records_changed.is_set()
            self._records_changed.clear()
            try:
                await self._read_records(watch=watch)
            except Unreachable:
                await asyncio.sleep(self.settings.timing.probe_interval_ms / 1000)
                self._records_changed.set()

    async def _read_records(self, *, watch: bool) -> None:
        """Read both records; only after news they are watched anew, so that watches do not pile up."""
        news = self._records_changed.set if watch else None
        since = self._coordination.record_since
        found = await self._coordination.read(EpochRecord, "epoch", watch=news)
        durable = await self._coordination.read(DurabilityRecord, "durability", watch=news)
        record = None if found is None else found[0]
        durability = None if durable is None else durable[0]
        counted = since if self._counted == since or await self._is_free(record) else None
        if (record, durability, counted) != (self._record, self._durability, self._counted):
            self._record, self._durability, self._counted = record, durability, counted
            self._stand()
            self._follow_now.set()
            self._report_changed.set()

    async def _is_free(self, record: EpochRecord | None) -> bool:
        """Return whether no plan runs for a later epoch: it may have been sealing while we had no record, without us."""
        plan = await self._coordination.read(PlannedEpoch, "plan")
        return plan is None or (record is not None and plan[0].epoch <= record.epoch)

    async def _publish_loop(self) -> None:
        while True:
            await _wait(self._report_changed, self.settings.timing.renew_interval_ms)
            self._report_changed.clear()
            report = self.report()
            with suppress(Unreachable):
                await self._coordination.publish(f"replicators/{self.us.site}", report)
                self._published = report
            if self._counted != self._coordination.record_since:
                self._records_changed.set()
            self._stand()
            newest = self.archive.epochs.get(0 if self._record is None else self._record.epoch)
            if newest is not None:
                await self._witness.note(newest.epoch, newest.position)

    # -- what is said -----------------------------------------------------------------------------------------------

    def report(self) -> ReplicatorReport:
        """Return what we have and may do, as of now."""
        puller, newest = self._puller, self.archive.position
        position = None if newest is None else str(newest)
        connected = puller is not None and puller.connected
        acknowledged = None if puller is None or puller.acknowledged is None else str(puller.acknowledged)
        why = self._doing()
        gaps = self.gaps()
        self.metrics.connected.set(connected)
        self.metrics.acknowledging.set(puller is not None and puller.acknowledging)
        self.metrics.epoch.set(0 if puller is None else puller.one.epoch)
        self.metrics.sealed_epoch.set(self.archive.sealed_epoch)
        damaged = self.mender.damaged
        self.metrics.gaps.set(len(gaps))
        self.metrics.damaged_files.set(len(damaged))
        free, behind = self.archive.free_bytes, self._behind()
        self.metrics.disk_free_bytes.set(free)
        self.metrics.disk_reserve_reached.set(free < self.archive.reserve_bytes)
        orphans = self.archive.orphans
        self.metrics.orphans.set(orphans)
        return ReplicatorReport(
            site=self.us.site, epoch=max(self.archive.epochs, default=0), sealed_epoch=self.archive.sealed_epoch,
            connected=connected, acknowledging=puller is not None and puller.acknowledging,
            received=position, durable=position, acknowledged=acknowledged, orphans=orphans,
            server_version=None if puller is None else puller.server_version,
            why="; ".join((why, *self._troubles(gaps, behind))),
            host=self.us.host, port=self.us.port, url=self.us.url, mass_changes=self._changes.standing,
            serial=None if self._durability is None else self._durability.serial, whole=self._whole(),
            waits_for=() if puller is None else puller.waits_for, hears=self._hears(),
            damaged=damaged[:REPORTED_MAX], damaged_files=len(damaged), granted=self._grants.promised,
        )  # fmt: skip

    def _troubles(self, gaps: list[EpochArchive], behind: Position | None) -> list[str]:
        """Return what is wrong with the archive, one sentence each."""
        found = [f"the end of epoch {one.epoch} is missing" for one in gaps]
        if behind is not None:
            found.append(f"the archive was at {behind} once: an old copy, or its end was lost")
        held_back = self.retainer.held_back
        return found + ([f"archive: {held_back}"] if held_back else []) + self.readers_told()

    def _doing(self) -> str:
        """Return in words what it does; while other replicators are asked it still says what its source lacks."""
        lacked = self._lacked
        if lacked is not None and (self._puller is None or self._puller.why in (lacked.why, STOPPED)):
            return lacked.told
        return self._idle_why if self._puller is None else self._puller.reason()

    def gaps(self) -> list[EpochArchive]:
        """Return the ended epochs whose end is not here."""
        return [one for one in self.archive.epochs.values() if one.end is not None and not one.complete]

    def _standing(self, epoch: int) -> Standing:
        record = self._record
        primary_site = None
        if record is not None and record.epoch == epoch:
            primary_site = self.settings.node(record.primary).site
        return Standing(
            site=self.us.site, epoch=epoch, primary_site=primary_site, durability=self._durability,
            sealed_epoch=max(self.archive.sealed_epoch, self._sealing),
            whole=self._whole(), lease_until=self._coordination.lease_until,
            counted=self._counted == self._coordination.record_since, confirmed=self._grants.confirmed,
        )  # fmt: skip

    def _whole(self) -> bool:
        """Return whether nothing of an earlier epoch is missing here that anybody might still have."""
        return all(one.epoch in self._lost for one in self.gaps())

    def _stand(self) -> None:
        """Hand the pulling thread what it may do, and what the other ackers have said."""
        self._listener.want(self._others())
        if self._puller is not None:
            self._puller.hear(self._listener.heard)
            self._puller.stand(self._standing(self._puller.one.epoch))

    def _hear(self) -> None:
        """Another acker has said something: a commit may be waiting for just that."""
        if self._puller is not None:
            self._puller.hear(self._listener.heard)

    def word(self) -> Word:
        """Return what the other ackers may rely on: what is durable here of the epoch that we pull."""
        puller, sealed = self._puller, max(self.archive.sealed_epoch, self._sealing)
        epoch = 0 if puller is None else puller.one.epoch
        given = puller is not None and epoch > sealed and self._whole()
        durable = str(puller.one.position) if puller is not None and given else None
        return Word(site=self.us.site, epoch=epoch, durable=durable, sealed_epoch=sealed)

    def _others(self) -> frozenset[str]:
        """Return whom to listen to: under `acks: all` every site that could be named, so that it is known who is heard."""
        record, durability = self._record, self._durability
        if record is None or durability is None or durability.acks is not Acks.ALL:
            return frozenset()
        own = self.settings.node(record.primary).site
        outside = frozenset(one.site for one in self.settings.replicators if one.site != own)
        return outside - {self.us.site} if self.us.site in outside else frozenset()

    def _hears(self) -> tuple[str, ...]:
        epoch, now = 0 if self._puller is None else self._puller.one.epoch, clock.now()
        heard = self._listener.heard.items()
        return tuple(sorted(site for site, one in heard if one.epoch == epoch and now < one.until))

    def _alarmed(self) -> None:
        """Runs in the thread that counts changes: say it soon."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._report_changed.set)

    def _progressed(self) -> None:
        """The pulling thread has something new: tell the readers, and look whether it has changed what it does."""
        self.news.tell()
        puller, said = self._puller, self._published
        if puller is None or said is None:
            return
        if (puller.connected, puller.acknowledging) != (said.connected, said.acknowledging):
            self._report_changed.set()
        if puller.failed is not None:
            self._follow_now.set()
        if puller.diverged is not None:
            self._fill_now.set()
        if puller.connected:
            self._lacked = None

    # -- grant, seal and level --------------------------------------------------------------------------------------

    async def grant(self, asked: GrantRequest) -> Grant:
        """Promise a primary that sees no ZooKeeper that we tell nobody of a seal for a while. Raises Refused."""
        given = await self._grants.give(asked, lambda: self._standing(asked.epoch))
        self._stand()
        return given

    async def seal(self, epoch: int, until: Position | None, deadline: Nanos) -> tuple[int, Position | None]:
        """Promise durably to acknowledge nothing of `epoch` or older; return the sealed epoch and what is here.

        Raises DeadlinePassed, without a promise, when `until` is not here in time; and with it, but not told to anybody
        as one, while the primary may write by a grant of ours. The position is None while a dead tail of an older epoch
        may still be in the archive, which would look more advanced than what was acknowledged, and while the archive is
        behind what it once was, which looks like less (decision 0059).
        """
        await self._require_known(epoch)
        if epoch > self.archive.sealed_epoch:
            if until is not None:
                await self._until(epoch, until, deadline)
            self._sealing = max(self._sealing, epoch)
            self._stand()
            self.news.tell()  # our word of this epoch counts no more
            puller = self._puller
            if puller is not None and puller.one.epoch <= epoch:
                puller.request_stop()
                if not await asyncio.to_thread(puller.wait_quiet, QUIET_DEADLINE_SECONDS):
                    raise Unreachable("the pulling thread does not end its stream")
            await asyncio.to_thread(self.archive.seal, self._sealing)
            if self.archive.sealed_epoch < epoch:
                raise Bug(f"epoch {epoch} was to be sealed, {self.archive.sealed_epoch} is")
            log.info("sealed", epoch=epoch, durable=str(self._durable(epoch)))
            self._report_changed.set()
            self._follow_now.set()
        await self._grants.ended(deadline)
        whole = await self._cut_dead_tails(epoch, deadline)
        await self._witness.recall()
        if self._record is not None and self._record.epoch == epoch and self._behind() is not None:
            self._fill_now.set()
            whole = False
        return self.archive.sealed_epoch, self._durable(epoch) if whole else None

    def _behind(self) -> Position | None:
        """Return where the archive of the newest epoch certainly once was, None while it still is."""
        if self._record is None:
            return None
        once = self._witness.once(self._record.epoch)
        here = self.archive.epochs.get(self._record.epoch)
        return None if (here.position if here is not None else Position()).covers(once) else once

    async def _require_known(self, epoch: int) -> None:
        """Refuse to seal what no controller can have named: a seal is for ever."""
        if self._record is None or self._record.epoch < epoch:
            await self._read_records(watch=False)
        if self._record is None or epoch > self._record.epoch:
            newest = self._record.epoch if self._record else None
            raise Refused(f"epoch {epoch} is not known here, the newest is {newest}", hint="name an open epoch")

    async def _cut_dead_tails(self, epoch: int, deadline: Nanos) -> bool:
        """Set aside what ended epochs have beyond their end; return whether that is done as far as `epoch` goes."""
        record = self._record
        if record is None or record.epoch < epoch:
            return False
        try:
            async with asyncio.timeout(clock.seconds_left(deadline)):
                for past in past_epochs(record.lineage, tuple(self.archive.epochs)):
                    await self._end(past.entry, past.end)
        except TimeoutError:
            return False
        return True

    def _durable(self, epoch: int) -> Position | None:
        upto = [one for number, one in self.archive.epochs.items() if number <= epoch]
        return upto[-1].position if upto else None

    async def _until(self, epoch: int, until: Position, deadline: Nanos) -> None:
        while True:
            news = self.news.next
            here = self._durable(epoch)
            if here is not None and here.covers(until):
                return
            left = clock.seconds_left(deadline)
            if left == 0.0:
                raise DeadlinePassed(f"{until} is not here, only {here or 'nothing'}")
            await _wait(news, left * 1000)

    async def level(self, epoch: int, host: str, port: int, until: Position | None, deadline: Nanos) -> Position | None:
        """Fetch what is missing of `epoch` from another replicator; return what is here then."""
        puller = self._puller
        if puller is not None and puller.one.epoch == epoch and epoch > self.archive.sealed_epoch:
            raise Refused(f"epoch {epoch} is being pulled from its primary", hint="seal it first")
        try:
            async with asyncio.timeout(clock.seconds_left(deadline)):
                await self._locks[epoch].acquire()
        except TimeoutError:
            raise DeadlinePassed(f"epoch {epoch} is being filled from another replicator") from None
        try:
            await self._stop_pulling(epoch)
            one = self._begun(epoch)
            if until is None or not one.position.covers(until):
                await self._fetch(one, self._peer(host, port), until, deadline)
        finally:
            self._locks[epoch].release()
        here = self._durable(epoch)
        if until is not None and (here is None or not here.covers(until)):
            raise Refused(f"{host}:{port} has epoch {epoch} only up to {here or 'nothing'}, not {until}",
                          hint="level with the replicator that is most advanced")  # fmt: skip
        return here

    def _begun(self, epoch: int) -> EpochArchive:
        lineage = () if self._record is None else self._record.lineage
        entry = next((entry for entry in lineage if entry.epoch == epoch), None)
        if entry is None:
            known = self.archive.epochs.get(epoch)
            if known is None:
                raise BadInput(f"epoch {epoch} is not in the lineage", hint="name an epoch that ZooKeeper records")
            return known
        return self.archive.begin(entry)

    def _peer(self, host: str, port: int) -> Target:
        return Target(host=host, port=port, user=self.settings.accounts.replication_user,
                      password=self._secrets.replication, our_server_id=self.us.server_id, tls=self.settings.tls,
                      cluster=self.settings.name)  # fmt: skip

    async def _fetch(self, one: EpochArchive, peer: Target, until: Position | None, deadline: Nanos) -> None:
        before = one.position
        try:
            await asyncio.to_thread(fetch, one, peer, self.settings.timing, self.metrics,
                                    enough=lambda: until is not None and one.position.covers(until),
                                    deadline=deadline, stop=self._stopping)  # fmt: skip
        except SameServerId as error:
            raise Unreachable(f"another fetch of ours took the place of this one: {error.message}") from None
        finally:
            if one.position != before:
                log.info("levelled", epoch=one.epoch, peer=f"{peer.host}:{peer.port}",
                         before=str(before), durable=str(one.position))  # fmt: skip
            self.news.tell()
            self._report_changed.set()

    # -- follow the epochs ------------------------------------------------------------------------------------------

    async def _follow_loop(self) -> None:
        while True:
            await self._follow_now.wait()
            self._follow_now.clear()
            try:
                await self._follow()
            except SameServerId:
                raise  # trying again would only disconnect the other one, and so on for ever (TRAPS.md 10)
            except OscarHaError as error:
                if not error.retryable and self._idle_why != str(error):
                    log.warning("follow.failed", error=str(error))
                self._idle_why = str(error)
                self._report_changed.set()
                await asyncio.sleep(self.settings.timing.probe_interval_ms / 1000)
                self._follow_now.set()

    async def _follow(self) -> None:
        record = self._record
        epoch, why = epoch_to_pull(record, max(self.archive.sealed_epoch, self._sealing))
        if self._puller is not None and self._puller.failed is not None:
            failed = self._puller.failed
            await self._stop_pulling()
            raise failed
        if self._puller is not None and self._puller.one.epoch != epoch:
            await self._stop_pulling()
        self._idle_why = why
        if self._lacked is not None and self._lacked.epoch != epoch:
            self._lacked = None
        if record is None:
            return
        if record.epoch > 1 and record.epoch - 1 > self.archive.sealed_epoch:
            await asyncio.to_thread(self.archive.seal, record.epoch - 1)
        for past in past_epochs(record.lineage, tuple(self.archive.epochs)):
            await self._end(past.entry, past.end)
        # A seal may have come meanwhile.
        if epoch is not None and self._puller is None and epoch > max(self.archive.sealed_epoch, self._sealing):
            self._pull(record)
        self._report_changed.set()

    async def _end(self, entry: LineageEntry, end: Position) -> None:
        one = self.archive.begin(entry)
        if one.end == end and (one.complete or end.covers(one.position)):
            return
        async with self._locks[entry.epoch]:
            await asyncio.to_thread(self.archive.end, entry.epoch, end)
        log.info("epoch.ended", epoch=entry.epoch, end=str(end), complete=one.complete, orphans=self.archive.orphans)
        self.news.tell()
        if not one.complete:
            self._fill_now.set()

    def _pull(self, record: EpochRecord) -> None:
        node = self.settings.node(record.primary)
        one = self.archive.begin(record.lineage[-1])
        target = replace(self._peer(node.host, node.port), expected_server_id=record.server_id)
        self._puller = Puller(one, target, self.settings.timing, self._standing(record.epoch), self.metrics,
                              self._pace, lacked=None if self._lacked is None else self._lacked.why)  # fmt: skip
        self._puller.hear(self._listener.heard)
        self._puller.start()

    async def _stop_pulling(self, epoch: int | None = None) -> None:
        """End the pulling thread; with `epoch` only if it writes to that one."""
        puller = self._puller
        if puller is None or (epoch is not None and puller.one.epoch != epoch):
            return
        puller.request_stop()
        await asyncio.to_thread(puller.join)
        if self._puller is puller:
            self._puller = None
            puller.close()

    async def _fill_loop(self) -> None:
        while True:
            await self._fill_now.wait()
            self._fill_now.clear()
            with suppress(OscarHaError):  # each is logged where it is met; the next attempt comes
                await self._fill()
            # Each new stream that lacks the same says so at once: others are asked no more often than this all the same.
            if self.gaps() or self._stuck or self._lacked is not None or self._behind() is not None:
                await asyncio.sleep(FILL_EVERY_MS / 1000)
                self._fill_now.set()

    async def _keep_loop(self) -> None:
        while True:
            with suppress(OSError):  # a full or failing disk: the report says so; the next attempt comes
                if made := await asyncio.to_thread(self._keeper.tick):
                    log.info("archive.indexed", files=made)
            with suppress(OSError):
                await self._grants.tidy()
            await asyncio.sleep(KEEP_EVERY_MS / 1000)

    async def _retain_loop(self) -> None:
        while True:
            await asyncio.sleep(RETAIN_EVERY_MS / 1000)
            with suppress(OSError, Unreachable, DeadlinePassed):  # nothing is removed; the next round comes
                await self.retainer.prune()

    def _lineage(self) -> tuple[LineageEntry, ...]:
        return () if self._record is None else self._record.lineage

    @property
    def _stuck(self) -> bool:
        """Whether the primary does not have what we need next, for example because it has purged it."""
        return self._puller is not None and self._puller.diverged is not None

    async def _fill(self) -> None:
        """Fetch from other replicators what is missing of ended epochs, and what our primary has purged."""
        gaps, behind = self.gaps(), self._behind()
        peers = await self._peers() if gaps or self._stuck or behind is not None else []
        for one in gaps:
            async with self._locks[one.epoch]:
                answered = await self._fill_from(one, peers, one.end)
                await asyncio.to_thread(self.archive.end, one.epoch, one.end or one.position)
            self._judge_gap(one, answered)
            self.news.tell()
        puller = self._puller
        if behind is not None and puller is None and self._record is not None:
            async with self._locks[self._record.epoch]:
                await self._fill_from(self._begun(self._record.epoch), peers, behind)
        if puller is not None and puller.diverged is not None and peers:
            one, error = puller.one, puller.diverged
            async with self._locks[one.epoch]:
                if self._lacked is None:
                    self._lacked = Lacked(one.epoch, named(error), told=named(error))
                await self._stop_pulling(one.epoch)
                before = one.position
                answered = await self._fill_from(one, peers, None)
            silent = {other.site for other in self.settings.replicators} - {self.us.site} - answered
            told = named(error) if one.position != before else lacking(error, silent)
            self._lacked = Lacked(one.epoch, named(error), told=told)
            self._follow_now.set()
        self._stand()

    def _judge_gap(self, one: EpochArchive, answered: set[str]) -> None:
        """What a silent replicator has is not known. Only when all have answered is it certain that nobody has more."""
        others = {other.site for other in self.settings.replicators} - {self.us.site}
        if one.complete:
            self._lost.discard(one.epoch)
        elif others <= answered and one.epoch not in self._lost:
            self._lost.add(one.epoch)
            log.error("gap.nobody_has_it", epoch=one.epoch, durable=str(one.position), end=str(one.end))

    async def _fill_from(self, one: EpochArchive, peers: list[Replicator], until: Position | None) -> set[str]:
        """Fetch from one after the other; return the sites that gave what they have, or said that they have none."""
        answered = set[str]()
        for peer in peers:
            deadline = clock.after(clock.now(), self.settings.timing.step_deadline_ms)
            try:
                await self._fetch(one, self._peer(peer.host, peer.port), until, deadline)
                answered.add(peer.site)
            except Diverged as error:
                answered.add(peer.site)
                log.info("fill.failed", epoch=one.epoch, peer=peer.site, error=str(error))
            except (Unreachable, DeadlinePassed, Refused) as error:
                log.info("fill.failed", epoch=one.epoch, peer=peer.site, error=str(error))
            if until is not None and one.position.covers(until):
                break
        return answered

    async def _sources(self, one: EpochArchive) -> list[Source]:
        """Return who may have a file of an epoch: other replicators first, then the database that wrote it."""
        ours = mending_server_id(self.settings, self.us.site)
        peers = [(peer.site, self._peer(peer.host, peer.port), True) for peer in await self._peers()]
        nodes = [(node.name, replace(self._peer(node.host, node.port), expected_server_id=node.server_id), False)
                 for node in self.settings.nodes if node.server_id == one.start.server_id]  # fmt: skip
        return [Source(name=name, target=replace(target, our_server_id=ours), is_replicator=replicator)
                for name, target, replicator in (*peers, *nodes)]  # fmt: skip

    def _found_damage(self) -> None:
        """Runs in the thread that scrubs."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.mender.wake)
            self._loop.call_soon_threadsafe(self._report_changed.set)

    def _mended(self) -> None:
        self.news.tell()
        self._report_changed.set()

    async def _peers(self) -> list[Replicator]:
        """Return the other replicators, the most advanced first; of those that do not report nothing is known."""
        here, told = self.archive.position or Position(), dict[str, int]()
        for site in await self._coordination.children("replicators"):
            read = await self._coordination.read(ReplicatorReport, f"replicators/{site}")
            if read is not None and read[0].durable is not None:
                told[site] = here.distance(Position.parse(read[0].durable))
        others = [one for one in self.settings.replicators if one.site != self.us.site]
        return sorted(others, key=lambda one: -told.get(one.site, -1))


async def _wait(event: asyncio.Event, ms: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(ms / 1000):
            await event.wait()
