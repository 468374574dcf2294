"""Nothing is thrown away (invariant 7): what only this node has is put into a folder before anything may replace it.

Level-triggered: whenever the node is fenced with transactions that the cluster has not, and no complete rescue of exactly
that is on disk, one is made; a watchdog that died in it leaves a draft, which is begun anew. It reads, and writes nowhere
but into its folder.
"""

import asyncio
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from cluster import clock, records
from cluster.dialect import Session
from cluster.errors import BadInput, OscarHaError, Refused
from cluster.position import Position
from cluster.records import LineageEntry, RescueReport, RescueState
from cluster.settings import Node, Settings
from healthcheck import rescue_folder
from healthcheck.rescue_folder import DRAFT, MARKS, Counts, Draft, Rescue
from healthcheck.rescue_reading import Reader, columns_of, source_of
from healthcheck.rescue_text import readme_of
from healthcheck.worker import Worker

LOOK_SECONDS = 0.5
RETRY_MS, RETRY_INCOMPLETE_MS = 30_000.0, 600_000.0
"""After a failure; and when not everything could be read, which somebody may have mended."""
SESSION_DEADLINE_MS = 30_000.0
MARKS_MAX = 10_000
"""So many marks are taken at once."""
MARK_FILE_BYTES_MAX = 2**30
ID = re.compile(r"[0-9]{1,18}-[a-z0-9][a-z0-9-]{0,62}-[0-9]{8}T[0-9]{6}Z")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Foreign:
    """What this node has and the cluster has not."""

    epoch: int
    position: str
    lineage: tuple[LineageEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What became of a line of a rescue."""

    number: int
    outcome: str
    """`applied`, `present`, `overwritten`: it is in the cluster. `conflict`: it was left alone."""
    at: str


class Host(Protocol):
    """What the watchdog lends."""

    node: Node
    settings: Settings

    def foreign(self) -> Foreign | None:
        """Return what is to be rescued now, None when nothing is, or it is not known."""
        ...

    def connect(self, deadline_ms: float) -> Session: ...
    def tell_changes(self) -> None: ...


class Rescuing:
    """The rescues of one node."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._worker = Worker("rescue")
        self._marks = Worker("marks")
        self._retry_from: clock.Nanos | None = None
        self.place = host.node.rescues / host.settings.name
        self.report: RescueReport | None = None

    def whole(self, position: str | None) -> bool:
        """Return whether everything that only this node has, while it has `position`, is safely on disk."""
        report = self.report
        return report is not None and report.state is RescueState.COMPLETE and same_position(report.position, position)

    def survives(self, position: str | None) -> bool:
        """Return whether the rescue of `position` is whole, there at this moment, and outside of what is to be replaced.

        Reads the disk. One whose folder was taken away is forgotten, and so made again.
        """
        report, data = self.report, self._host.node.data_directory
        if report is None or not self.whole(position):
            return False
        folder = self.place / report.id
        if not (folder / rescue_folder.RECORD).is_file():
            log.warning("rescue.gone", id=report.id)
            self.report, self._retry_from = None, None
            return False
        if data is not None and folder.resolve().is_relative_to(data.resolve()):
            log.error("rescue.would_be_replaced", path=str(folder.resolve()), hint="mend rescue_directory")
            return False
        return True

    async def run(self) -> None:
        """Rescue whenever there is something to rescue. Never ends by itself."""
        try:
            self.report = await self._worker.run(self._recalled)
        except OSError as error:
            log.warning("rescue.not_recalled", error=str(error))
        while True:
            try:
                await self.look()
            except OscarHaError as error:
                log.warning("rescue.failed", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Make the rescue that is due, if one is."""
        foreign, report = self._host.foreign(), self.report
        if foreign is None or self.whole(foreign.position):
            return
        same = report is not None and same_position(report.position, foreign.position)
        pause_ms = RETRY_INCOMPLETE_MS if report is not None and report.state is RescueState.INCOMPLETE else RETRY_MS
        waits = self._retry_from is not None and clock.ms_between(self._retry_from, clock.now()) < pause_ms
        if same and waits:
            return
        if not same or report is None or report.state is RescueState.FAILED:
            self._tell(RescueReport(id="", state=RescueState.RUNNING, position=foreign.position))
        self._retry_from = clock.now()
        try:
            rescue = await self._worker.run(self._rescue, foreign)
        except Exception as error:  # noqa: BLE001 - whatever a damaged file does to its reader, the watchdog must live
            why = str(error) if isinstance(error, OscarHaError) else getattr(error, "strerror", None) or repr(error)
            log.error("rescue.failed", error=why)
            self._tell(RescueReport(id="", state=RescueState.FAILED, position=foreign.position, why=why))
            return
        log.info("rescue.made", id=rescue.id, state=rescue.state.value, transactions=rescue.counts.transactions,
                 rows=rescue.counts.rows, why=rescue.why)  # fmt: skip
        self._tell(self._reported(rescue))

    def _tell(self, report: RescueReport) -> None:
        self.report = report
        self._host.tell_changes()

    # -- in the worker's thread -----------------------------------------------------------------------------------------

    def _rescue(self, foreign: Foreign) -> Rescue:
        """Read, write, prove. An earlier one that lacks something and is not better than this one is replaced."""
        self._remove_drafts()
        draft = Draft(self.place, self._name(foreign.epoch))
        try:
            with self._host.connect(SESSION_DEADLINE_MS) as session:
                source = source_of(session, foreign.lineage)
                reader = Reader(source, draft, columns_of(session))
                why = reader.read()
            if source.position != Position.parse(foreign.position):
                raise Refused(
                    f"the server has {source.position} by now, not {foreign.position}", hint="it is tried again"
                )
            wanted = Rescue(
                id="", cluster=self._host.settings.name, node=self._host.node.name, server_id=self._host.node.server_id,
                epoch=foreign.epoch, made=clock.utc_now(),
                state=RescueState.INCOMPLETE if why else RescueState.COMPLETE, why=why, position=foreign.position,
                parts=str(reader.parts or ""), first="", last="", counts=Counts(), files={},
            )  # fmt: skip
            made = draft.finish(wanted, readme_of(draft.described(wanted)))
        except BaseException:
            draft.discard()
            raise
        self._replace_incomplete(made)
        return made

    def _name(self, epoch: int) -> str:
        return f"{epoch}-{self._host.node.name}-{clock.utc_stamp()}"

    def _remove_drafts(self) -> None:
        if self.place.is_dir():
            for draft in self.place.glob(f"{DRAFT}*"):
                if self._is_ours(draft.name.removeprefix(DRAFT)):
                    shutil.rmtree(draft, ignore_errors=True)

    def _replace_incomplete(self, made: Rescue) -> None:
        """A later reading of the same that found no less makes an incomplete one superfluous."""
        for one in self._ours():
            superfluous = (
                one.state is RescueState.INCOMPLETE and same_position(one.position, made.position) and one.id != made.id
            )
            if (
                superfluous
                and one.counts.transactions <= made.counts.transactions
                and not self._marks_file(one.id).exists()
            ):
                shutil.rmtree(self.place / one.id, ignore_errors=True)

    def _ours(self) -> list[Rescue]:
        found = rescue_folder.rescues_in(self.place) if self.place.is_dir() else []
        return [one for one in found if one.node == self._host.node.name]

    def _is_ours(self, name: str) -> bool:
        return ID.fullmatch(name) is not None and name.split("-", 1)[1].rsplit("-", 1)[0] == self._host.node.name

    def _recalled(self) -> RescueReport | None:
        ours = self._ours()
        return self._reported(ours[-1]) if ours else None

    def _reported(self, rescue: Rescue) -> RescueReport:
        done = {one.number for one in self.marks(rescue.id) if one.outcome != "conflict"}
        return RescueReport(
            id=rescue.id, state=rescue.state, position=rescue.position, transactions=rescue.counts.transactions,
            rows=rescue.counts.rows, replayed=len(done), path=str(self.place / rescue.id), why=rescue.why,
        )  # fmt: skip

    # -- what others ask ------------------------------------------------------------------------------------------------

    def listed(self) -> list[Rescue]:
        """Return the rescues of this node, oldest first. Reads the disk."""
        return self._ours()

    def folder(self, rescue: str) -> Path:
        """Return the folder of a rescue of this node. Raises BadInput when there is none."""
        if not self._is_ours(rescue) or not (self.place / rescue).is_dir():
            raise BadInput(
                f"there is no rescue {rescue[:100]!r} on {self._host.node.name}", hint="see: oscar-ha rescue ls"
            )
        return self.place / rescue

    def marks(self, rescue: str) -> list[Mark]:
        """Return what became of the lines, oldest first. A torn last line is none."""
        return marks_in(self._marks_file(rescue))

    async def mark(self, rescue: str, marks: Sequence[Mark]) -> int:
        """Note durably what became of lines; return how many rows are in the cluster by now. Raises BadInput."""
        if len(marks) > MARKS_MAX:
            raise BadInput(f"{len(marks)} marks at once", hint=f"at most {MARKS_MAX}")
        folder = self.folder(rescue)
        await self._marks.run(append_marks, folder, marks)
        report = self.report
        if report is not None and report.id == rescue:
            told = await self._marks.run(lambda: self._reported(rescue_folder.recall(folder)))
            self._tell(replace(told))
            return told.replayed
        return 0

    def _marks_file(self, rescue: str) -> Path:
        return self.place / rescue / MARKS


def same_position(one: str, other: str | None) -> bool:
    """Return whether two positions are one, however a server has written them."""
    return other is not None and Position.parse(one) == Position.parse(other)


def marks_in(path: Path) -> list[Mark]:
    """Return the marks of a file, oldest first, none when there is none. A torn line is none."""
    found = list[Mark]()
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with suppress(BadInput):
            found += [records.decode(Mark, line, where=MARKS)] if line else []
    return found


def append_marks(folder: Path, marks: Iterable[Mark]) -> None:
    """Add marks to those of a rescue, durably. Raises Refused."""
    data = b"".join(json.dumps(asdict(one)).encode() + b"\n" for one in marks)
    try:
        rescue_folder.append(folder / MARKS, b"\n" + data, bytes_max=MARK_FILE_BYTES_MAX)
    except OSError as error:
        raise Refused(f"{folder / MARKS}: {error.strerror}", hint="free disk space") from error
