"""A running lab as the demo and the benches handle it: its endpoints, its controllers, and waiting for what they say.

Nothing here judges. Every wait has a deadline, and says at the deadline what was still missing.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chaos import lab_file
from chaos.lab import control, cutting
from chaos.lab.cuts import WHOLE, Only
from chaos.lab_file import LabFile
from chaos.traffic import Traffic
from chaos.traffic_script import NON_TRANSACTIONAL
from cluster import clock, records
from cluster.clock import Nanos
from cluster.errors import BadInput, DeadlinePassed, OscarHaError, Unreachable
from cluster.http import Client
from cluster.lineage import History, judge_history
from cluster.position import Position
from cluster.records import EpochRecord, SeedPhase

GET_DEADLINE_MS = 2_000.0
CHANGE_DEADLINE_MS = 60_000.0
POLL_S = 0.05
SLOW_POLL_S = 0.25
REFUSES_ITS_TAIL = ("Cannot truncate the binary log", "Can't init tc log")
STRAY_SETTLED_MS = 5_000.0
"""A node that is fenced with a history of its own, and stands on no rung, for this long stays so until a person decides."""


@dataclass(frozen=True, slots=True)
class Rejoin:
    """What became of an old primary that came back."""

    rejoined: bool
    why: str
    ms: float
    anew: str = ""
    """Why it had to be built anew before, empty when it was not."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to which node, and between which two instants it was done."""

    node: str
    epoch: int
    start: Nanos
    end: Nanos


class RemoteLab:
    """One lab, by its folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def file(self) -> LabFile:
        """Return the endpoints as they are now; pids change with every start."""
        return lab_file.load(self.directory)

    # -- what the controllers say ------------------------------------------------------------------------------------

    def cluster(self) -> dict[str, Any]:
        """Return `GET /v1/cluster`. Raises Unreachable when no controller answers."""
        return dict(self._ask("GET", "/v1/cluster", {}, GET_DEADLINE_MS))

    def clusters(self) -> list[dict[str, Any]]:
        """Return what each controller says. Raises Unreachable when one of them does not answer."""
        lab = self.file

        async def ask() -> list[Any]:
            async with Client(lab.token) as client:
                asked = (client.get(f"{one.url}/v1/cluster", deadline_ms=GET_DEADLINE_MS) for one in lab.controllers)
                return list(await asyncio.gather(*asked))

        return [dict(state) for state in asyncio.run(ask())]

    def history(self, limit: int = 20) -> list[dict[str, Any]]:
        """Return finished plans, newest first. Raises Unreachable when no controller answers."""
        return list(self._ask("GET", f"/v1/history?limit={limit}", {}, GET_DEADLINE_MS))

    def rejoins(self) -> list[dict[str, Any]]:
        """Return what was done by itself to nodes that came back, newest first. Raises Unreachable."""
        return list(self._ask("GET", "/v1/rejoins", {}, GET_DEADLINE_MS))

    def switchover(self, to: str) -> dict[str, Any]:
        """Change the primary as planned work, and return the record of it."""
        return dict(self._ask("POST", "/v1/switchover", {"to": to}, CHANGE_DEADLINE_MS))

    def primary(self) -> tuple[str, int]:
        """Return the name of the primary and its epoch. Raises Unreachable when none has been named."""
        epoch = self.cluster().get("epoch")
        if not epoch:
            raise Unreachable("no primary has been named")
        return str(epoch["primary"]), int(epoch["epoch"])

    # -- faults ------------------------------------------------------------------------------------------------------

    def crash_primary(self, *others: str) -> Fault:
        """Kill -9 the database server of the primary, and in the same moment the processes called `others`."""
        return self._fault(lambda lab, node: control.kill(lab, node, *others), lambda node: node)

    def leader(self) -> str:
        """Return the name of the leading controller. Raises Unreachable when none leads."""
        leader = self.cluster().get("leader")
        if not leader:
            raise Unreachable("no controller leads")
        return str(leader)

    def freeze_primary_site(self) -> Fault:
        """Stop every process of the primary's site where it stands."""
        return self._fault(control.freeze, lambda node: f"site:{self.file.node(node).site}")

    def thaw_site(self, node: str) -> None:
        """Let the frozen site of a node go on."""
        control.thaw(self.directory, f"site:{self.file.node(node).site}")

    def freeze_primary_host(self) -> Fault:
        """Stop the primary's database server and its watchdog where they stand."""
        return self._fault(control.freeze, lambda node: f"host:{node}")

    def thaw_host(self, node: str) -> None:
        """Let a frozen host go on."""
        control.thaw(self.directory, f"host:{node}")

    def cut_off_primary(self) -> Fault:
        """Cut the site of the primary off from everybody, clinics included. Raises BadInput for a lab on loopback."""
        return self._fault(cutting.cut, lambda node: self.file.node(node).site)

    def cut(
        self, what: str, *, one_way: bool = False, only: Only | None = None, keep_lan: bool = False,
        loss_percent: float = WHOLE, slow: bool = False,
    ) -> AbstractContextManager[None]:  # fmt: skip
        """Cut as `oscar-ha lab cut` does, for the time of a `with` block. Raises BadInput for a lab on loopback."""
        return cutting.while_cut(
            self.directory, what, one_way=one_way, only=only, keep_lan=keep_lan, loss_percent=loss_percent, slow=slow
        )

    def heal(self) -> None:
        """Heal all cuts."""
        cutting.heal(self.directory)

    def start(self, node: str) -> None:
        """Start a database server that has ended."""
        control.start(self.directory, node)

    # -- waiting -----------------------------------------------------------------------------------------------------

    def wait_ready(self, *, deadline_ms: float) -> None:
        """Wait until a failover would work. Raises DeadlinePassed with the reasons why not."""

        def missing() -> str:
            state = self.cluster()
            return "" if state.get("ready") else ", ".join(map(str, state.get("reasons", []))) or "not ready"

        wait_until(missing, deadline_ms=deadline_ms, what="a failover would not work", pause_s=SLOW_POLL_S)

    def wait_plan(self, after_epoch: int, *, deadline_ms: float) -> dict[str, Any]:
        """Return the record of the plan that opened the first epoch after `after_epoch`, once it is finished."""
        found: list[dict[str, Any]] = []

        def missing() -> str:
            found[:] = [record for record in self.history() if int(record["epoch"]) > after_epoch]
            return "" if found else f"no plan after epoch {after_epoch} has finished"

        wait_until(missing, deadline_ms=deadline_ms, what="no new primary", pause_s=SLOW_POLL_S)
        return found[-1]

    def wait_rejoin(self, node: str, *, deadline_ms: float) -> Rejoin:
        """Wait until `node` is a standby that replicates; one that cannot become one by waiting is not waited for."""
        started = clock.now()
        deadline, stray_since, why, pause = clock.after(started, deadline_ms), None, "no report", threading.Event()
        while clock.now() < deadline:
            state = self._state()
            report = self._report(state, node)
            role, why = str(report.get("role")), f"{report.get('role')}: {report.get('why', '')}"
            if role == "standby" and report.get("replicating"):
                return Rejoin(True, why, clock.ms_between(started, clock.now()))
            stray = stays_away(report, state.get("epoch"))
            why += f" ({stray})" if stray and "ahead" not in why and stray not in why else ""
            stray_since = (stray_since or clock.now()) if stray else None
            if stray_since is not None and clock.ms_between(stray_since, clock.now()) > STRAY_SETTLED_MS:
                break
            pause.wait(SLOW_POLL_S)
        return Rejoin(False, why, clock.ms_between(started, clock.now()))

    def come_back(self, node: str, *, deadline_ms: float) -> Rejoin:
        """Start a database that was killed and wait until it is a standby, at most `deadline_ms` for each of both ways.

        A kill may leave what no waiting mends (decision 0061): then it is built anew, as an operator would do it.
        """
        started = clock.now()
        try:
            self.start(node)
        except BadInput as error:
            anew = refused_its_own_tail(error.message)
            if not anew:
                raise
        else:
            rejoin = self.wait_rejoin(node, deadline_ms=deadline_ms)
            anew = "" if rejoin.rejoined else torn(self._report(self._state(), node))
            if not anew:
                return rejoin
        self.reinitialize(node, deadline_ms=deadline_ms)
        again = self.wait_rejoin(node, deadline_ms=deadline_ms)
        return replace(again, ms=clock.ms_between(started, clock.now()), anew=anew)

    def reinitialize(self, node: str, *, deadline_ms: float) -> None:
        """Build a node anew, and wait until that is over. Raises OscarHaError when it failed."""
        asked = f"/v1/nodes/{node}/reinitialize"
        begun = self._ask("POST", asked, {"why": "a kill left it so"}, CHANGE_DEADLINE_MS)["seeding"]

        def missing() -> str:
            told = self._report(self.cluster(), node).get("seeding") or {}
            if told.get("id") == begun["id"] and told.get("phase") == SeedPhase.FAILED:
                raise OscarHaError(f"{node} was not seeded: {told.get('why')}")
            return "" if told.get("phase") == SeedPhase.DONE else str(told.get("phase"))

        wait_until(missing, deadline_ms=deadline_ms, what=f"{node} is not built anew", pause_s=SLOW_POLL_S)

    # -- below -------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        try:
            return self.cluster()
        except Unreachable:
            return {}

    def _report(self, state: Mapping[str, Any], node: str) -> dict[str, Any]:
        return next((dict(one) for one in state.get("nodes", []) if one.get("node") == node), {})

    def _fault(self, act: Callable[[Path, str], object], what: Callable[[str], str]) -> Fault:
        node, epoch = self.primary()
        start = clock.now()
        act(self.directory, what(node))
        return Fault(node=node, epoch=epoch, start=start, end=clock.now())

    def _ask(self, method: str, path: str, body: Mapping[str, Any], deadline_ms: float) -> Any:
        """Ask one controller after the other until one answers; a refusal is an answer."""
        lab = self.file

        async def ask() -> Any:
            failures: list[str] = []
            async with Client(lab.token) as client:
                for controller in lab.controllers:
                    try:
                        if method == "GET":
                            return await client.get(f"{controller.url}{path}", deadline_ms=deadline_ms)
                        return await client.post(f"{controller.url}{path}", body, deadline_ms=deadline_ms)
                    except Unreachable as error:
                        failures.append(error.message)
            raise Unreachable(f"no controller answers: {'; '.join(failures)}")

        return asyncio.run(ask())


def stays_away(report: Mapping[str, Any], epoch: Mapping[str, Any] | None) -> str:
    """Return why a node does not become a standby by waiting, as it stands now; nothing when it does, or may."""
    if report.get("role") != "fenced":
        return torn(report)
    by_itself = (report.get("rejoin") or {}).get("rung", "hold") != "hold"
    return "" if by_itself else strays(report.get("position"), epoch)


def strays(position: str | None, epoch: Mapping[str, Any] | None) -> str:
    """Return what a node at `position` has that the cluster has not, in words; nothing when there is no such thing."""
    if position is None or epoch is None:
        return ""
    record = records.decode(EpochRecord, epoch, where="the epoch of GET /v1/cluster")
    if judge_history(Position.parse(position), record.lineage, None) is History.EQUAL_OR_BEHIND:
        return ""
    return f"it has transactions up to {position}, which are not in the history of epoch {record.epoch}"


def torn(report: Mapping[str, Any]) -> str:
    """Return why a standby's copy of a non-transactional table was torn by a kill, empty when it was not.

    MyISAM keeps the row and not the position that says so: the same event comes again and meets its own row. No waiting
    mends that, `oscar-ha reinitialize` does.
    """
    why = str(report.get("why"))
    met_its_row = any(f".{table};" in why for table in NON_TRANSACTIONAL)
    return why if why.startswith("replication: Could not execute") and met_its_row else ""


def refused_its_own_tail(said: str) -> str:
    """Return why a killed primary does not start again, empty when it is for another reason (decision 0010).

    It cannot cut its unacknowledged tail where a row of a table without transactions stands behind it.
    """
    return said if any(words in said for words in REFUSES_ITS_TAIL) else ""


def wait_until(missing: Callable[[], str], *, deadline_ms: float, what: str, pause_s: float = POLL_S) -> None:
    """Poll until `missing` returns nothing; an error that may pass is something missing. Raises DeadlinePassed."""
    deadline, pause = clock.after(clock.now(), deadline_ms), threading.Event()
    while True:
        try:
            reason = missing()
        except OscarHaError as error:
            if not error.retryable:
                raise
            reason = error.message
        if not reason:
            return
        if clock.now() >= deadline:
            raise DeadlinePassed(f"{what}: {reason} (waited {deadline_ms / 1_000:.0f} s)")
        pause.wait(pause_s)


def wait_writing(traffic: Traffic, *, after: Nanos, deadline_ms: float) -> None:
    """Wait until every clinic had a write acknowledged that it sent after the instant `after`. Raises DeadlinePassed."""

    def missing() -> str:
        return ", ".join(writer.clinic.name for writer in traffic.writers if not writer.has_written(after))

    wait_until(missing, deadline_ms=deadline_ms, what="clinics that do not write again")
