"""What the demo and the benches learn from controllers: real HTTP, scripted answers."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from chaos import lab_remote
from chaos.lab_remote import RemoteLab, refused_its_own_tail, torn, wait_until
from cluster.errors import BadInput, DeadlinePassed, Refused, Unreachable
from cluster.http import application, serve
from tests.servers.process import free_port

TOKEN = "secret"
SOON_MS = 300.0
LATE_MS = 5_000.0
START_SECONDS_MAX = 10.0
EPOCH = {
    "epoch": 2, "primary": "db-toronto", "server_id": 2, "file": "binlog.000002", "position": "0-1-50",
    "since": "2026-01-01T00:00:00.000Z", "proof": "lease ended",
    "lineage": [
        {"epoch": 1, "server_id": 1, "file": "binlog.000001", "position": ""},
        {"epoch": 2, "server_id": 2, "file": "binlog.000002", "position": "0-1-50"},
    ],
}  # fmt: skip


class Controller:
    """A controller that says what a test wants it to say; its answers come one after the other, the last for ever."""

    def __init__(self) -> None:
        self.port = free_port()
        self.states: list[dict[str, Any]] = [{}]
        self.history: list[dict[str, Any]] = []
        self.bodies: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(START_SECONDS_MAX)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(START_SECONDS_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS_MAX)
        self._loop.close()

    async def _serve(self) -> None:
        app = application(TOKEN)
        app.add_routes(
            [
                web.get("/v1/cluster", self._cluster),
                web.get("/v1/history", self._history),
                web.post("/v1/switchover", self._switchover),
            ]
        )
        self._runner = await serve(app, "127.0.0.1", self.port, what="controller of a test")

    async def _cluster(self, _: web.Request) -> web.Response:
        return web.json_response(self.states.pop(0) if len(self.states) > 1 else self.states[0])

    async def _history(self, _: web.Request) -> web.Response:
        return web.json_response(self.history)

    async def _switchover(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        if self.bodies[-1]["to"] == "nobody":
            raise Refused("there is no such standby")
        return web.json_response({"to": self.bodies[-1]["to"], "outcome": "done"})


@pytest.fixture
def controller() -> Iterator[Controller]:
    one = Controller()
    one.start()
    yield one
    one.stop()


@pytest.fixture
def lab(controller: Controller, tmp_path: Path) -> RemoteLab:
    """A lab whose first controller is dead: the second must do."""
    urls = [f"http://127.0.0.1:{port}" for port in (free_port(), controller.port)]
    told = {"clinics": [], "nodes": [], "controllers": [{"url": url} for url in urls], "token": TOKEN, "processes": {}}
    (tmp_path / "lab.json").write_text(json.dumps(told))
    return RemoteLab(tmp_path)


def node(
    role: str, *, replicating: bool = False, why: str = "", position: str | None = None, rung: str = "hold"
) -> dict[str, Any]:
    told = {"node": "db-clinic", "role": role, "replicating": replicating, "why": why, "position": position}
    return {"nodes": [{**told, "rejoin": {"rung": rung, "why": ""}}], "epoch": EPOCH}


def test_the_next_controller_is_asked_when_one_is_dead(lab: RemoteLab, controller: Controller) -> None:
    controller.states = [{"epoch": {"primary": "db-toronto", "epoch": 7}}]

    assert lab.primary() == ("db-toronto", 7)


def test_no_primary_is_not_a_primary(lab: RemoteLab) -> None:
    with pytest.raises(Unreachable, match="no primary"):
        lab.primary()


def test_no_controller_at_all_is_told_with_all_that_were_asked(lab: RemoteLab, controller: Controller) -> None:
    text = (lab.directory / "lab.json").read_text().replace(str(controller.port), str(free_port()))
    (lab.directory / "lab.json").write_text(text)

    with pytest.raises(Unreachable, match=r"no controller answers: GET .*; GET "):
        lab.cluster()


def test_a_lab_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="lab up"):
        RemoteLab(tmp_path).cluster()


def test_a_refusal_is_an_answer_and_not_asked_elsewhere(lab: RemoteLab, controller: Controller) -> None:
    with pytest.raises(Refused, match="no such standby"):
        lab.switchover("nobody")
    assert lab.switchover("db-clinic") == {"to": "db-clinic", "outcome": "done"}
    assert controller.bodies == [{"to": "nobody"}, {"to": "db-clinic"}]


def test_waiting_for_readiness_tells_the_reasons(lab: RemoteLab, controller: Controller) -> None:
    controller.states = [{"ready": False, "reasons": ["no standby is current"]}, {"ready": True}]
    lab.wait_ready(deadline_ms=LATE_MS)
    controller.states = [{"ready": False, "reasons": ["no standby is current"]}]

    with pytest.raises(DeadlinePassed, match="no standby is current"):
        lab.wait_ready(deadline_ms=SOON_MS)


def test_the_plan_of_a_fault_is_the_first_after_its_epoch(lab: RemoteLab, controller: Controller) -> None:
    controller.history = [{"epoch": 5}, {"epoch": 4, "to": "db-toronto"}, {"epoch": 3}]

    assert lab.wait_plan(3, deadline_ms=LATE_MS) == {"epoch": 4, "to": "db-toronto"}
    with pytest.raises(DeadlinePassed, match="no plan after epoch 5"):
        lab.wait_plan(5, deadline_ms=SOON_MS)


def test_a_standby_that_replicates_has_rejoined(lab: RemoteLab, controller: Controller) -> None:
    controller.states = [{}, node("fenced"), node("joining"), node("standby"), node("standby", replicating=True)]

    assert lab.wait_rejoin("db-clinic", deadline_ms=LATE_MS).rejoined


def test_a_node_that_stays_ahead_is_not_waited_for(
    lab: RemoteLab, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_remote, "STRAY_SETTLED_MS", 100.0)
    controller.states = [node("fenced", why="the lease ended", position="0-1-53")]
    rejoin = lab.wait_rejoin("db-clinic", deadline_ms=60_000)

    assert not rejoin.rejoined
    assert rejoin.why.startswith("fenced: the lease ended (it has transactions up to 0-1-53")
    assert rejoin.ms < LATE_MS


def test_a_node_that_is_ahead_and_built_anew_by_itself_is_waited_for(
    lab: RemoteLab, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_remote, "STRAY_SETTLED_MS", 0.0)
    ahead = node("fenced", position="0-1-53", rung="rescue")
    controller.states = [ahead, ahead, ahead, node("joining"), node("standby", replicating=True)]

    assert lab.wait_rejoin("db-clinic", deadline_ms=LATE_MS).rejoined


@pytest.mark.parametrize("position", [None, "", "0-1-50", "0-1-49", "0-2-53"])
def test_a_fenced_node_within_the_history_is_waited_for(position: str | None) -> None:
    assert lab_remote.strays(position, EPOCH) == ""


def test_a_node_that_does_not_come_back_is_waited_for_until_the_deadline(
    lab: RemoteLab, controller: Controller
) -> None:
    controller.states = [node("failed", why="binlog_format is MIXED")]
    rejoin = lab.wait_rejoin("db-clinic", deadline_ms=SOON_MS)

    assert (rejoin.rejoined, rejoin.why) == (False, "failed: binlog_format is MIXED")


def test_a_wait_ends_at_once_with_an_error_that_will_not_pass() -> None:
    def broken() -> str:
        raise BadInput("that is wrong")

    with pytest.raises(BadInput):
        wait_until(broken, deadline_ms=LATE_MS, what="nothing")


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (
            "[ERROR] Cannot truncate the binary log to file:./binlog.000004 pos:272412 as unsafe statement is found",
            True,
        ),
        ("[ERROR] Can't init tc log", True),
        ("unknown variable 'nonsense=1'", False),
    ],
)
def test_only_a_server_that_cannot_cut_its_own_tail_is_built_anew(said: str, refused: bool) -> None:
    """Anything else that keeps a server from starting is a fault, and stays one."""
    assert bool(refused_its_own_tail(said)) is refused


@pytest.mark.parametrize(
    ("why", "is_torn"),
    [
        ("replication: Could not execute Write_rows_v1 event on table oscar.labInbox; Duplicate entry '7' …", True),
        ("replication: Could not execute Write_rows_v1 event on table oscar.demographic; Duplicate entry '7' …", False),
        ("follows the replicator of its site", False),
        (None, False),
    ],
)
def test_only_a_row_met_again_in_a_table_without_transactions_is_torn(why: str | None, is_torn: bool) -> None:
    assert bool(torn({"why": why})) is is_torn
