"""How far this site's archive once was, kept where its own disk cannot take it back: in ZooKeeper.

An archive that was restored from an old copy, or that lost its end, looks like one that never had more. A seal answered
from it would let a failover go on without acknowledged writes. So an archive that is behind what it once was does not
tell its position until it has caught up again, from the primary or from another replicator.
"""

from cluster import clock
from cluster.clock import Nanos
from cluster.coordination import Coordination
from cluster.errors import Conflict, Unreachable
from cluster.position import Position
from cluster.records import WitnessRecord

NOTE_EVERY_MS = 1_000
"""What was acknowledged in the last moment before a copy took the archive's place is not noted."""


class Witness:
    """Notes and remembers. All methods are coroutines of one loop."""

    def __init__(self, coordination: Coordination, site: str) -> None:
        self._coordination, self._site = coordination, site
        self._path = f"witness/{site}"
        self._known: tuple[WitnessRecord, int] | None = None
        self._read = False
        self._noted: Nanos | None = None

    async def recall(self) -> None:
        """Read what was noted by an earlier run. Raises Unreachable."""
        if not self._read:
            self._known = await self._coordination.read(WitnessRecord, self._path)
            self._read = True

    def once(self, epoch: int) -> Position:
        """Return the position that the archive of an epoch certainly once had."""
        if self._known is None or self._known[0].epoch != epoch:
            return Position()
        return Position.parse(self._known[0].durable)

    async def note(self, epoch: int, durable: Position) -> None:
        """Note how far an epoch is durable here, now and then. What fails is noted the next time."""
        now = clock.now()
        if self._noted is not None and clock.ms_between(self._noted, now) < NOTE_EVERY_MS:
            return
        try:
            await self.recall()
            if not self._goes_on(epoch, durable):
                return
            record = WitnessRecord(site=self._site, epoch=epoch, durable=str(durable))
            if self._known is None:
                await self._coordination.create(self._path, record)
                self._known = record, 0
            else:
                await self._coordination.replace(self._path, record, self._known[1])
                self._known = record, self._known[1] + 1
            self._noted = now
        except (Conflict, Unreachable):
            self._read = False  # it may have been written after all

    def _goes_on(self, epoch: int, durable: Position) -> bool:
        """Return whether it is news: within an epoch nothing is taken back."""
        if self._known is not None and epoch < self._known[0].epoch:
            return False
        once = self.once(epoch)
        return self._known is None or epoch > self._known[0].epoch or (durable != once and durable.covers(once))
