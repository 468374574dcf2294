"""HTTP between our processes: the token, errors that travel as records, deadlines."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from cluster import clock, http
from cluster.errors import (
    ERRORS_BY_CODE,
    BadInput,
    Bug,
    FencedOut,
    OscarHaError,
    Refused,
    Unauthorized,
    Unreachable,
    from_record,
)
from cluster.http_guests import CONNECTIONS_MAX
from tests.servers.process import free_port

TOKEN = "the-token-of-the-cluster"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
DEADLINE_MS = 5_000


async def echo(request: web.Request) -> web.Response:
    return web.json_response(await http.body_of(request))


async def fail(request: web.Request) -> web.Response:
    raise ERRORS_BY_CODE[request.query["code"]]("it did not work", hint="do this")


async def break_down(_: web.Request) -> web.Response:
    raise ZeroDivisionError("secret detail")


async def hang(_: web.Request) -> web.Response:
    await asyncio.sleep(DEADLINE_MS / 1000)
    return web.Response()


async def say_text(_: web.Request) -> web.Response:
    return web.Response(text="<html>")


@asynccontextmanager
async def a_server() -> AsyncIterator[str]:
    app = http.application(TOKEN)
    app.router.add_get("/echo", echo)
    app.router.add_post("/echo", echo)
    app.router.add_delete("/echo", echo)
    app.router.add_get("/fail", fail)
    app.router.add_get("/break", break_down)
    app.router.add_get("/hang", hang)
    app.router.add_post("/hang", hang)
    app.router.add_get("/text", say_text)
    port = free_port()
    runner = await http.serve(app, "127.0.0.1", port, what="the test")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def ask(method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, str]:
    """Return status and text of an answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers, data=body) as answer,
    ):
        return answer.status, await answer.text()


async def test_a_body_goes_there_and_back() -> None:
    async with a_server() as url, http.Client(TOKEN) as client:
        assert await client.post(f"{url}/echo", {"epoch": 7}, deadline_ms=DEADLINE_MS) == {"epoch": 7}
        assert await client.get(f"{url}/echo", deadline_ms=DEADLINE_MS) == {}


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
@pytest.mark.parametrize(
    "given",
    [None, "Bearer wrong", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer ", "Bearer é"],
)
async def test_nothing_changes_without_the_token(method: str, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    async with a_server() as url:
        status, said = await ask(method, f"{url}/echo", headers)

    assert status == 401
    assert TOKEN not in said


async def test_bytes_that_are_no_text_in_the_token_are_refused() -> None:
    async with a_server() as url:
        port = int(url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nContent-Length: 0\r\n\r\n")
        status = await asyncio.wait_for(reader.readline(), DEADLINE_MS / 1000)
        writer.close()
        await writer.wait_closed()

    assert b" 401 " in status


async def test_the_client_with_the_wrong_token_is_told() -> None:
    async with a_server() as url, http.Client("wrong") as client:
        with pytest.raises(Unauthorized) as caught:
            await client.post(f"{url}/echo", {}, deadline_ms=DEADLINE_MS)
        assert caught.value.hint


@pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
async def test_an_error_arrives_as_the_error_that_was_raised(code: str) -> None:
    async with a_server() as url, http.Client(TOKEN) as client:
        with pytest.raises(ERRORS_BY_CODE[code], match="it did not work") as caught:
            await client.get(f"{url}/fail?code={code}", deadline_ms=DEADLINE_MS)
        assert type(caught.value) is ERRORS_BY_CODE[code]
        assert caught.value.hint == "do this"


async def test_a_refusal_has_its_status_and_its_record() -> None:
    async with a_server() as url, aiohttp.ClientSession() as session, session.get(f"{url}/fail?code=fenced_out") as it:
        assert it.status == 409
        assert await it.json() == {
            "error": {"code": "fenced_out", "message": "it did not work", "hint": "do this", "retryable": False}
        }


async def test_our_own_fault_is_a_bug_without_details() -> None:
    async with a_server() as url, http.Client(TOKEN) as client:
        with pytest.raises(Bug) as caught:
            await client.get(f"{url}/break", deadline_ms=DEADLINE_MS)
        assert "secret detail" not in str(caught.value)


async def test_a_path_that_does_not_exist_is_bad_input() -> None:
    async with a_server() as url, http.Client(TOKEN) as client:
        with pytest.raises(BadInput, match="Not Found"):
            await client.get(f"{url}/nowhere", deadline_ms=DEADLINE_MS)


@pytest.mark.parametrize("body", [b"{", b"[1]", b"7", b"\xff", b"null", b'{"a": ', b"[" * 100_000])
async def test_a_body_that_is_no_object_is_bad_input(body: bytes) -> None:
    async with a_server() as url:
        status, said = await ask("POST", f"{url}/echo", AUTHORIZED, body)

    assert status == 400
    assert json.loads(said)["error"]["code"] == "bad_input"


async def test_a_body_over_the_limit_is_bad_input() -> None:
    async with a_server() as url:
        status, said = await ask("POST", f"{url}/echo", AUTHORIZED, b" " * (http.BODY_BYTES_MAX + 1))

    assert status == 413
    assert json.loads(said)["error"]["code"] == "bad_input"


async def test_a_server_that_hangs_is_unreachable_at_the_deadline() -> None:
    async with a_server() as url, http.Client(TOKEN) as client:
        begun = clock.now()
        with pytest.raises(Unreachable):
            await client.get(f"{url}/hang", deadline_ms=100)
        assert clock.ms_between(begun, clock.now()) < DEADLINE_MS / 2


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    async with http.Client(TOKEN) as client:
        with pytest.raises(Unreachable, match="GET http://127"):
            await client.get(f"http://127.0.0.1:{free_port()}/health", deadline_ms=DEADLINE_MS)


async def test_an_answer_that_is_not_json_is_unreachable() -> None:
    async with a_server() as url, http.Client(TOKEN) as client:
        with pytest.raises(Unreachable, match="not JSON"):
            await client.get(f"{url}/text", deadline_ms=DEADLINE_MS)


async def test_a_port_in_use_is_bad_input_with_the_mend() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(BadInput, match=f"the test: 127.0.0.1:{port} cannot be listened on") as caught:
            await http.serve(http.application(TOKEN), "127.0.0.1", port, what="the test")
        assert caught.value.hint


async def test_a_host_that_is_not_ours_is_bad_input() -> None:
    with pytest.raises(BadInput, match="cannot be listened on"):
        await http.serve(http.application(TOKEN), "192.0.2.1", free_port(), what="the test")


@pytest.mark.parametrize("record", [None, "text", 7, [], {}, {"code": "unheard_of"}, {"code": ["x"]}])
def test_a_strange_error_is_still_an_error_of_ours(record: object) -> None:
    assert type(from_record(record, where="http://x")) is OscarHaError


def test_what_was_said_is_passed_on_without_the_addresses_on_its_way() -> None:
    refused = Refused("db-montreal is too late", hint="name another")
    passed = from_record(from_record(refused.as_record(), where="http://leader").as_record(), where="http://other")

    assert (passed.message, passed.said) == ("http://other: http://leader: db-montreal is too late", refused.message)
    assert type(passed) is Refused


def test_errors_say_what_the_caller_should_do() -> None:
    assert Unreachable("x").retryable
    assert not FencedOut("x").retryable
    assert BadInput("x").exit_code == 2
    assert str(Refused("no", hint="wait")) == "no — wait"


async def test_hundreds_of_idle_connections_take_no_file_handle_and_no_answer_from_who_works() -> None:
    """Without a bound they took every file handle: a replicator ended, and HAProxy lost the primary's watchdog."""
    async with a_server() as url, http.Client(TOKEN) as client:
        port = int(url.rsplit(":", 1)[1])
        hanging = asyncio.create_task(client.post(f"{url}/hang", {}, deadline_ms=2 * DEADLINE_MS))
        flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS_MAX * 2)]
        dripping = flood[-CONNECTIONS_MAX // 2 :]
        for _, writer in dripping:
            writer.write(b"GET /echo HTTP/1.1\r\nHost: x\r\n")
        answered = await client.get(f"{url}/echo", deadline_ms=DEADLINE_MS)
        ended = [asyncio.create_task(reader.read(1)) for reader, _ in flood]
        done: set[asyncio.Task[bytes]] = set()
        deadline = clock.after(clock.now(), DEADLINE_MS)
        while len(done) < CONNECTIONS_MAX and clock.seconds_left(deadline):
            done, pending = await asyncio.wait(ended, timeout=0.05)

        assert answered == {}
        assert not hanging.done()
        assert len(pending) <= CONNECTIONS_MAX <= len(done)
        hanging.cancel()
        for task in pending:
            task.cancel()
        for _, writer in flood:
            writer.transport.abort()
