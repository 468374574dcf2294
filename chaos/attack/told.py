"""What an attack has done and found, as its JSON file has it. Pure: what was seen in, the document out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from chaos.attack.catalogue import Kind
from chaos.attack.observe import Sample
from chaos.attack.plan import Round
from chaos.bench_figures import figure, percentile
from chaos.history import Finding, Verdict, Write, all_kept

NANOS_PER_SECOND = 1_000_000_000
TWO = "two at once"
PERCENTS = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultTold:
    """One fault as it was done; seconds since the attack began."""

    kind: Kind
    hit: str
    began_s: float
    healed_s: float | None
    did_not: str = ""
    told: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTold:
    """One round, and what became of it."""

    number: int
    plan: Round
    faults: tuple[FaultTold, ...]
    outage_ms: float | None
    """The longest pause of a clinic; None: not known."""
    writing_ms: float | None
    whole_ms: float | None
    epoch: int | None

    @property
    def happened(self) -> tuple[Kind, ...]:
        return tuple(fault.kind for fault in self.faults if not fault.did_not)

    @property
    def group(self) -> str:
        """Return under which name its outage is counted."""
        return TWO if len(self.happened) > 1 else self.happened[0].value if self.happened else "nothing"


@dataclass(slots=True, kw_only=True)
class Told:
    """Everything, while it is being found out."""

    seed: int
    minutes: float
    network: str = ""
    rounds: list[RoundTold] = field(default_factory=list)
    verdicts: dict[str, Finding] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    """What happened besides: a process that ended by itself and was started, as a supervisor does."""
    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    timeline: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.problems and bool(self.rounds) and all_kept(self.verdicts.values())

    def document(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "seed": self.seed,
            "minutes": self.minutes,
            "network": self.network,
            "passed": self.passed,
            "verdicts": {claim: finding.verdict.value for claim, finding in self.verdicts.items()},
            "why": {claim: finding.why for claim, finding in self.verdicts.items()},
            "matrix": matrix(self.rounds, self.verdicts.values()),
            "faults": sum(len(one.happened) for one in self.rounds),
            "counts": self.counts,
            "events": self.events,
            "problems": self.problems,
            "seconds": round(self.seconds, 1),
            "rounds": [asdict(one) for one in self.rounds],
            "timeline": self.timeline,
        }


def matrix(rounds: Sequence[RoundTold], findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return a line for each kind that happened, and one for all rounds of two: how often, and the outage it cost.

    A verdict is over the whole attack: a line that says *kept* says that nothing was broken while it was made.
    """
    verdicts = [finding.verdict for finding in findings]
    kept = Verdict.BROKEN if Verdict.BROKEN in verdicts else Verdict.KEPT if verdicts else Verdict.PROVED_NOTHING
    times = Counter(kind.value for one in rounds for kind in one.happened)
    times[TWO] = sum(1 for one in rounds if one.group == TWO)
    return [
        {
            "kind": kind,
            "times": times[kind],
            "alone": sum(1 for one in rounds if one.group == kind),
            "outage_ms": percents([one.outage_ms for one in rounds if one.group == kind]),
            "whole_ms": percents([one.whole_ms for one in rounds if one.group == kind]),
            "verdict": kept.value,
        }
        for kind in (*(kind.value for kind in Kind), TWO)
        if times[kind]
    ]


def percents(values: Iterable[float | None]) -> dict[str, Any]:
    """Return the percentiles of what is known."""
    known = [one for one in values if one is not None]
    return {**figure(known, "ms"), **{f"p{one}": round(percentile(known, one), 1) for one in PERCENTS if known}}


def per_second(history: Iterable[Write], start: int, end: int) -> list[int]:
    """Return how many writes were acknowledged in each second."""
    seconds = max(0, (end - start) // NANOS_PER_SECOND) + 1
    found = Counter(
        (write.acknowledged_at - start) // NANOS_PER_SECOND for write in history if write.acknowledged_at is not None
    )
    return [found[second] for second in range(seconds)]


def lag_per_second(samples: Iterable[Sample], start: int) -> dict[str, list[tuple[int, float]]]:
    """Return node -> (second, the greatest lag in it, in milliseconds)."""
    found: dict[str, dict[int, float]] = {}
    for one in samples:
        second = (one.at - start) // NANOS_PER_SECOND
        for node, lag in one.lag_ms.items():
            of_node = found.setdefault(node, {})
            of_node[second] = max(lag, of_node.get(second, 0.0))
    return {node: sorted(lags.items()) for node, lags in sorted(found.items())}


def role_spans(samples: Sequence[Sample], start: int) -> dict[str, list[tuple[float, float, str]]]:
    """Return node -> (from, to, role) in seconds; where no controller answered there is nothing."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    before: Mapping[str, str] = {}
    for one, after in zip(samples, (*samples[1:], *samples[-1:]), strict=True):
        begin, end = ((look.at - start) / NANOS_PER_SECOND for look in (one, after))
        for node, role in one.roles.items():
            spans = found.setdefault(node, [])
            since = spans.pop()[0] if before.get(node) == role else round(begin, 2)
            spans.append((since, round(end, 2), role))
        before = one.roles
    return dict(sorted(found.items()))


def kinds_of(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return every kind that happened."""
    return tuple(line["kind"] for line in document["matrix"] if line["kind"] != TWO)
