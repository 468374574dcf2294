"""When hooks run: beside the loop, which never waits for one longer than a plan's own record says.

A run is written once it has ended: into the plan before its first step, into the history after its end. A leader that dies in
between leaves the rest to its successor, with the same key; what has ended is not run again.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any

import structlog

from cluster import clock
from cluster.errors import OscarHaError
from cluster.rules import Hook, HookEvent
from controller import hook_process, hooks
from controller.advance import failed
from controller.decide import Reach, judge_primary, warnings
from controller.hooks import Edge
from controller.metrics import Metrics
from controller.model import HistoryRecord, HookRun, Kind, PlanRecord, View
from controller.readiness import findings, sentences
from controller.world import World

EDGE_HOLD_MS = 5_000.0
"""What comes and goes within this time is told to nobody."""
LOOK_BACK = 3
"""Finished plans that a new leader looks through."""
AT_ONCE_MAX = 20
"""Hooks of edges under way; more are not begun."""
log = structlog.get_logger()


class Hooking:
    """The hooks of one cluster, while we lead."""

    def __init__(self, world: World, metrics: Metrics) -> None:
        self._world, self._metrics, self._settings = world, metrics, world.settings
        self._before: tuple[str, asyncio.Task[tuple[HookRun, ...]]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun: set[str] = set()
        """Finished plans whose hooks we have begun in this term."""
        self._term: str | None = None
        self._ready, self._sound = Edge(), Edge()

    # -- a plan ------------------------------------------------------------------------------------------------------

    def before(self, view: View, plan: PlanRecord) -> PlanRecord | None:
        """Return the plan as it goes on, None while it has to wait for its hooks. Never blocks."""
        due = hooks.due_before(self._settings.hooks, plan)
        if not due:
            return plan
        if self._before is None or self._before[0] != plan.id:
            self.cancel()
            self._before = (
                plan.id,
                asyncio.get_running_loop().create_task(self._all(due, hooks.BEFORE[plan.kind], plan)),
            )
            return None
        task = self._before[1]
        if not task.done():
            return self._hurried(view, plan)
        self._before = None
        runs = task.result()
        after = replace(plan, hooks=(*plan.hooks, *runs))
        why = hooks.refusal(due, runs)
        return after if why is None else failed(after, why)

    def _hurried(self, view: View, plan: PlanRecord) -> PlanRecord | None:
        """A switchover whose primary fails meanwhile makes room for the failover."""
        if plan.kind is not Kind.SWITCHOVER or view.epoch is None:
            return None
        judged = judge_primary(view, view.epoch)
        if judged.reach is not Reach.DOWN:
            return None
        self.cancel()
        return failed(plan, f"the primary failed while hooks ran: {judged.why}")

    def finishing(self, plan: PlanRecord) -> PlanRecord:
        """Return the plan with the hooks that its end brings, to be written with it."""
        return replace(plan, hooks=(*plan.hooks, *hooks.expected_after(self._settings.hooks, plan)))

    def after(self, done: HistoryRecord) -> None:
        """Begin the hooks of a finished plan; nobody waits for them."""
        due = hooks.due_after(self._settings.hooks, done)
        if due and done.id not in self._begun:
            self._begun.add(done.id)
            self._begin(self._after(done, due))

    async def _after(self, done: HistoryRecord, due: tuple[Hook, ...]) -> None:
        runs = await self._all(due, hooks.AFTER[done.kind], done)
        try:
            await self._world.note_hooks(done.id, runs)
        except OscarHaError as error:
            log.warning("hooks.not_noted", plan=done.id, error=str(error))

    # -- no plan -----------------------------------------------------------------------------------------------------

    def look(self, view: View) -> None:
        """Tell what has changed, and as a new leader go on with what the one before has left."""
        if not self._settings.hooks:
            return
        if self._term != self._world.leadership.node:
            self._term, self._ready, self._sound = self._world.leadership.node, Edge(), Edge()
            self._begin(self._take_over())
        reasons, concerns, now = tuple(sentences(findings(view))), warnings(view), clock.now()
        self._ready, told = hooks.look(self._ready, not reasons, now, EDGE_HOLD_MS)
        if told:
            self._tell(HookEvent.READINESS_LOST if reasons else HookEvent.READINESS_REGAINED, reasons)
        self._sound, told = hooks.look(self._sound, not concerns, now, EDGE_HOLD_MS)
        if told:
            self._tell(HookEvent.DEGRADED if concerns else HookEvent.RECOVERED, concerns)

    async def _take_over(self) -> None:
        try:
            found = await self._world.history(LOOK_BACK)
        except OscarHaError as error:
            log.warning("hooks.not_looked_back", error=str(error))
            return
        for done in found:
            self.after(done)

    def _tell(self, event: HookEvent, reasons: tuple[str, ...]) -> None:
        due = hooks.of_event(self._settings.hooks, event)
        if due and len(self._tasks) < AT_ONCE_MAX:
            self._begin(self._one_event(due, event, "\n".join(reasons)))

    async def _one_event(self, due: tuple[Hook, ...], event: HookEvent, reasons: str) -> None:
        await asyncio.gather(*(self._run(hook, event, clock.utc_now(), {"REASONS": reasons}) for hook in due))

    # -- below -------------------------------------------------------------------------------------------------------

    async def _all(
        self, due: Iterable[Hook], event: HookEvent, plan: PlanRecord | HistoryRecord
    ) -> tuple[HookRun, ...]:
        runs = await asyncio.gather(*(self._run(hook, event, plan.id, hooks.facts_of(plan)) for hook in due))
        return tuple(runs)

    async def _run(self, hook: Hook, event: HookEvent, key: str, facts: dict[str, str | None]) -> HookRun:
        told = hooks.environment(self._settings.name, hook, event, key, facts)
        done = await hook_process.run(hook, event, told)
        level = log.info if done.outcome == hooks.DONE else log.warning
        level("hook.ended", hook=hook.name, event_name=event.value, outcome=done.outcome, ms=done.took_ms)
        self._metrics.count_hook(done)
        return done

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """Kill what runs before a plan: it goes on without us, or not at all."""
        if self._before is not None:
            self._before[1].cancel()
            self._before = None

    def stop(self) -> None:
        """We do not lead any more: kill everything that runs. Whoever leads next runs it again, with the same key."""
        self.cancel()
        for task in self._tasks:
            task.cancel()
        self._begun, self._term = set(), None

    async def close(self) -> None:
        """Kill everything that runs, and return when it has ended."""
        tasks = [*self._tasks, *([self._before[1]] if self._before else [])]
        self.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
