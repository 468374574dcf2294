"""What a storm does, blow by blow. Pure: the same seed and the same number of kills give the same storm.

A blow is one kill -9. Blows come in bursts, because what breaks a cluster is the second blow before it has recovered from
the first: while a seal is asked for, while a file rotates, while a process that was started a moment ago resumes.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

KILLS_MAX = 2_000
PAUSE_MS_MAX = 1_200.0
"""Between the cluster's being whole and the next burst: any moment of the second in which heartbeats and renewals happen."""
DOWN_MS_MAX = 1_500.0
SEAL_MS_MAX = 1_800.0
"""A failover has sealed, levelled and promoted within this after the death of the primary."""
ROTATION_MS_MAX = 25.0
RESUME_MS_MAX = 1_500.0
SOON_MS_MAX = 60.0
SOON_SHARE = 0.3
"""So many of the delays are very short ones."""


class Victim(StrEnum):
    """What is killed, by the part it plays at that moment."""

    PRIMARY = "primary"
    STANDBY = "standby"
    ACKER = "acker"
    """The replicator whose acknowledgement commits wait for."""
    REPLICATOR = "replicator"
    """One of the other replicators."""


class Moment(StrEnum):
    """What a burst hits."""

    ALONE = "alone"
    TOGETHER = "two at once"
    SEAL = "in a failover"
    ROTATION = "in a rotation"
    RESUME = "in a resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """One kill -9."""

    victim: Victim
    wait_ms: float = 0.0
    """After the blow before; with `again` after the start of what that blow had killed."""
    down_ms: float = 0.0
    """So long it stays dead before it is started again."""
    which: int = 0
    """Chooses among several of a kind."""
    again: bool = False
    """The very process that the blow before killed, once more."""
    rotates: bool = False
    """The primary is told to begin a new binlog file immediately before `wait_ms`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """Blows without a recovery between them."""

    moment: Moment
    pause_ms: float
    blows: tuple[Blow, ...]


def plan(kills: int, seed: int) -> tuple[Burst, ...]:
    """Return bursts of exactly `kills` blows."""
    dice = _Dice(seed)
    bursts: list[Burst] = []
    left = kills
    while left > 0:
        burst = dice.burst(left)
        bursts.append(burst)
        left -= len(burst.blows)
    return tuple(bursts)


class _Dice:
    """All chance of a storm."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"storm/{seed}")
        self._turn: list[Moment] = []

    def burst(self, left: int) -> Burst:
        makers: dict[Moment, Callable[[], tuple[Blow, ...]]] = {
            Moment.ALONE: self._alone, Moment.TOGETHER: self._together, Moment.SEAL: self._in_a_failover,
            Moment.ROTATION: self._in_a_rotation, Moment.RESUME: self._in_a_resume,
        }  # fmt: skip
        moment = self._next_moment() if left > 1 else Moment.ALONE
        return Burst(moment=moment, pause_ms=self._random.uniform(0.0, PAUSE_MS_MAX), blows=makers[moment]()[:left])

    def _next_moment(self) -> Moment:
        """Every kind of moment comes once in five bursts, in any order: a short storm has them all."""
        if not self._turn:
            self._turn = self._random.sample(list(Moment), k=len(Moment))
        return self._turn.pop()

    def _alone(self) -> tuple[Blow, ...]:
        return (self._blow(self._random.choice(list(Victim))),)

    def _together(self) -> tuple[Blow, ...]:
        first, second = self._random.sample(list(Victim), k=2)
        return self._blow(first), self._blow(second)

    def _in_a_failover(self) -> tuple[Blow, ...]:
        second = self._random.choice((Victim.ACKER, Victim.REPLICATOR, Victim.STANDBY))
        return self._blow(Victim.PRIMARY), self._blow(second, wait_ms=self._soon(SEAL_MS_MAX))

    def _in_a_rotation(self) -> tuple[Blow, ...]:
        victim = self._random.choice((Victim.PRIMARY, Victim.ACKER, Victim.REPLICATOR))
        return (self._blow(victim, wait_ms=self._random.uniform(0.0, ROTATION_MS_MAX), rotates=True),)

    def _in_a_resume(self) -> tuple[Blow, ...]:
        victim = self._random.choice((Victim.ACKER, Victim.REPLICATOR, Victim.STANDBY))
        return self._blow(victim), self._blow(victim, wait_ms=self._soon(RESUME_MS_MAX), again=True)

    def _blow(self, victim: Victim, *, wait_ms: float = 0.0, again: bool = False, rotates: bool = False) -> Blow:
        return Blow(
            victim=victim, wait_ms=wait_ms, down_ms=self._soon(DOWN_MS_MAX), which=self._random.randrange(2), again=again,
            rotates=rotates,
        )  # fmt: skip

    def _soon(self, ms_max: float) -> float:
        most = SOON_MS_MAX if self._random.random() < SOON_SHARE else ms_max
        return self._random.uniform(0.0, most)
