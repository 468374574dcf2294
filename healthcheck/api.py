"""The watchdog's HTTP: HAProxy's questions are answered from memory, commands carry their epoch and the token."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field
from pydantic.dataclasses import dataclass

from cluster import http, records
from cluster.errors import BadInput
from cluster.settings import Milliseconds, Name
from healthcheck import rescue_api
from healthcheck.halt import HALT_MS_MAX
from healthcheck.judge import DEFAULT_MAX_LAG_MS, MS_PER_SECOND
from healthcheck.seed_framing import TOKEN_BYTES
from healthcheck.watchdog import Watchdog

Request = TypeVar("Request")
Epoch = Annotated[int, Field(ge=1, le=2**53)]


@dataclass(frozen=True, kw_only=True)
class FenceRequest:
    """`epoch` is the one that ends."""

    epoch: Epoch
    polite: bool = False
    deadline_ms: Milliseconds | None = None


@dataclass(frozen=True, kw_only=True)
class EpochRequest:
    """Follow, promote and open."""

    epoch: Epoch


@dataclass(frozen=True, kw_only=True)
class DrainRequest:
    """Wait until `position` is applied."""

    epoch: Epoch
    position: str
    deadline_ms: Milliseconds | None = None


@dataclass(frozen=True, kw_only=True)
class ReinitializeRequest:
    """Replace this node's data by a copy of the donor's."""

    epoch: Epoch
    donor: Name
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
    """Names the seeding, and the folder into which the old data directory goes."""
    force: bool = False
    keep: bool = False


@dataclass(frozen=True, kw_only=True)
class RestartRequest:
    """Start the server, which crashed and which nobody has started."""

    epoch: Epoch
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]


@dataclass(frozen=True, kw_only=True)
class GiveRequest:
    """Give a copy of this node's data to who brings the token."""

    epoch: Epoch
    receiver: Name
    token: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * TOKEN_BYTES}}}$")]


@dataclass(frozen=True, kw_only=True)
class HaltRequest:
    """Stop applying for at most `for_ms`."""

    epoch: Epoch
    for_ms: Annotated[int, Field(ge=1, le=HALT_MS_MAX)]


@dataclass(frozen=True, kw_only=True)
class HaltAtRequest:
    """Apply up to this place of the primary's binlog, which is `position`."""

    halt: str
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=255)]
    offset: Annotated[int, Field(ge=4, le=2**53)]
    position: str


@dataclass(frozen=True, kw_only=True)
class ContinueRequest:
    """Apply again."""

    halt: str


def application(watchdog: Watchdog, token: str) -> web.Application:
    """Return the application that answers for `watchdog`."""
    app = http.application(token)
    _add_questions(app, watchdog)
    _add_commands(app, watchdog)
    _add_halts(app, watchdog)
    rescue_api.add(app, watchdog.rescuing, watchdog.settings, token)
    return app


def _add_questions(app: web.Application, watchdog: Watchdog) -> None:
    async def primary(_: web.Request) -> web.Response:
        return _verdict(watchdog.why_not_primary())

    async def standby(request: web.Request) -> web.Response:
        return _verdict(watchdog.why_not_standby(_max_lag_ms(request)))

    async def health(_: web.Request) -> web.Response:
        return web.json_response(asdict(watchdog.report()))

    async def metrics(_: web.Request) -> web.Response:
        text = generate_latest(watchdog.metrics.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    for path, ask in {"/primary": primary, "/standby": standby, "/health": health, "/metrics": metrics}.items():
        app.router.add_get(path, ask)


def _add_commands(app: web.Application, watchdog: Watchdog) -> None:
    async def fence(request: web.Request) -> Mapping[str, Any]:
        body = await _asked(request, FenceRequest)
        return asdict(await watchdog.fence(body.epoch, polite=body.polite, deadline_ms=body.deadline_ms))

    async def follow(request: web.Request) -> Mapping[str, Any]:
        return {"role": await watchdog.follow((await _asked(request, EpochRequest)).epoch)}

    async def drain(request: web.Request) -> Mapping[str, Any]:
        body = await _asked(request, DrainRequest)
        return {"applied": await watchdog.drain(body.epoch, body.position, deadline_ms=body.deadline_ms)}

    async def promote(request: web.Request) -> Mapping[str, Any]:
        return asdict(await watchdog.promote((await _asked(request, EpochRequest)).epoch))

    async def open_(request: web.Request) -> Mapping[str, Any]:
        return {"role": await watchdog.open((await _asked(request, EpochRequest)).epoch)}

    async def reinitialize(request: web.Request) -> Mapping[str, Any]:
        body = await _asked(request, ReinitializeRequest)
        return asdict(await watchdog.seeding.take(body.epoch, body.donor, body.id, force=body.force, keep=body.keep))

    async def restart(request: web.Request) -> Mapping[str, Any]:
        body = await _asked(request, RestartRequest)
        return asdict(await watchdog.restarting.begin(body.epoch, body.id))

    async def give(request: web.Request) -> Mapping[str, Any]:
        body = await _asked(request, GiveRequest)
        return {"port": await watchdog.seeding.giving.give(body.epoch, body.receiver, body.token)}

    commands = {
        "fence": fence, "follow": follow, "drain": drain, "promote": promote, "open": open_,
        "reinitialize": reinitialize, "give": give, "restart": restart,
    }  # fmt: skip
    for verb, command in commands.items():
        app.router.add_post(f"/v1/{verb}", _answered(command))


def _add_halts(app: web.Application, watchdog: Watchdog) -> None:
    async def halt(request: web.Request) -> Mapping[str, Any]:
        body = await _asked(request, HaltRequest)
        name, applied = await watchdog.halt(body.epoch, body.for_ms)
        return {"halt": name, "applied": applied}

    async def halt_at(request: web.Request) -> Mapping[str, Any]:
        body = await _asked(request, HaltAtRequest)
        return {"applied": await watchdog.halt_at(body.halt, body.file, body.offset, body.position)}

    async def end_halt(request: web.Request) -> Mapping[str, Any]:
        await watchdog.end_halt((await _asked(request, ContinueRequest)).halt)
        return {"applying": True}

    for verb, command in {"halt": halt, "halt-at": halt_at, "continue": end_halt}.items():
        app.router.add_post(f"/v1/{verb}", _answered(command))


def _answered(command: Callable[[web.Request], Awaitable[Mapping[str, Any]]]) -> http.Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(await command(request))

    return handler


async def _asked(request: web.Request, kind: type[Request]) -> Request:
    return records.decode(kind, await http.body_of(request), where=f"the body of {request.path}")


def _verdict(why_not: str | None) -> web.Response:
    return web.Response(text="yes\n") if why_not is None else web.Response(status=503, text=f"no: {why_not}\n")


def _max_lag_ms(request: web.Request) -> float:
    text = request.query.get("max_lag")
    if text is None:
        return DEFAULT_MAX_LAG_MS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise BadInput(f"max_lag is {text!r}", hint="give seconds, 0 or more")
    return seconds * MS_PER_SECOND
