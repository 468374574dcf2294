"""The controller's loop: a timer around a public `tick`. Only this file waits.

A tick observes, decides and executes. While a plan runs, ticks follow each other without a pause.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from cluster import clock
from cluster.clock import Nanos
from cluster.errors import Bug, Conflict, FencedOut, OscarHaError, Refused, Unreachable
from cluster.log import Repeated
from controller import plan as steps
from controller import rejoining, seeding
from controller.advance import failed, may_stay_unwritten, next_step, progress, waiting
from controller.decide import Decision, Hold, Mend, Start, decide
from controller.hooking import Hooking
from controller.invariants import check_repair, check_step
from controller.metrics import Metrics
from controller.model import HistoryRecord, Kind, PlanRecord, View
from controller.plan import GiveUp, Step, Wait
from controller.rejoin import Rung
from controller.requested import Wanted, best, new_plan, requested_plan
from controller.world import World

TICK_SECONDS = 0.5
FAILED_SECONDS, FAILED_SECONDS_MAX = 0.05, 1.0
RUNNING_TICK_SECONDS = 0.1
"""How soon a plan that waits looks again."""
REPAIR_PAUSE_MS = 2_000
"""A repair that failed is not tried again sooner."""
REJOIN_PAUSE_MS = 2_000
"""While no node needs anything the ladder is looked at so often: it costs several times what deciding costs."""
LOOK_AGAIN_MS = 500.0
"""After a step that took so long all is looked at again, although nothing was written."""
SEEN_EVERY_MS = 2_000
"""How often it is written down what everybody said last."""
log = structlog.get_logger()


@dataclass(slots=True)
class Request(Wanted):
    """What an operator asked for; `done` ends with the history record or the refusal."""

    done: "asyncio.Future[HistoryRecord]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Loop:
    """Leads while it is elected; otherwise only keeps its copy of the records current."""

    def __init__(self, world: World, metrics: Metrics) -> None:
        self.world = world
        self.metrics = metrics
        self.decision: Decision = Hold("starting")
        self._requests: list[Request] = []
        self._waiting: dict[str, Request] = {}
        self._clock: tuple[str, Nanos, float] | None = None
        self._repaired_at: dict[str, Nanos] = {}
        self._rejoining: asyncio.Task[None] | None = None
        self._rungs: dict[str, Rung] = {}
        self._rejoin_at: Nanos | None = None
        self._noted_at: Nanos | None = None
        self._stopping, self._trouble = asyncio.Event(), Repeated()
        self._hooks = Hooking(world, metrics)

    @property
    def stopped(self) -> bool:
        """Return whether it was told to end."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """End `run` after the current tick."""
        self._stopping.set()
        self.world.mirror.changed.set()

    def submit(self, request: Request) -> None:
        """Hand over an operator's request; it is taken at the next tick."""
        self._requests.append(request)
        self.world.mirror.changed.set()

    async def run(self) -> None:
        """Tick until stopped: at every change of a record, and at least every TICK_SECONDS."""
        try:
            failures = 0
            while not self._stopping.is_set():
                pause = TICK_SECONDS
                try:
                    pause = await self.tick()
                    failures = 0
                    self._trouble.is_over("tick")
                except Bug:
                    log.exception("tick.bug")
                except OscarHaError as error:
                    if self._trouble.is_news("tick", str(error)):
                        log.warning("tick.failed", error=str(error), code=error.code)
                    failures += 1
                    # Whoever answers late must not be asked more often than when it is well, by hundreds of clusters.
                    await asyncio.sleep(min(failures * FAILED_SECONDS, FAILED_SECONDS_MAX))
                await self._pause(pause)
        finally:
            await self._hooks.close()
            await self._end_rejoining()

    async def _end_rejoining(self) -> None:
        if self._rejoining is not None:
            self._rejoining.cancel()
            await asyncio.gather(self._rejoining, return_exceptions=True)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.world.mirror.changed.wait()
        except TimeoutError:
            return

    async def tick(self) -> float:
        """Observe, decide, execute once. Returns the seconds until the next tick is due."""
        await self.world.mirror.refresh()
        if not self.world.leadership.valid():
            self._refuse_requests()
            self._hooks.stop()
            return TICK_SECONDS
        plan = self.world.mirror.get(PlanRecord, "plan")
        if plan is not None:
            for request in self._take_requests():
                plan = await self._join(plan, request)
            await self._go_on(plan)
            return RUNNING_TICK_SECONDS
        requests = self._take_requests()
        if requests:
            await self._begin_requested(requests)
            return 0.0
        return await self._decide()

    # -- nothing is running ------------------------------------------------------------------------------------------

    async def _decide(self) -> float:
        view = self.world.mirror.view()
        self._hooks.look(view)
        decision = decide(view, clock.utc_now())
        if decision != self.decision:
            log.info("decision.changed", decision=repr(decision)[:500])
            self.decision = decision
        match decision:
            case Hold(repairs=repairs):
                await asyncio.gather(*(self._repair(view, repair) for repair in repairs))
                return min(TICK_SECONDS, _lease_ends_in(view))
            case Start(kind=kind, old=old, why=why):
                candidate = view.policy.initial_primary if kind is Kind.BOOTSTRAP else None
                plan = new_plan(view, kind, why, old=old, candidate=candidate, automatic=True)
                await self._begin(plan)
                return 0.0
            case Mend(repairs=repairs):
                await asyncio.gather(*(self._repair(view, repair) for repair in repairs))
                self._rejoin(view)
                await self._note_seen()
                return TICK_SECONDS

    async def _note_seen(self) -> None:
        """Write down what everybody said last, for the day on which the primary and others are lost together."""
        now = clock.now()
        if self._noted_at is not None and clock.ms_between(self._noted_at, now) < SEEN_EVERY_MS:
            return
        self._noted_at = now
        try:
            await self.world.note_seen()
        except OscarHaError as error:
            log.warning("seen.not_noted", error=str(error))

    def _rejoin(self, view: View) -> None:
        """Begin what the ladder says, beside the loop: a failover never waits for it (TRAPS.md 35)."""
        quiet = bool(self._rungs) and all(rung is Rung.HOLD for rung in self._rungs.values())
        now = clock.now()
        if quiet and self._rejoin_at is not None and clock.ms_between(self._rejoin_at, now) < REJOIN_PAUSE_MS:
            return
        self._rejoin_at = now
        self._tell_rungs(view)
        if self._rejoining is not None and not self._rejoining.done():
            return
        since = clock.utc_now()
        due = rejoining.repairs(view, since, seeding.new_id(since))
        if due:
            self._rejoining = asyncio.get_running_loop().create_task(self._rejoin_all(view, due))

    async def _rejoin_all(self, view: View, due: Iterable[steps.Repair]) -> None:
        for repair in due:
            try:
                await self._repair(view, repair)
            except Bug:
                log.exception("rejoin.bug", repair=repr(repair)[:500])
                return

    def _tell_rungs(self, view: View) -> None:
        """Log what a node needs when that has changed; a reason may count seconds, and is no change."""
        found = rejoining.rungs(view, plan_runs=False)
        for name, step in found.items():
            if self._rungs.get(name) is not step.rung:
                log.info("rejoin.rung", node=name, rung=step.rung.value, why=step.why)
        self._rungs = {name: step.rung for name, step in found.items()}

    async def _repair(self, view: View, repair: steps.Repair) -> None:
        key = f"{type(repair).__name__} {repair.node}"
        now, last = clock.now(), self._repaired_at.get(key)
        if last is not None and clock.ms_between(last, now) < REPAIR_PAUSE_MS:
            return
        self._repaired_at[key] = now
        check_repair(view, repair)
        try:
            await self.world.repair(repair)
            if not isinstance(repair, steps.Follow):
                self.metrics.count_repair(repair)
                del self._repaired_at[key]  # the record says it already: the next change is another one
        except OscarHaError as error:
            log.warning("repair.failed", repair=repr(repair), error=str(error))

    # -- requests ----------------------------------------------------------------------------------------------------

    def _take_requests(self) -> list[Request]:
        requests, self._requests = self._requests, []
        return [request for request in requests if not request.done.done()]

    def _refuse_requests(self) -> None:
        for request in [*self._take_requests(), *self._waiting.values()]:
            if not request.done.done():
                request.done.set_exception(FencedOut("this controller does not lead", hint="ask the leading one"))
        self._waiting.clear()

    async def _begin_requested(self, requests: list[Request]) -> None:
        first, *rest = requests
        for request in rest:
            request.done.set_exception(Conflict("another request was first: one plan at a time"))
        try:
            plan = requested_plan(self.world.mirror.view(), first)
            self._waiting[plan.id] = first
            await self._begin(plan)
        except OscarHaError as error:
            if not first.done.done():
                first.done.set_exception(error)

    async def _join(self, plan: PlanRecord, request: Request) -> PlanRecord:
        """Let a failover that waits for proof go on by an operator's word; refuse every other request."""
        try:
            joined = requested_plan(self.world.mirror.view(), request, running=plan, ms=self._since(plan)())
            log.info("plan.loss_accepted", id=plan.id, accepts=joined.accepts and joined.accepts.text, why=request.why)
            await self._keep(joined)
        except OscarHaError as error:
            request.done.set_exception(error)
            return plan
        self._waiting[plan.id] = request
        return joined

    def _answer_withdrawn(self, before: PlanRecord, after: PlanRecord, why: str) -> None:
        """Tell whoever accepted a loss that it would be a larger one: the plan waits, nobody was promoted."""
        if before.accepts is None or after.accepts is not None:
            return
        log.warning("plan.loss_refused", id=before.id, accepts=before.accepts.text, why=why)
        request = self._waiting.pop(before.id, None)
        if request is not None and not request.done.done():
            hint = "nobody was promoted, the plan waits for proof; 'oscar-ha failover --dry-run' prints what to accept"
            request.done.set_exception(Refused(why, hint=hint))

    # -- the running plan --------------------------------------------------------------------------------------------

    async def _begin(self, plan: PlanRecord) -> None:
        log.info("plan.begins", id=plan.id, why=plan.why, epoch=plan.epoch)
        self._clock = (plan.id, clock.now(), 0.0)
        await self.world.begin(plan)

    async def _go_on(self, plan: PlanRecord) -> None:
        """Do steps until the plan ends, waits or fails at one."""
        since_ms = self._since(plan)
        hooked = self._hooks.before(self.world.mirror.view(), plan)
        if hooked is None:
            return  # its hooks run: look again at the next tick
        plan = await self._keep(hooked)
        while True:
            view = self.world.mirror.view()
            step = next_step(view, plan, clock.utc_now())
            match step:
                case Wait(why=why):
                    after = await self._keep(waiting(plan, why, since_ms()))
                case GiveUp(why=why):
                    after = await self._keep(failed(plan, why))
                    self._answer_withdrawn(plan, after, why)
                case steps.Record():
                    await self._finish(plan, since_ms())
                    return
                case _:
                    after = await self._do(view, plan, step, since_ms)
            if (after.stage is plan.stage and after.vouched == plan.vouched) or after.waiting != plan.waiting:
                return  # it waits, or a step failed: look again at the next tick, not at once
            plan = after

    async def _do(self, view: View, plan: PlanRecord, step: Step, since_ms: Callable[[], float]) -> PlanRecord:
        """Do one step and write the plan that follows from it, unless that can be written with the next ones."""
        check_step(view, plan, step)
        try:
            async with asyncio.timeout(self.world.settings.timing.step_deadline_ms * 2 / 1000):
                outcome = await self.world.apply(step, since_ms, lambda done: progress(view, plan, step, done))
        except (OscarHaError, TimeoutError) as error:
            return await self._failed(plan, step, error)
        after = progress(view, plan, step, outcome)
        log.info(
            "step.done",
            id=plan.id,
            step=plan.stage.value,
            ms=round(outcome.ms),
            detail=outcome.detail,
            waiting=after.waiting,
        )
        if isinstance(step, steps.Open):  # written in the same transaction as the epoch
            return after
        if may_stay_unwritten(plan, after):
            if outcome.took_ms >= LOOK_AGAIN_MS:
                await self.world.mirror.refresh()
            return after
        return await self._keep(after)

    async def _failed(self, plan: PlanRecord, step: Step, error: Exception) -> PlanRecord:
        why = f"{plan.stage.value}: {error or type(error).__name__}"
        log.warning("step.failed", id=plan.id, step=repr(step)[:300], error=why)
        uncertain = isinstance(step, steps.Open) and isinstance(error, Conflict | Unreachable | TimeoutError)
        if uncertain or not self.world.leadership.valid():
            # Perhaps it was done: only ZooKeeper knows. The next tick goes on with the record as it stands there.
            return plan
        return await self._keep(failed(plan, why))

    async def _keep(self, plan: PlanRecord) -> PlanRecord:
        """Write the plan if it is not what stands in ZooKeeper, as it may not for some steps."""
        if plan != self.world.mirror.get(PlanRecord, "plan"):
            await self.world.keep(plan)
        return plan

    async def _finish(self, plan: PlanRecord, ms: float) -> None:
        done = await self.world.finish(self._hooks.finishing(plan), ms)
        lost = done.loss.text if done.loss is not None else None
        log.info("plan.ended", id=plan.id, outcome=done.outcome, ms=done.total_ms, lost=lost, automatic=done.automatic)
        self.metrics.count(done)
        self._hooks.after(done)
        request = self._waiting.pop(plan.id, None)
        if request is not None and not request.done.done():
            request.done.set_result(done)
        await self.world.mirror.refresh()

    def _since(self, plan: PlanRecord) -> Callable[[], float]:
        """Milliseconds since the fault was seen. A successor counts on from the last line of the timeline."""
        if self._clock is None or self._clock[0] != plan.id:
            self._clock = (plan.id, clock.now(), plan.steps[-1].ms if plan.steps else 0.0)
        _, start, offset = self._clock
        return lambda: offset + clock.ms_between(start, clock.now())


def _lease_ends_in(view: View) -> float:
    """Return in how many seconds the lease of a primary that is silent will have ended; no news would tell it."""
    primary = view.node(view.epoch.primary) if view.epoch is not None else None
    if primary is None or primary.absent_ms is None or view.lease_ended(primary.absent_ms):
        return TICK_SECONDS
    return (view.policy.lease_margin_ms - primary.absent_ms) / 1000


__all__ = ["Loop", "Request", "best", "new_plan", "requested_plan"]
