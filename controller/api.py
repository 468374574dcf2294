"""The control surface over HTTP. Nothing changes on GET; every change needs the token and is logged.

Any controller answers; one that does not lead passes changes on to the one that does.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import structlog
from aiohttp import web

from cluster import clock
from cluster.coordination import Coordination
from cluster.errors import BadInput, Conflict, DeadlinePassed, Refused, Unreachable
from cluster.http import Client, application, body_of
from cluster.position import Position
from cluster.records import decode
from cluster.settings import Settings
from controller import accepted, ordering, rejoin, rejoining, seeding, suspending, unsighted
from controller.decide import judge_primary, warnings
from controller.dry_run import dry_run
from controller.estimate import ESTIMATE_PLANS
from controller.leadership import Leader
from controller.loop import Loop, Request
from controller.mirror import Mirror
from controller.model import AutomaticRecord, DegradedRecord, Kind, PlanRecord, RejoinRecord, VerifyRecord, View
from controller.readiness import Reason, readiness, sentences
from controller.seed import plan_seeding
from controller.story import story

REQUEST_DEADLINE_MS = 90_000
HISTORY_LIMIT_DEFAULT, HISTORY_LIMIT_MAX = 20, 500
WHY_CHARACTERS_MAX = 500
PASSED_ON = "X-Oscar-Ha-Passed-On"
log = structlog.get_logger()


class Api:
    """Handlers of one controller."""

    def __init__(self, settings: Settings, token: str, name: str, loop: Loop, client: Client) -> None:
        self.settings = settings
        self.name = name
        self.loop = loop
        self.client = client
        self.app = application(token)
        self.app.add_routes(
            [
                web.get("/v1/cluster", self.cluster),
                web.get("/v1/history", self.history),
                web.get("/v1/history/{id}", self.history_of),
                web.get("/v1/plan", self.plan),
                web.get("/v1/rejoins", self.rejoins),
                web.get("/v1/degraded", self.degraded),
                web.get("/v1/readiness", self.readiness),
                web.get("/health", self.health),
                web.get("/metrics", self.metrics),
                web.post("/v1/switchover", self.switchover),
                web.post("/v1/failover", self.failover),
                web.post("/v1/nodes/{node}/reinitialize", self.reinitialize),
                web.post("/v1/nodes/{node}/delay", self.delay),
                web.post("/v1/nodes/{node}/hold", self.hold),
                web.post("/v1/nodes/{node}/release", self.release),
                web.post("/v1/nodes/{node}/maintenance", self.maintain),
                web.delete("/v1/nodes/{node}/maintenance", self.end_maintenance),
                web.post("/v1/pause", self.pause),
                web.delete("/v1/pause", self.resume),
                web.post("/v1/verify", self.verified),
            ]
        )

    @property
    def mirror(self) -> Mirror:
        return self.loop.world.mirror

    @property
    def coordination(self) -> Coordination:
        return self.mirror.coordination

    # -- reading -----------------------------------------------------------------------------------------------------

    async def cluster(self, _: web.Request) -> web.Response:
        """Everything about the cluster in one answer."""
        plan, view = self.mirror.get(PlanRecord, "plan"), self.mirror.view()
        try:
            leader, gone = await self.coordination.read(Leader, "leader"), None
        except Unreachable:
            leader, gone = None, await unsighted.told(self.settings, self.client, view.epoch)
            if gone is None:
                raise  # another controller may see more
        answer = describe(self.settings, view, plan, leader[0] if leader else None)
        if gone is not None:
            answer |= {"ready": False, "reasons": [gone]}
        verified = self.mirror.get(VerifyRecord, "verify")
        return web.json_response(
            {
                **answer,
                "pause": asdict(view.pause) if view.pause else None,
                "verify": asdict(verified) if verified else None,
            }
        )

    async def history(self, request: web.Request) -> web.Response:
        """Finished plans, newest first; `?limit=N`."""
        text = request.query.get("limit", str(HISTORY_LIMIT_DEFAULT))
        if not text.isdigit() or not 1 <= int(text) <= HISTORY_LIMIT_MAX:
            raise BadInput(f"limit {text!r} is not a number from 1 to {HISTORY_LIMIT_MAX}")
        found = await self.loop.world.history(int(text))
        return web.json_response([_history_item(asdict(record)) for record in found])

    async def history_of(self, request: web.Request) -> web.Response:
        """One finished plan: by its id, by the number of an epoch, or `last`. With its story for people."""
        wanted = request.match_info["id"]
        found = await self.loop.world.finished(wanted)
        if found is None:
            raise BadInput(f"there is no finished plan {wanted!r}", hint="GET /v1/history lists them; or 'last'")
        return web.json_response(_history_item(asdict(found)) | {"story": story(found)})

    async def rejoins(self, _: web.Request) -> web.Response:
        """What was done by itself to nodes that came back, newest first."""
        return web.json_response(rejoins(self.mirror.view()))

    async def degraded(self, _: web.Request) -> web.Response:
        """The times in which no commit waited for another site, newest first."""
        record = self.mirror.get(DegradedRecord, "degraded") or DegradedRecord()
        return web.json_response([asdict(one) for one in reversed(record.intervals)])

    async def plan(self, _: web.Request) -> web.Response:
        """The running plan, null when there is none."""
        plan = self.mirror.get(PlanRecord, "plan")
        return web.json_response(asdict(plan) if plan else None)

    async def readiness(self, _: web.Request) -> web.Response:
        """Whether a failover would work now, and if not why and what to do. Always 200: `ready` is the answer."""
        reasons = readiness(self.mirror.view())
        return web.json_response({"ready": not reasons, "reasons": [_reason(one) for one in reasons]})

    async def health(self, _: web.Request) -> web.Response:
        """Whether this controller is connected and leads."""
        leading = self.loop.world.leadership.valid()
        return web.json_response({"name": self.name, "leading": leading, "connected": self.coordination.connected})

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus metrics."""
        return web.Response(body=self.loop.metrics.text(), content_type="text/plain")

    # -- changing ----------------------------------------------------------------------------------------------------

    async def switchover(self, request: web.Request) -> web.Response:
        """Planned change of primary: `{to?, dry_run?, why?}`. Answers when it is over."""
        return await self._change(request, Kind.SWITCHOVER, {"to", "dry_run", "why"})

    async def failover(self, request: web.Request) -> web.Response:
        """Change of primary by an operator's word: `{to?, allow_data_loss?: {transactions, seconds}, primary_is_off?, dry_run?, why?}`."""
        fields = {"to", "dry_run", "why", "allow_data_loss", "primary_is_off"}
        return await self._change(request, Kind.FAILOVER, fields)

    async def reinitialize(self, request: web.Request) -> web.Response:
        """Build a node anew from another one: `{from?, force?, keep?, dry_run?, why?}`. Answers when it has begun."""
        body = await body_of(request)
        _only(body, {"from", "force", "keep", "dry_run", "why"})
        node, why = request.match_info["node"], _why(body, "an operator asked")
        if not self.loop.world.leadership.valid():
            return web.json_response(await self._pass_on(request, body))
        await self.mirror.refresh()
        if self.mirror.get(PlanRecord, "plan") is not None:
            raise Conflict("a plan is running: a repair waits for it", hint="see GET /v1/plan")
        plan = plan_seeding(
            self.mirror.view(), node, requested=_optional_text(body, "from"), force=_flag(body, "force")
        )
        seeding.require_settings(self.settings, plan)
        if _flag(body, "dry_run"):
            return web.json_response(seeding.describe(plan))
        log.info("audit", verb="reinitialize", node=node, donor=plan.donor, why=why, peer=request.remote)
        return web.json_response(
            await seeding.hand_over(
                self.client, self.settings, plan, force=_flag(body, "force"), keep=_flag(body, "keep")
            )
        )

    async def delay(self, request: web.Request) -> web.Response:
        """Let a standby stay behind: `{seconds, force?, dry_run?, why?}`; 0 seconds: no longer."""
        return await self._order(request, {"seconds", "force", "dry_run", "why"})

    async def hold(self, request: web.Request) -> web.Response:
        """Let a standby stop before a transaction or a time, or now: `{before? | time? | now?, force?, dry_run?, why?}`."""
        return await self._order(request, {"before", "time", "now", "force", "dry_run", "why"})

    async def release(self, request: web.Request) -> web.Response:
        """Let a held standby go on: `{dry_run?, why?}`."""
        return await self._order(request, {"dry_run", "why"})

    async def _order(self, request: web.Request, fields: set[str]) -> web.Response:
        body = await body_of(request)
        _only(body, fields)
        node, verb = request.match_info["node"], request.path.rsplit("/", 1)[1]
        if not self.loop.world.leadership.valid():
            return web.json_response(await self._pass_on(request, body))
        answer = await ordering.give(
            self.loop.world, self.client, verb, node, body, why=_why(body, "an operator asked")
        )
        log.info("audit", verb=verb, **answer, peer=request.remote)
        return web.json_response(answer)

    async def maintain(self, request: web.Request) -> web.Response:
        """Somebody works on a node: `{why?, who?, for_seconds?, force?}`. Given again it replaces what was said."""
        body, node = await body_of(request), request.match_info["node"]
        _only(body, {"why", "who", "for_seconds", "force"})
        record = suspending.requested(body, why=_why(body, "an operator asked"), peer=request.remote)
        if not self.loop.world.leadership.valid():
            return web.json_response(await self._pass_on(request, {**body, "who": record.who}))
        await self.mirror.refresh()
        plan = self.mirror.get(PlanRecord, "plan")
        suspending.require_maintainable(self.mirror.view(), plan, node, force=_flag(body, "force"))
        await self.loop.world.suspend(f"maintenance/{node}", record)
        log.info("audit", verb="maintenance", node=node, **asdict(record), peer=request.remote)
        return web.json_response({"node": node, "maintenance": asdict(record)})

    async def end_maintenance(self, request: web.Request) -> web.Response:
        """Nobody works on a node any more. Safe to repeat."""
        node = self.settings.node(request.match_info["node"]).name
        await self.coordination.delete(f"maintenance/{node}")
        self.mirror.doubt([f"maintenance/{node}"])
        log.info("audit", verb="maintenance off", node=node, peer=request.remote)
        return web.json_response({"node": node, "maintenance": None})

    async def pause(self, request: web.Request) -> web.Response:
        """No automatic action until resumed: `{why?, who?, for_seconds?}`. Given again it replaces what was said."""
        body = await body_of(request)
        _only(body, {"why", "who", "for_seconds"})
        record = suspending.requested(body, why=_why(body, "an operator asked"), peer=request.remote)
        if not self.loop.world.leadership.valid():
            return web.json_response(await self._pass_on(request, {**body, "who": record.who}))
        await self.mirror.refresh()
        await self.loop.world.suspend("pause", record)
        log.info("audit", verb="pause", **asdict(record), peer=request.remote)
        return web.json_response({"paused": True, "pause": asdict(record)})

    async def resume(self, request: web.Request) -> web.Response:
        """Automatic action again: after a pause, or after too many automatic failovers."""
        await self.coordination.delete("pause")
        await self._forgive()
        self.mirror.doubt(["pause"])
        log.info("audit", verb="resume", peer=request.remote)
        return web.json_response({"paused": False})

    async def _forgive(self) -> None:
        """Count automatic failovers and rejoins anew: an operator has looked. Raises Conflict when one ends just now."""
        await self._forgive_rejoins()
        found = await self.coordination.read(AutomaticRecord, "automatic")
        if found is None:
            return
        record, version = found
        await self.coordination.replace("automatic", replace(record, forgiven=record.failovers), version)
        self.mirror.doubt(["automatic"])

    async def _forgive_rejoins(self) -> None:
        for node in self.settings.nodes:
            found = await self.coordination.read(RejoinRecord, f"rejoin/{node.name}")
            if found is not None and found[0].last_attempt is not None:
                await self.coordination.replace(f"rejoin/{node.name}", found[0].forgiven(), found[1])
                self.mirror.doubt([f"rejoin/{node.name}"])

    async def verified(self, request: web.Request) -> web.Response:
        """Keep the result of a comparison, to be shown with the status."""
        body = {**await body_of(request), "ended": clock.utc_now()}
        record = decode(VerifyRecord, body, where="the body of /v1/verify")
        await self.mirror.refresh()
        version = self.mirror.version("verify")
        if version is None:
            await self.coordination.create("verify", record)
        else:
            await self.coordination.replace("verify", record, version)
        self.mirror.doubt(["verify"])
        log.info("audit", verb="verify", result=record.result, peer=request.remote)
        return web.json_response({"kept": True})

    async def _change(self, request: web.Request, kind: Kind, fields: set[str]) -> web.Response:
        body = await body_of(request)
        _only(body, fields)
        wanted = Request(
            kind=kind,
            to=_optional_text(body, "to"),
            why=_why(body, "an operator asked"),
            accepts=accepted.parse(body.get("allow_data_loss")),
            primary_is_off=_flag(body, "primary_is_off"),
        )
        if not self.loop.world.leadership.valid():
            return web.json_response(await self._pass_on(request, body))
        await self.mirror.refresh()
        if _flag(body, "dry_run"):
            running, past = self.mirror.get(PlanRecord, "plan"), await self.loop.world.history(ESTIMATE_PLANS)
            return web.json_response(
                dry_run(self.mirror.view(), wanted, running=running, past=past, timing=self.settings.timing)
            )
        accepts = wanted.accepts.text if wanted.accepts is not None else None
        log.info("audit", verb=kind.value, to=wanted.to, accepts=accepts, why=wanted.why,
                 primary_is_off=wanted.primary_is_off, peer=request.remote)  # fmt: skip
        self.loop.submit(wanted)
        try:
            async with asyncio.timeout(REQUEST_DEADLINE_MS / 1000):
                done = await asyncio.shield(wanted.done)
        except TimeoutError as error:
            raise DeadlinePassed(
                f"the {kind.value} still runs after {REQUEST_DEADLINE_MS} ms", hint="see GET /v1/plan"
            ) from error
        return web.json_response(_history_item(asdict(done)))

    async def _pass_on(self, request: web.Request, body: Mapping[str, Any]) -> Any:
        leader = await self.coordination.read(Leader, "leader")
        if leader is None or leader[0].name == self.name or PASSED_ON in request.headers:
            raise Refused("no controller leads at this moment", hint="try again in a few seconds")
        deadline_ms = REQUEST_DEADLINE_MS + self.settings.timing.call_deadline_ms
        return await self.client.post(
            f"{leader[0].url}{request.path}", body, deadline_ms=deadline_ms, headers={PASSED_ON: "1"}
        )


def rejoins(view: View) -> list[dict[str, Any]]:
    """Return everything that was done by itself to nodes that came back, newest first."""
    events = [{"node": node.name, **asdict(event)}
              for node in view.nodes if node.rejoin is not None for event in node.rejoin.events]  # fmt: skip
    return sorted(events, key=lambda one: str(one["began"]), reverse=True)


def describe(settings: Settings, view: View, plan: PlanRecord | None, leader: Leader | None) -> dict[str, Any]:
    """Return the answer of `GET /v1/cluster`."""
    reasons = readiness(view)
    steps = rejoining.rungs(view, plan_runs=plan is not None)
    return {
        "cluster": settings.name,
        "epoch": asdict(view.epoch) if view.epoch else None,
        "primary": {"reach": judged.reach.value, "why": judged.why}
        if view.epoch and (judged := judge_primary(view, view.epoch))
        else None,
        "durability": asdict(view.durability) if view.durability else None,
        "nodes": [
            _node(view, node.name, node.site, asdict(node.report) if node.report else None, steps.get(node.name))
            for node in view.nodes
        ],
        "replicators": [
            {"site": one.site, "absent_ms": one.absent_ms, **(asdict(one.report) if one.report else {})}
            for one in view.replicators
        ],
        "clinics": [{"name": clinic.name, "host": clinic.host, "port": clinic.port} for clinic in settings.clinics],
        "controllers": [{"name": one.name, "url": one.url} for one in settings.controllers],
        "leader": leader.name if leader else None,
        "plan": asdict(plan) if plan else None,
        "paused": view.paused,
        "automatic_failovers_recent": view.automatic,
        "ready": not reasons,
        "reasons": sentences(reasons),
        "readiness": [_reason(one) for one in reasons],
        "warnings": list(warnings(view)),
    }


def _reason(one: Reason) -> dict[str, str]:
    return {"code": one.code.value, "why": one.why, "mend": one.mend}


def _node(view: View, name: str, site: str, report: dict[str, Any] | None, step: rejoin.Step | None) -> dict[str, Any]:
    primary = view.node(view.epoch.primary) if view.epoch else None
    head = primary.report.position if primary and primary.report else None
    position = report.get("position") if report else None
    behind = (
        Position.parse(position).distance(Position.parse(head)) if position is not None and head is not None else None
    )
    facts = view.node(name)
    ordered = facts.order if facts is not None else None
    return {
        "node": name, "site": site, "reporting": report is not None, "behind": behind,
        "ordered": asdict(ordered) if ordered else None, "ordered_text": ordered.text if ordered else "", **(report or {}),
        "maintenance": asdict(facts.maintenance) if facts is not None and facts.maintenance else None,
        "rejoin": {"rung": step.rung.value, "why": step.why} if step else None,
    }  # fmt: skip


def _history_item(record: dict[str, Any]) -> dict[str, Any]:
    """`from` and `to` are how people say it; they are not names that Python allows for a field."""
    return {**record, "from": record["old"], "to": record["new"]}


def _only(body: Mapping[str, Any], fields: set[str]) -> None:
    unknown = sorted(set(body) - fields)
    if unknown:
        raise BadInput(f"unknown field {', '.join(unknown)}", hint=f"known: {', '.join(sorted(fields))}")


def _optional_text(body: Mapping[str, Any], field: str) -> str | None:
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{field} is {value!r}", hint="give the name of a node as text")
    return value


def _flag(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field, False)
    if not isinstance(value, bool):
        raise BadInput(f"{field} is {value!r}", hint="true or false")
    return value


def _why(body: Mapping[str, Any], default: str) -> str:
    return (_optional_text(body, "why") or default)[:WHY_CHARACTERS_MAX]
