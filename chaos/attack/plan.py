"""What an attack does, round by round. Pure: the same seed, minutes, kinds and lab give the same rounds.

A round is one fault, or two at once. After it everything is healed and the cluster has to become whole by itself, for
what is promised is promised for one thing at a time; the second fault comes while the first still works or is being mended.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from chaos.attack.catalogue import CATALOGUE, LASTS_MS_MAX, TWO_MAX, Fault, Kind, Lab, Part, Where
from cluster.errors import BadInput

MINUTES_MAX = 50.0
"""Of one seed: clinics at work keep everything that they were told, and their traffic ends after an hour."""
ROUND_MS_MIN = 3_000.0
"""No round is over sooner: so many are planned that an attack ends by its time and not for want of faults."""
PAUSE_MS_MAX = 1_200.0
"""Between the cluster's being whole and the next round: any moment of the second in which heartbeats and renewals happen."""
SECOND_MS_MAX = 4_000.0
"""The second fault comes within this after the first: a failover has sealed, levelled and promoted by then, or is at it."""
SOON_MS_MAX = 60.0
SOON_SHARE = 0.3
"""So many of the delays are very short ones."""
TWO_SHARE = 0.4
SHORT_SHARE = 0.4
"""So many faults are over within the first quarter of what they may last: what is forgiven, and what only just is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Faults without a recovery between them."""

    pause_ms: float
    """Before it begins."""
    faults: tuple[Fault, ...]

    @property
    def kinds(self) -> str:
        """Return it as the report groups it."""
        return " + ".join(fault.kind.value for fault in self.faults)

    @property
    def ends_ms(self) -> float:
        return max(fault.ends_ms for fault in self.faults)


class Turn(StrEnum):
    """What is done at a moment of a round."""

    BEGIN = "begin"
    AGAIN = "again"
    END = "end"


@dataclass(frozen=True, slots=True, order=True)
class Moment:
    """One thing to do, so many milliseconds after the beginning of its round."""

    at_ms: float
    fault: int
    """The number of the fault in its round, from 0."""
    turn: Turn


def timeline(one: Round) -> tuple[Moment, ...]:
    """Return everything that is to be done in a round, in order."""
    found = []
    for number, fault in enumerate(one.faults):
        found.append(Moment(fault.begins_ms, number, Turn.BEGIN))
        every_ms = fault.lasts_ms / fault.times
        found += [Moment(fault.begins_ms + every_ms * time, number, Turn.AGAIN) for time in range(1, fault.times)]
        found.append(Moment(fault.ends_ms, number, Turn.END))
    return tuple(sorted(found, key=lambda moment: (moment.at_ms, list(Turn).index(moment.turn))))


def plan(seed: int, minutes: float, kinds: Sequence[Kind], lab: Lab) -> tuple[Round, ...]:
    """Return more rounds than there is time for. Raises BadInput for what no plan can be made of."""
    if not 0 < minutes <= MINUTES_MAX:
        raise BadInput(f"--minutes {minutes:g}", hint=f"choose more than 0 and at most {MINUTES_MAX:g}")
    able = [kind for kind in Kind if kind in kinds and lab.able(kind)]
    if not able:
        raise BadInput(
            "none of these faults is possible in this lab", hint=f"on loopback: {', '.join(possible(Lab()))}"
        )
    dice = _Dice(seed, able, lab)
    return tuple(dice.round() for _ in range(max(1, int(minutes * 60_000 / ROUND_MS_MIN))))


def possible(lab: Lab) -> tuple[Kind, ...]:
    """Return every kind that this lab allows."""
    return tuple(kind for kind in Kind if lab.able(kind))


def problems(one: Round) -> tuple[str, ...]:
    """Return how a round breaks the bounds of all rounds; nothing when it is well. Also for rounds read from a file."""
    faults = one.faults
    rules = (
        (1 <= len(faults) <= TWO_MAX, f"{len(faults)} faults at once"),
        (0 <= one.pause_ms <= PAUSE_MS_MAX, f"a pause of {one.pause_ms:g} ms"),
        (all(0 <= fault.begins_ms <= SECOND_MS_MAX for fault in faults), "a fault begins too late"),
        (all(0 <= fault.lasts_ms <= LASTS_MS_MAX for fault in faults), "a fault lasts too long"),
        (all(1 <= fault.times <= CATALOGUE[fault.kind].times[1] for fault in faults), "too many times"),
        (all(fault.which >= 0 for fault in faults), "a negative choice"),
    )
    return tuple(sentence for holds, sentence in rules if not holds)


class _Dice:
    """All chance of an attack."""

    def __init__(self, seed: int, kinds: Sequence[Kind], lab: Lab) -> None:
        self._random = random.Random(f"chaos/{seed}")
        self._kinds, self._lab = tuple(kinds), lab
        self._turn: list[Kind] = []

    def round(self) -> Round:
        pause_ms = self._random.uniform(0.0, PAUSE_MS_MAX)
        first = self._fault(self._next_kind(), 0.0)
        if self._random.random() >= TWO_SHARE or len(self._kinds) == 1:
            return Round(pause_ms=pause_ms, faults=(first,))
        other = self._random.choice([kind for kind in self._kinds if kind is not first.kind])
        return Round(pause_ms=pause_ms, faults=(first, self._fault(other, self._soon(SECOND_MS_MAX))))

    def _next_kind(self) -> Kind:
        """Every kind comes once in as many rounds as there are kinds, in any order: a short attack has many kinds."""
        if not self._turn:
            self._turn = self._random.sample(self._kinds, k=len(self._kinds))
        return self._turn.pop()

    def _fault(self, kind: Kind, begins_ms: float) -> Fault:
        entry = CATALOGUE[kind]
        part = self._random.choice(entry.parts)
        where = Where.CLINIC if part is Part.HAPROXY else self._random.choice(entry.wheres)
        return Fault(
            kind=kind, part=part, where=where, begins_ms=begins_ms, lasts_ms=self._lasts(*entry.lasts_ms),
            which=self._random.randrange(max(2, self._lab.clinics)), times=self._random.randint(*entry.times),
        )  # fmt: skip

    def _lasts(self, least: float, most: float) -> float:
        top = least + (most - least) / 4 if self._random.random() < SHORT_SHARE else most
        return self._random.uniform(least, top)

    def _soon(self, ms_max: float) -> float:
        most = SOON_MS_MAX if self._random.random() < SOON_SHARE else ms_max
        return self._random.uniform(0.0, most)
