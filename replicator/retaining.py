"""Retention while the replicator runs: who needs what is read from ZooKeeper and the holds, then what may go goes.

Nothing goes on hearsay of an earlier round: every round reads everybody's position anew, and without ZooKeeper there is
no round. What a limit wants and a floor keeps is said loudly, and left in `retention.json` for commands that look.
"""

import asyncio
import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from cluster import clock, records
from cluster.coordination import Coordination
from cluster.errors import BadInput
from cluster.records import LineageEntry, NodeReport, ReplicatorReport
from cluster.settings import Settings
from replicator import holds, pruning, retention
from replicator.archive import Archive
from replicator.metrics import Metrics
from replicator.pruning import Sizes
from replicator.retention import Floor, Judgement

RETAIN_EVERY_MS = 10_000
STATE_FILE = "retention.json"
STATE_BYTES_MAX = 2**20
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorState:
    """A floor, for people and scripts."""

    who: str
    position: str | None
    why: str
    keeps: bool
    """A limit says that something may go, and this keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionState:
    """What `retention.json` holds: the latest round."""

    at: str
    held_back: str
    over_bytes: int
    floors: tuple[FloorState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one look showed."""

    judgement: Judgement
    floors: tuple[Floor, ...]
    expired: tuple[str, ...]
    """Holds whose time is over."""
    unreadable: int
    sizes: Sizes

    def floor_states(self) -> tuple[FloorState, ...]:
        """Return the floors with what each does."""
        return tuple(
            FloorState(who=one.who, position=None if one.position is None else str(one.position), why=one.why,
                       keeps=one.who in self.judgement.held_by)
            for one in self.floors
        )  # fmt: skip

    def as_record(self) -> dict[str, object]:
        """Return it for `archive prune`."""
        return {
            "files": [
                {"file": one.file.identity, "stored_bytes": one.file.stored_bytes, "newest": one.file.newest,
                 "fate": one.fate.value, "why": one.why}
                for one in self.judgement.verdicts
            ],
            "floors": [asdict(one) for one in self.floor_states()],
            "expired_holds": list(self.expired),
            "over_bytes": self.judgement.over_bytes,
            "held_back": self.judgement.held_back,
        }  # fmt: skip


class Retainer:
    """Keeps one archive within its limits. Its methods are coroutines of one loop; the work is done in threads."""

    def __init__(
        self, settings: Settings, site: str, archive: Archive, coordination: Coordination, metrics: Metrics,
        lineage: Callable[[], tuple[LineageEntry, ...]], lost: Callable[[], Collection[int]],
    ) -> None:  # fmt: skip
        self._settings, self._site, self._archive = settings, site, archive
        self._coordination, self._metrics, self._lineage, self._lost = coordination, metrics, lineage, lost
        self._one_at_a_time = asyncio.Lock()
        self._said: tuple[str, ...] | None = None
        self.held_back = ""
        """What a limit wants and does not get, as of the latest round."""

    async def prune(self) -> Round:
        """Remove what may go; return what was seen before. Raises Unreachable without ZooKeeper, OSError."""
        async with self._one_at_a_time:
            floors = await self._members()
            found = await asyncio.to_thread(self._round, floors, remove=True)
            self._say(found)
            return found

    async def look(self) -> Round:
        """Return what would go. Raises Unreachable without ZooKeeper."""
        async with self._one_at_a_time:
            floors = await self._members()
            return await asyncio.to_thread(self._round, floors, remove=False)

    async def _members(self) -> tuple[Floor, ...]:
        """Return the floors of all nodes and of all other replicators."""
        nodes, others = dict[str, NodeReport | None](), dict[str, ReplicatorReport | None]()
        for node in self._settings.nodes:
            read = await self._coordination.read(NodeReport, f"nodes/{node.name}")
            nodes[node.name] = None if read is None else read[0]
        for one in self._settings.replicators:
            if one.site != self._site:
                told = await self._coordination.read(ReplicatorReport, f"replicators/{one.site}")
                others[one.site] = None if told is None else told[0]
        return retention.floors_of(nodes, others, self._lineage())

    def _round(self, members: tuple[Floor, ...], *, remove: bool) -> Round:
        """Runs in a thread. Judges, and removes, under the lock of the holds."""
        lost = set(self._lost())
        with holds.locked(self._archive.directory):
            files = pruning.held_files(self._archive, lost)
            now = retention.now_of(clock.utc_seconds(), [one.newest for one in files])
            held = holds.read(self._archive.directory)
            floors = (*members, *held.floors(now))
            judgement = retention.what_may_go(files, floors, self._settings.archive, now)
            if remove:
                gone = list(pruning.removing(self._archive, judgement.going, lost))
                if gone:
                    log.info("archive.removed", files=len(judgement.going), oldest=judgement.going[0].identity,
                             newest=judgement.going[-1].identity, why=judgement.verdicts[0].why)  # fmt: skip
        expired = tuple(one.name for one in held.standing if one.expired(now))
        return Round(judgement=judgement, floors=floors, expired=expired, unreadable=len(held.unreadable),
                     sizes=pruning.sizes(self._archive))  # fmt: skip

    def _say(self, found: Round) -> None:
        judgement, state = found.judgement, found.floor_states()
        self.held_back = judgement.held_back
        said = (*judgement.held_by, "", *found.expired)
        if said != self._said and judgement.held_by:
            log.warning("archive.held_back", why=judgement.held_back, by=judgement.held_by,
                        over_bytes=judgement.over_bytes)  # fmt: skip
        if said != self._said and found.expired:
            log.warning("archive.hold_expired", holds=found.expired)
        self._said = said
        at = self._archive.position
        for_metrics = [(one.who, one.position, one.who in judgement.held_by) for one in found.floors]
        self._metrics.retention(found.sizes, for_metrics, at, over_bytes=judgement.over_bytes,
                                expired=len(found.expired))  # fmt: skip
        oldest = next((one for own in self._archive.epochs.values() for one in list(own.segments)), None)
        self._metrics.oldest(None if oldest is None else oldest.start, 0 if oldest is None else oldest.first_time)
        save(self._archive.directory, RetentionState(at=clock.utc_now(), held_back=judgement.held_back,
                                                     over_bytes=judgement.over_bytes, floors=state))  # fmt: skip


def save(directory: Path, state: RetentionState) -> None:
    """Write `retention.json`. It is not synced: the next round writes it anew, and a torn one is as good as none."""
    draft = directory / f".{STATE_FILE}.new"
    draft.write_text(json.dumps(asdict(state), indent=1) + "\n")
    draft.replace(directory / STATE_FILE)


def load(directory: Path) -> RetentionState | None:
    """Return what the latest round showed, None when that is not known."""
    path = directory / STATE_FILE
    try:
        if path.stat().st_size > STATE_BYTES_MAX:
            return None
        return records.decode(RetentionState, path.read_bytes(), where=str(path))
    except (OSError, BadInput):
        return None
