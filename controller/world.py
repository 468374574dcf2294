"""The interpreter of steps: the one place where a plan touches the outside. Every effect carries its epoch.

`apply` does one step and returns what it brought, or raises from the error tree; each step is safe to repeat.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from cluster import clock, records
from cluster.clock import Nanos
from cluster.coordination import Coordination, Create, Delete, Exists, Operation, Replace
from cluster.errors import BadInput, DeadlinePassed, FencedOut, OscarHaError, Refused, Unreachable
from cluster.http import Client
from cluster.orders import Order
from cluster.position import Position
from cluster.records import Suspension
from cluster.settings import Clinic, Secrets, Settings
from controller import haproxy, seeding
from controller import plan as steps
from controller.advance import Outcome, is_automatic_failover, outcome_of
from controller.hooks import ended
from controller.leadership import Leadership
from controller.mirror import Mirror
from controller.model import (
    AutomaticRecord,
    DegradedInterval,
    DegradedRecord,
    HistoryRecord,
    HookRun,
    PlanRecord,
    Promoted,
    RejoinEvent,
    RejoinRecord,
    Sealed,
)
from controller.plan import (
    Follow,
    NameAckers,
    NameIsolation,
    NoteRejoin,
    Repair,
    Reseed,
    Restart,
    ReturnToSync,
    SettleAckers,
    Step,
)
from controller.verify import verify

VERIFY_DEADLINE_MS = 10_000
VERIFY_PAUSE_SECONDS = 0.05
REPOINT_DEADLINE_MS = 1_000
ANNOUNCE_DEADLINE_MS = 100
APPROACH_MS, NEAR_MS, APART_MS = 4_000.0, 200.0, 1_000.0
"""So long a candidate may take to come near; so near it is waited for; so far behind it may be then at most."""
SETTLE_POLL_SECONDS = 0.05
SETTLE_DEADLINE_MS = 1_000
"""A failover waits for it: so it is short, and tried again."""
HISTORY_MAX = 500
"""Finished plans kept in ZooKeeper; the oldest go first."""
EPOCH_DIGITS = 10
LAST = "last"
log = structlog.get_logger()
After = Callable[[Outcome], PlanRecord]


class World:
    """Executes steps for the leading controller."""

    def __init__(
        self, settings: Settings, secret: Secrets, coordination: Coordination, mirror: Mirror, leadership: Leadership
    ) -> None:
        self.settings = settings
        self.coordination = coordination
        self.mirror = mirror
        self.leadership = leadership
        self._secret = secret
        self._client = Client(secret.token)

    async def __aenter__(self) -> "World":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    # -- the plan's own record ---------------------------------------------------------------------------------------

    async def begin(self, plan: PlanRecord) -> None:
        """Write a new plan. Raises Conflict when one is running already: one plan at a time."""
        await self._transact(Create("plan", plan))

    async def keep(self, plan: PlanRecord) -> None:
        """Write the plan's new state. Raises Conflict when another controller did."""
        await self._transact(Replace("plan", plan, self._version("plan")))

    async def finish(self, plan: PlanRecord, ms: float) -> HistoryRecord:
        """Move the plan to the history, in one transaction."""
        done = HistoryRecord(
            id=plan.id,
            kind=plan.kind,
            why=plan.why,
            epoch=plan.epoch,
            old=plan.old,
            new=plan.candidate,
            proof=plan.proof,
            outcome=outcome_of(plan),
            started=plan.started,
            ended=clock.utc_now(),
            total_ms=round(ms, 1),
            steps=plan.steps,
            trouble=plan.trouble,
            automatic=plan.automatic,
            hooks=plan.hooks,
            requested=plan.requested,
            accepts=plan.accepts,
            loss=plan.loss,
            ranking=plan.ranking,
        )
        await self.coordination.ensure("history")
        counted = [self._counted()] if is_automatic_failover(plan) else []
        await self._transact(Create(f"history/{plan.id}", done), Delete("plan", self._version("plan")), *counted)
        await self._forget_old_history()
        return done

    def _counted(self) -> Operation:
        """Return what counts one more automatic failover, in the transaction that ends its plan."""
        known = self.mirror.get(AutomaticRecord, "automatic") or AutomaticRecord()
        return self._write("automatic", replace(known, failovers=known.failovers + 1))

    def _write(self, path: str, record: object) -> Operation:
        version = self.mirror.version(path)
        return Create(path, record) if version is None else Replace(path, record, version)

    async def note_seen(self) -> None:
        """Write down what everybody said last. Raises Conflict when another controller did."""
        await self._transact(self._write("seen", self.mirror.seen()))

    async def give_order(self, node: str, order: Order) -> None:
        """Write what is wanted of a standby. Raises Conflict when another order came first."""
        path = f"orders/{node}"
        version = self.mirror.version(path)
        await self.coordination.ensure("orders")
        await self._transact(Create(path, order) if version is None else Replace(path, order, version))

    async def suspend(self, path: str, record: Suspension) -> None:
        """Write a pause or a maintenance. Raises Conflict when it has just changed."""
        if "/" in path:
            await self.coordination.ensure(path.rpartition("/")[0])
        await self._transact(self._write(path, record))

    async def end_suspension(self, path: str, version: int) -> None:
        """Let it be over. Raises Conflict when it has just changed."""
        await self._transact(Delete(path, version))

    async def note_hooks(self, plan: str, runs: tuple[HookRun, ...]) -> None:
        """Write into a finished plan how its hooks ended. Raises Conflict when somebody else has just done so."""
        found = await self.coordination.read(HistoryRecord, f"history/{plan}")
        if found is not None:
            record, version = found
            await self._transact(Replace(f"history/{plan}", replace(record, hooks=ended(record.hooks, runs)), version))

    async def history(self, limit: int) -> list[HistoryRecord]:
        """Return the newest finished plans, newest first."""
        names = (await self.coordination.children("history"))[::-1][:limit]
        found = await asyncio.gather(*(self.coordination.read(HistoryRecord, f"history/{name}") for name in names))
        return [record for record, _ in filter(None, found)]

    async def finished(self, wanted: str) -> HistoryRecord | None:
        """Return a finished plan: the newest (`last`), the newest of an epoch (its number), or the one of that id."""
        names = await self.coordination.children("history")
        if wanted == LAST:
            fitting = names
        elif wanted.isascii() and wanted.isdigit():
            fitting = tuple(name for name in names if name.partition("-")[0] == wanted.zfill(EPOCH_DIGITS))
        else:
            fitting = tuple(name for name in names if name == wanted)
        found = await self.coordination.read(HistoryRecord, f"history/{fitting[-1]}") if fitting else None
        return None if found is None else found[0]

    # -- steps -------------------------------------------------------------------------------------------------------

    async def apply(self, step: Step, since_ms: Callable[[], float], after: After) -> Outcome:
        """Do one step. `after` gives the plan that `Open` writes in the same transaction as the epoch."""
        began = since_ms()

        def outcome(detail: str = "", **facts: Any) -> Outcome:
            return Outcome(ms=(ended := since_ms()), took_ms=ended - began, detail=detail, **facts)

        match step:
            case steps.Choose(node=node, reasons=reasons):
                return outcome(f"{node}; {'; '.join(reasons)}")
            case steps.AcceptLeaseEnd() | steps.AcceptWord():
                return outcome(f"{step.node}: {step.proof}")
            case steps.Fence():
                how, position, vouched = await self._fence(step)
                where = f" at {position}" if position is not None else ""
                return outcome(f"{step.node}: {how}{where}", how=how, position=position, vouched=vouched)
            case steps.Seal():
                sealed = await self._seal(step)
                return outcome(", ".join(f"{one.site} at {one.durable}" for one in sealed), sealed=sealed)
            case steps.Level():
                return outcome(await self._level(step))
            case steps.Apply():
                return outcome(await self._apply(step))
            case steps.Promote():
                answer = await self._watchdog(step.node, "promote", {"epoch": step.epoch}, self._deadline)
                promoted = records.decode(Promoted, answer, where=f"the answer of {step.node}")
                return outcome(f"{step.node} from {promoted.position or 'the beginning'}", promoted=promoted)
            case steps.Open():
                done = outcome(f"epoch {step.epoch}: {step.record.primary}, {_acknowledged_by(step)}")
                await self._open(step, after(done))
                return done
            case steps.Admit():
                await self._watchdog(step.node, "open", {"epoch": step.epoch}, self._deadline)
                return outcome(f"{step.node} takes writes")
            case steps.Repoint():
                return outcome(await self._repoint(step))
            case steps.Verify():
                return outcome(await self._verify(step))
            case steps.Record():
                return outcome()

    async def repair(self, repair: Repair) -> None:
        """Do one repair of a healthy cluster."""
        match repair:
            case NameAckers():
                await self._name_ackers(repair)
            case SettleAckers():
                await self._settle_ackers(repair)
            case ReturnToSync():
                await self._return_to_sync(repair)
            case NameIsolation(record=record):
                await self._transact(Replace("epoch", record, self._version("epoch")))
                log.info(
                    "isolation.named",
                    epoch=record.epoch,
                    on_isolation=record.on_isolation.value,
                    revision=record.revision,
                )
            case Follow(node=node, epoch=epoch):
                await self._watchdog(node, "follow", {"epoch": epoch}, self.settings.timing.call_deadline_ms)
            case NoteRejoin(node=node, event=event):
                await self._note_rejoin(node, event)
            case Reseed():
                body = {
                    "epoch": repair.epoch,
                    "donor": repair.donor,
                    "id": repair.event.id,
                    "force": False,
                    "keep": False,
                }
                deadline_ms = float(seeding.HAND_OVER_DEADLINE_MS)
                await self._attempt(repair, lambda: self._watchdog(repair.node, "reinitialize", body, deadline_ms))
            case Restart(node=node, epoch=epoch, event=event):
                order = {"epoch": epoch, "id": event.id}
                await self._attempt(repair, lambda: self._watchdog(node, "restart", order, self._deadline))

    async def _attempt(self, repair: Reseed | Restart, order: Callable[[], Awaitable[object]]) -> None:
        """Write that it is done, then have it done. What was refused has ended; what nobody answered may have begun."""
        await self._note_rejoin(repair.node, repair.event)
        try:
            await order()
        except Unreachable:
            raise
        except OscarHaError as error:
            ended = replace(repair.event, ended=clock.utc_now(), outcome=f"failed: {error.message}")
            await self.mirror.refresh()
            await self._note_rejoin(repair.node, ended)
            raise

    async def _note_rejoin(self, node: str, event: RejoinEvent) -> None:
        path = f"rejoin/{node}"
        known = self.mirror.get(RejoinRecord, path) or RejoinRecord()
        await self.coordination.ensure("rejoin")
        await self._transact(self._write(path, known.with_event(event)))
        log.info("rejoin.noted", node=node, rung=event.rung, why=event.why, attempt=event.attempt, donor=event.donor,
                 outcome=event.outcome)  # fmt: skip

    # -- below -------------------------------------------------------------------------------------------------------

    @property
    def _deadline(self) -> int:
        return self.settings.timing.step_deadline_ms

    async def _watchdog(self, node: str, verb: str, body: Mapping[str, Any], deadline_ms: float) -> dict[str, Any]:
        return await self._post(f"{self.settings.node(node).watchdog_url}/v1/{verb}", body, deadline_ms)

    async def _replicator(self, site: str, verb: str, body: Mapping[str, Any], deadline_ms: float) -> dict[str, Any]:
        return await self._post(f"{self.settings.replicator(site).url}/v1/{verb}", body, deadline_ms)

    async def _post(self, url: str, body: Mapping[str, Any], deadline_ms: float) -> dict[str, Any]:
        self._require_leading()
        answer = await self._client.post(url, body, deadline_ms=deadline_ms + self.settings.timing.call_deadline_ms)
        if not isinstance(answer, dict):
            raise Unreachable(f"{url}: the answer is not an object")
        return answer

    async def _fence(self, step: steps.Fence) -> tuple[str, str | None, bool]:
        if step.polite:
            await self._approach(step)
            await self._announce(step)
        answer = await self._watchdog(step.node, "fence", _fence_body(step, self._deadline), self._deadline)
        return _text(answer, "how"), answer.get("position"), answer.get("vouches") == step.epoch

    async def _approach(self, step: steps.Fence) -> None:
        """Wait until the candidate applies within a moment what the primary has. Raises DeadlinePassed: nothing was touched.

        Reports are a second old: on a busy disk a standby may be seconds behind, and clinics would wait for all of it.
        """
        if step.candidate is None:
            return
        until = clock.after(clock.now(), APPROACH_MS)
        behind_ms = await self._behind(step.node, step.candidate, step.epoch)
        while behind_ms > NEAR_MS and clock.now() < until:
            behind_ms = await self._behind(step.node, step.candidate, step.epoch)
        if behind_ms > APART_MS:
            raise DeadlinePassed(
                f"{step.candidate} stays {behind_ms:.0f} ms behind what is written", hint="try again later"
            )

    async def _behind(self, primary: str, candidate: str, epoch: int) -> float:
        """Have a standby apply what the primary has now; return for how long that took."""
        began, deadline_ms = clock.now(), self.settings.timing.call_deadline_ms
        url = f"{self.settings.node(primary).watchdog_url}/health"
        report = records.decode(records.NodeReport, await self._client.get(url, deadline_ms=deadline_ms), where=url)
        if report.position is not None:
            body = {"epoch": epoch, "position": report.position, "deadline_ms": deadline_ms}
            try:
                await self._watchdog(candidate, "drain", body, deadline_ms)
            except DeadlinePassed:
                return float(deadline_ms)
        return clock.ms_between(began, clock.now())

    async def _announce(self, step: steps.Fence) -> None:
        """Let the HAProxies send nobody anew to a primary that is about to be closed; who is there stays until it is.

        Their own next checks overrule this. One that does not answer at once is not waited for.
        """

        async def one(clinic: Clinic) -> None:
            with suppress(OscarHaError):
                await haproxy.announce_closing(clinic, step.node, deadline_ms=ANNOUNCE_DEADLINE_MS)

        self._require_leading()
        await asyncio.gather(*(one(clinic) for clinic in self.settings.clinics))

    async def _seal(self, step: steps.Seal) -> tuple[Sealed, ...]:
        """Seal all at once. Who does not answer is not in the result: the plan judges whether that matters."""
        deadline_ms = self.settings.timing.call_deadline_ms
        body = {"epoch": step.epoch, "until": step.until, "deadline_ms": deadline_ms}

        async def one(site: str) -> Sealed | None:
            try:
                answer = await self._replicator(site, "seal", body, deadline_ms)
            except FencedOut:
                raise
            except OscarHaError as error:
                log.warning("seal.failed", site=site, epoch=step.epoch, error=str(error))
                return None
            durable = answer.get("durable")  # null: sealed, and what it has is not known (decision 0059)
            return Sealed(site=site, durable=None if durable is None else _text(answer, "durable"), how="sealed")

        found = await asyncio.gather(*(one(site) for site in step.sites))
        return tuple(sealed for sealed in found if sealed is not None)

    async def _level(self, step: steps.Level) -> str:
        if step.source == step.site:
            return f"{step.site} has all up to {step.until or 'the beginning'}"
        source = self.settings.replicator(step.source)
        body = {
            "epoch": step.epoch,
            "host": source.host,
            "port": source.port,
            "until": step.until,
            "deadline_ms": self._deadline,
        }
        answer = await self._replicator(step.site, "level", body, self._deadline)
        return f"{step.site} from {step.source} to {answer.get('durable')}"

    async def _apply(self, step: steps.Apply) -> str:
        node = self.mirror.view().node(step.node)
        if node is None or node.report is None or not node.report.replicating:
            await self._watchdog(step.node, "follow", {"epoch": step.epoch}, self._deadline)
        body = {"epoch": step.epoch, "position": step.until, "deadline_ms": self._deadline}
        answer = await self._watchdog(step.node, "drain", body, self._deadline)
        return f"{step.node} has applied {answer.get('applied')}"

    async def _open(self, step: steps.Open, after: PlanRecord) -> None:
        await self._transact(
            self._write("epoch", step.record),
            self._write("durability", step.durability),
            Replace("plan", after, self._version("plan")),
            *self._degraded_over(f"epoch {step.epoch} began with {step.record.primary}"),
        )

    async def _name_ackers(self, repair: NameAckers) -> None:
        """Name others at once: whoever was named before stays in the record until `_settle_ackers`."""
        new = repair.durability
        await self._transact(Replace("durability", new, self._version("durability")), *self._degraded_begun(repair))
        log.info("ackers.named", acks=new.acks.value, ackers=new.ackers, epoch=new.epoch, former=new.former,
                 serial=new.serial, why=new.why)  # fmt: skip

    async def _settle_ackers(self, repair: SettleAckers) -> None:
        """Raise the floor to where the primary is now: the former ackers judged nothing beyond it.

        It is written only once everybody named has it all, or a primary lost meanwhile would leave a floor that no
        archive can reach.
        """
        deadline = clock.after(clock.now(), SETTLE_DEADLINE_MS)
        floor = await self._fresh_position(repair.node, repair.durability.serial - 1, deadline)
        await asyncio.gather(*(self._await_durable(site, floor, deadline) for site in repair.durability.ackers))
        new = replace(repair.durability, floor=str(floor))
        await self._transact(Replace("durability", new, self._version("durability")))
        log.info("ackers.settled", ackers=new.ackers, epoch=new.epoch, floor=new.floor, serial=new.serial)

    async def _return_to_sync(self, repair: ReturnToSync) -> None:
        """Record sync once everybody named has all that the primary had written when its commits certainly waited."""
        deadline = clock.after(clock.now(), SETTLE_DEADLINE_MS)
        serial = repair.durability.serial - 1
        floor = await self._fresh_position(repair.node, serial, deadline, waiting=True)
        await asyncio.gather(*(self._await_durable(site, floor, deadline) for site in repair.durability.ackers))
        new = replace(repair.durability, floor=str(floor), since=clock.utc_now())
        over = self._degraded_over(f"in sync again: {new.why}")
        await self._transact(Replace("durability", new, self._version("durability")), *over)
        log.info("durability.sync", ackers=new.ackers, epoch=new.epoch, floor=new.floor, serial=new.serial)

    def _degraded_begun(self, repair: NameAckers) -> list[Operation]:
        """Return what notes that commits wait no more, in the transaction that says so."""
        new, known = repair.durability, self.mirror.get(DegradedRecord, "degraded") or DegradedRecord()
        if not new.is_degraded or any(one.ended is None for one in known.intervals):
            return []
        begun = DegradedInterval(epoch=new.epoch, primary=repair.node, began=new.since, why=new.why)
        log.warning("durability.degraded", epoch=new.epoch, primary=repair.node, why=new.why)
        return [self._write("degraded", known.begun(begun))]

    def _degraded_over(self, outcome: str) -> list[Operation]:
        known = self.mirror.get(DegradedRecord, "degraded")
        if known is None or all(one.ended for one in known.intervals):
            return []
        return [self._write("degraded", known.over(clock.utc_now(), outcome))]

    async def _fresh_position(self, node: str, serial: int, deadline: Nanos, *, waiting: bool = False) -> Position:
        """Return a position of the primary that its watchdog read after this call began, and knowing that record.

        With `waiting`: while it certainly let commits wait by it.

        It tells no such position while somebody may acknowledge by its direct word (decision 0078).
        """
        url, began = f"{self.settings.node(node).watchdog_url}/health", clock.now()
        while clock.now() < deadline:
            sent = clock.now()
            answer = await self._client.get(url, deadline_ms=SETTLE_DEADLINE_MS)
            report = records.decode(records.NodeReport, answer, where=url)
            by = report.waits_by if waiting else report.serial
            age_ms, known = report.position_age_ms, by is not None and by >= serial
            fresh = age_ms is not None and age_ms <= clock.ms_between(began, sent)
            if report.position is not None and fresh and known:
                return Position.parse(report.position)
            await asyncio.sleep(SETTLE_POLL_SECONDS)
        raise Unreachable(f"{node} has not told its position of this moment")

    async def _await_durable(self, site: str, wanted: Position, deadline: Nanos) -> None:
        url = f"{self.settings.replicator(site).url}/health"
        while clock.now() < deadline:
            answer = await self._client.get(url, deadline_ms=SETTLE_DEADLINE_MS)
            report = records.decode(records.ReplicatorReport, answer, where=url)
            if report.durable is not None and Position.parse(report.durable).covers(wanted):
                return
            await asyncio.sleep(SETTLE_POLL_SECONDS)
        raise DeadlinePassed(f"{site} does not have {wanted} yet")

    async def _repoint(self, step: steps.Repoint) -> str:
        """Tell every HAProxy; one that does not answer is found out by its own checks a second later."""
        others = [node.name for node in self.settings.nodes if node.name != step.node]

        async def one(clinic: Clinic) -> str:
            try:
                await haproxy.repoint(clinic, step.node, others, deadline_ms=REPOINT_DEADLINE_MS)
            except OscarHaError as error:
                log.warning("repoint.failed", clinic=clinic.name, error=str(error))
                return f"{clinic.name} not told ({error.code})"
            return clinic.name

        self._require_leading()
        return ", ".join(await asyncio.gather(*(one(clinic) for clinic in self.settings.clinics))) or "no clinics"

    async def _verify(self, step: steps.Verify) -> str:
        server_id = self.settings.node(step.node).server_id
        deadline = clock.after(clock.now(), VERIFY_DEADLINE_MS)

        async def one(clinic: Clinic) -> None:
            while True:
                try:
                    return await verify(self.settings, self._secret.verify, clinic, server_id, step.epoch)
                except (Unreachable, Refused) as error:
                    if clock.now() >= deadline:
                        raise DeadlinePassed(
                            f"{clinic.name} could not write within {VERIFY_DEADLINE_MS} ms: {error}"
                        ) from error
                await asyncio.sleep(VERIFY_PAUSE_SECONDS)

        results = await asyncio.gather(*(one(clinic) for clinic in self.settings.clinics), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error
        return f"{len(results)} of {len(results)} clinics write"

    async def _forget_old_history(self) -> None:
        names = await self.coordination.children("history")
        for name in names[:-HISTORY_MAX]:
            await self.coordination.delete(f"history/{name}")

    async def _transact(self, *operations: Operation) -> None:
        """Write only as the leader: our election node is checked in the same transaction.

        What is stale is read again in the same round trip: ZooKeeper answers one session in the order in which it asked.
        """
        self._require_leading()
        paths = [operation.path for operation in operations]
        self.mirror.doubt(paths)
        try:
            written, seen = await asyncio.gather(
                self.coordination.transact((Exists(self.leadership.node or ""), *operations)), self.mirror.refresh(),
                return_exceptions=True,
            )  # fmt: skip
        except BaseException:
            self.mirror.doubt(paths)
            raise
        self.mirror.changed.set()  # the loop has not yet looked at what was read here
        if seen is not None or written is not None:
            self.mirror.doubt(paths)
        if written is not None:
            raise written

    def _require_leading(self) -> None:
        if not self.leadership.valid():
            raise FencedOut("this controller does not lead any more", hint="another one does, or will within seconds")

    def _version(self, path: str) -> int:
        version = self.mirror.version(path)
        if version is None:
            raise Refused(f"there is no record {path}")
        return version


def plan_id(epoch: int, kind: str, started: str) -> str:
    """Return a name that sorts by epoch, then by time, and is never used twice."""
    return f"{epoch:0{EPOCH_DIGITS}d}-{started.replace(':', '')}-{kind}-{secrets.token_hex(2)}"


def _fence_body(step: steps.Fence, deadline_ms: int) -> dict[str, Any]:
    return {"epoch": step.epoch, "polite": step.polite, "deadline_ms": deadline_ms}


def _acknowledged_by(step: steps.Open) -> str:
    return f"acknowledged by {' and '.join(step.durability.ackers)}"


def _text(answer: Mapping[str, Any], field: str) -> str:
    value = answer.get(field)
    if not isinstance(value, str):
        raise BadInput(f"the answer's {field} is {value!r}, not text")
    return value
