"""The replicator's HTTP: health, metrics and places to read; with the token `seal`, `level`, `grant`, `prune` and `words`."""

import asyncio
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster import clock, http, tls
from cluster.errors import BadInput
from cluster.position import Position
from cluster.records import GrantRequest, decode, describe
from replicator import before as places
from replicator import words
from replicator.service import Service

DEADLINE_MS_MAX = 600_000
Deadline = Annotated[int, Field(ge=1, le=DEADLINE_MS_MAX)]
Body = TypeVar("Body", bound=BaseModel)
Epoch = Annotated[int, Field(ge=1, lt=2**63)]


class _Seal(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epoch: Epoch
    until: str | None = None
    deadline_ms: Deadline


class _Level(_Seal):
    host: Annotated[str, Field(min_length=1, max_length=255)]
    port: Annotated[int, Field(ge=1, le=65535)]


def application(service: Service, token: str) -> web.Application:
    """Return the application."""
    app = http.application(token)

    async def health(_: web.Request) -> web.Response:
        return web.json_response(asdict(service.report()))

    async def metrics(_: web.Request) -> web.Response:
        service.report()
        files = service.settings.tls
        service.metrics.certificate_expires.set(0 if files is None else tls.expires(files) or 0)
        return web.Response(body=service.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def seal(request: web.Request) -> web.Response:
        asked = _checked(_Seal, await http.body_of(request))
        sealed, durable = await service.seal(asked.epoch, _position(asked.until), _deadline(asked))
        return web.json_response({"sealed": sealed, "durable": None if durable is None else str(durable)})

    async def level(request: web.Request) -> web.Response:
        asked = _checked(_Level, await http.body_of(request))
        durable = await service.level(asked.epoch, asked.host, asked.port, _position(asked.until), _deadline(asked))
        return web.json_response({"durable": None if durable is None else str(durable)})

    async def grant(request: web.Request) -> web.Response:
        asked = decode(GrantRequest, await http.body_of(request), where="the body of /v1/grant")
        return web.json_response(asdict(await service.grant(asked)))

    app.add_routes(
        [
            web.get("/health", health),
            web.get("/metrics", metrics),
            web.get("/v1/before", _finder(service, token)),
            web.post("/v1/seal", seal),
            web.post("/v1/level", level),
            web.post("/v1/grant", grant),
            web.post(words.PATH, _teller(service)),
            *_retention(service),
        ]
    )
    return app


def _finder(service: Service, token: str) -> http.Handler:
    searching = asyncio.Lock()

    async def before(request: web.Request) -> web.Response:
        http.require_token(request, token)  # it may read a whole file: not for everybody, and one at a time
        asked = (request.query.get("gtid"), request.query.get("time"))
        async with searching:
            found = await asyncio.to_thread(places.asked, service.archive, *asked)
        return web.json_response({**asdict(found), "gtid": str(found.gtid), "position": str(found.position)})

    return before


def _retention(service: Service) -> tuple[web.RouteDef, ...]:
    async def look(_: web.Request) -> web.Response:
        return web.json_response((await service.retainer.look()).as_record())

    async def prune(_: web.Request) -> web.Response:
        return web.json_response((await service.retainer.prune()).as_record())

    return web.get("/v1/retention", look), web.post("/v1/prune", prune)


def _teller(service: Service) -> http.Handler:
    async def tell(request: web.Request) -> web.StreamResponse:
        service.teller.require_room()
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        with suppress(OSError, TimeoutError):  # who listened went away, or reads no more
            await service.teller.tell(response.write)
        return response

    return tell


def _checked(kind: type[Body], body: dict[str, Any]) -> Body:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise BadInput(f"the body: {describe(error)}", hint="mend the named fields") from error


def _position(text: str | None) -> Position | None:
    return None if text is None else Position.parse(text)


def _deadline(asked: _Seal) -> clock.Nanos:
    return clock.after(clock.now(), asked.deadline_ms)
