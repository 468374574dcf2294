"""The rescues of a node over its watchdog's HTTP. All of it needs the token, reading too: these are charts.

Rows leave this machine only where the settings say that the network is encrypted: our HTTP is not.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from aiohttp import web
from pydantic import Field
from pydantic.dataclasses import dataclass

from cluster import http, records
from cluster.errors import BadInput, Conflict, Refused
from cluster.settings import Settings
from healthcheck.rescue_folder import LINES
from healthcheck.rescuing import MARKS_MAX, Mark, Rescuing
from healthcheck.seed_link import is_loopback

STREAMS_MAX = 2
PIECE_BYTES = 1 << 18
OUTCOMES = frozenset({"applied", "present", "overwritten", "conflict"})


@dataclass(frozen=True, kw_only=True)
class MarkRequest:
    """What became of lines."""

    marks: tuple[Mark, ...] = Field(max_length=MARKS_MAX)


def add(app: web.Application, rescuing: Rescuing, settings: Settings, token: str) -> None:
    """Add the questions and the one command to an application."""
    streams = asyncio.Semaphore(STREAMS_MAX)

    async def listed(request: web.Request) -> web.Response:
        http.require_token(request, token)
        found = await asyncio.to_thread(rescuing.listed)
        return web.json_response({"rescues": [asdict(one) for one in found]})

    async def done(request: web.Request) -> web.Response:
        http.require_token(request, token)
        rescue = request.match_info["rescue"]
        rescuing.folder(rescue)
        marks = await asyncio.to_thread(rescuing.marks, rescue)
        return web.json_response({"done": ranges_of({one.number for one in marks if one.outcome != "conflict"})})

    async def lines(request: web.Request) -> web.StreamResponse:
        http.require_token(request, token)
        folder = rescuing.folder(request.match_info["rescue"])
        _require_private(request, settings)
        if streams.locked():
            raise Conflict(f"{STREAMS_MAX} others are reading rescues here", hint="try again")
        async with streams:
            return await _streamed(request, folder / LINES)

    async def mark(request: web.Request) -> web.Response:
        rescue = request.match_info["rescue"]
        body = records.decode(MarkRequest, await http.body_of(request), where=f"the body of {request.path}")
        wrong = sorted({one.outcome for one in body.marks} - OUTCOMES)
        if wrong:
            raise BadInput(f"outcome {wrong[0]!r}", hint=f"one of: {', '.join(sorted(OUTCOMES))}")
        return web.json_response({"replayed": await rescuing.mark(rescue, body.marks)})

    app.router.add_get("/v1/rescues", listed)
    app.router.add_get("/v1/rescues/{rescue}/lines", lines)
    app.router.add_get("/v1/rescues/{rescue}/done", done)
    app.router.add_post("/v1/rescues/{rescue}/marks", mark)


def ranges_of(numbers: set[int]) -> list[tuple[int, int]]:
    """Return numbers as ranges, both ends part of it: rows are mostly replayed one after the other."""
    found = list[tuple[int, int]]()
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def is_here(remote: str, ours: str) -> bool:
    """Return whether who asks certainly is on this machine: `ours` is the address that he came to."""
    return is_loopback(remote) or (bool(remote) and remote == ours)


def _require_private(request: web.Request, settings: Settings) -> None:
    """Raise Refused where rows would leave this machine unencrypted."""
    ours = request.transport.get_extra_info("sockname") if request.transport is not None else None
    if settings.rescue.over_network_in_clear or is_here(request.remote or "", ours[0] if ours else ""):
        return
    raise Refused(
        "rescued rows are charts, and would go over the network in clear",
        hint="run it on that node's host; or set rescue.over_network_in_clear where the network itself is encrypted",
    )


async def _streamed(request: web.Request, path: Path) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    pieces = _pieces(path)
    while piece := await asyncio.to_thread(next, pieces, b""):
        await response.write(piece)
    await response.write_eof()
    return response


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
