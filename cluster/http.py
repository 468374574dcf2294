"""HTTP between our own processes: JSON in, JSON out, a bearer token, a deadline on every call.

One middleware turns errors into answers, one client turns answers back into the same errors.
"""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
import structlog
from aiohttp import web

from cluster import errors
from cluster.errors import BadInput, Bug, OscarHaError, Unauthorized, Unreachable
from cluster.http_guests import Guests

BODY_BYTES_MAX = 1_000_000
STATUS: Mapping[str, int] = {
    "bad_input": 400,
    "unauthorized": 401,
    "conflict": 409,
    "fenced_out": 409,
    "refused": 409,
    "diverged": 409,
    "unreachable": 502,
    "deadline_passed": 504,
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
GUESTS: web.AppKey[list[Guests]] = web.AppKey("guests", list[Guests])
"""Who counts an application's connections, once it is served."""
log = structlog.get_logger()


def application(token: str) -> web.Application:
    """Return an application whose every request but GET needs the token, and whose errors are records."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            trusted = request.method not in ("GET", "HEAD")
            if trusted:
                require_token(request, token)
            with _counted(request, trusted=trusted):
                return await handler(request)
        except OscarHaError as error:
            return _answer(error, STATUS.get(error.code, 500))
        except web.HTTPException as error:
            return _answer(BadInput(f"{request.method} {request.path}: {error.reason}"), error.status)
        except Exception as error:  # the edge: what nobody foresaw is logged here, once
            log.exception("request.failed", method=request.method, path=request.path)
            return _answer(Bug(f"{request.method} {request.path}: {type(error).__name__}", hint="see the log"), 500)

    app = web.Application(middlewares=[guard], client_max_size=BODY_BYTES_MAX)
    app[GUESTS] = []
    return app


@contextmanager
def _counted(request: web.Request, *, trusted: bool) -> Iterator[None]:
    """Have it known that a request is being answered."""
    for guests in request.app[GUESTS]:
        with guests.asking(request.protocol, trusted=trusted):
            yield
        return
    yield  # served by somebody who does not count, as in tests


def _answer(error: OscarHaError, status: int) -> web.Response:
    return web.json_response({"error": error.as_record()}, status=status)


def require_token(request: web.Request, token: str) -> None:
    """Raise Unauthorized unless the request carries the token; compares in constant time."""
    given = request.headers.get("Authorization", "")
    if not hmac.compare_digest(given.encode(errors="surrogateescape"), f"Bearer {token}".encode()):
        raise Unauthorized(
            "the bearer token is missing or wrong",
            hint="send 'Authorization: Bearer TOKEN' with the cluster's token",
        )


async def body_of(request: web.Request) -> dict[str, Any]:
    """Return the request's JSON object, an empty one when there is no body. Raises BadInput."""
    data = await request.read()
    try:
        body = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the body is not JSON: {error}", hint="send a JSON object") from error
    if not isinstance(body, dict):
        raise BadInput(f"the body is a JSON {type(body).__name__}, not an object", hint='send {"field": value}')
    return body


class Runner(web.AppRunner):
    """Serves an application on one port to no more connections than it should (http_guests)."""

    _listening: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> None:
        """Begin to serve. Raises OSError."""
        assert self.server is not None, "it was set up"
        guests = Guests(self.server)
        self.app[GUESTS].append(guests)
        self._listening = await asyncio.get_running_loop().create_server(guests, host, port, reuse_address=True)

    async def cleanup(self) -> None:
        """Accept nobody any more, then end what is being answered."""
        if self._listening is not None:
            self._listening.close()
        await super().cleanup()


async def serve(app: web.Application, host: str, port: int, *, what: str) -> web.AppRunner:
    """Start serving and return the runner to clean up. Raises BadInput when the port is in use."""
    runner = Runner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await runner.listen(host, port)
    except OSError as error:
        await runner.cleanup()
        raise BadInput(f"{what}: {host}:{port} cannot be listened on: {error.strerror}",
                       hint="end what uses the port, or choose another in the settings") from error  # fmt: skip
    return runner


def is_refusal(error: Unreachable) -> bool:
    """Return whether the host answered that nobody listens there: no silence, but proof that no process has the port."""
    cause = error.__cause__
    return isinstance(cause, aiohttp.ClientConnectorError) and isinstance(cause.os_error, ConnectionRefusedError)


class Client:
    """Calls other processes of the cluster. Use as an async context manager."""

    def __init__(self, token: str) -> None:
        self._headers = {"Authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Client":
        self._session = aiohttp.ClientSession(headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, url: str, *, deadline_ms: float) -> Any:
        """Return the JSON answer. Raises Unreachable, or the error that the other side raised."""
        return await self._call("GET", url, None, deadline_ms)

    async def post(
        self, url: str, body: Mapping[str, Any], *, deadline_ms: float, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Post a JSON body and return the JSON answer. Raises Unreachable, or the error that the other side raised."""
        return await self._call("POST", url, body, deadline_ms, headers)

    async def lines(self, url: str, *, call_deadline_ms: float, silence_deadline_ms: float) -> AsyncIterator[bytes]:
        """Post, and yield the lines of an answer that need not end. Raises Unreachable when it ends or falls silent."""
        assert self._session is not None, "use the client in 'async with'"
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=call_deadline_ms / 1000, sock_read=silence_deadline_ms / 1000
        )
        try:
            async with self._session.post(url, timeout=timeout) as response:
                if response.status >= 400:
                    answer = await response.json(content_type=None)
                    raise errors.from_record(answer.get("error") if isinstance(answer, dict) else answer, where=url)
                async for line in response.content:
                    yield line
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError: a line longer than the reader's buffer, or an answer that is not JSON.
            raise Unreachable(f"POST {url}: {str(error) or type(error).__name__}") from error
        raise Unreachable(f"POST {url}: the answer ended")

    async def delete(self, url: str, *, deadline_ms: float) -> Any:
        """Delete and return the JSON answer. Raises Unreachable, or the error that the other side raised."""
        return await self._call("DELETE", url, None, deadline_ms)

    async def _call(
        self,
        method: str,
        url: str,
        body: Mapping[str, Any] | None,
        deadline_ms: float,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        assert self._session is not None, "use the client in 'async with'"
        timeout = aiohttp.ClientTimeout(total=deadline_ms / 1000)
        try:
            async with self._session.request(method, url, json=body, timeout=timeout, headers=headers) as response:
                answer = await response.json(content_type=None)
                if response.status >= 400:
                    record = answer.get("error") if isinstance(answer, dict) else answer
                    raise errors.from_record(record, where=url)
                return answer
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"{method} {url}: {reason}") from error
        except json.JSONDecodeError as error:
            raise Unreachable(f"{method} {url}: the answer is not JSON") from error
