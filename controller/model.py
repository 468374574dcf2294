"""What a controller knows: frozen facts, and unknown is one of them.

A `View` is one look at the cluster; a `PlanRecord` is a running plan, kept in ZooKeeper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cluster.orders import Order
from cluster.position import Position
from cluster.records import Acks, DurabilityRecord, EpochRecord, NodeReport, ReplicatorReport, Suspension
from controller.accepted import Accepted, Loss
from controller.seen import Sighting

MS_PER_MINUTE = 60_000
MS_PER_HOUR = 60 * MS_PER_MINUTE


class Kind(StrEnum):
    """Why a primary is named."""

    BOOTSTRAP = "bootstrap"
    FAILOVER = "failover"
    SWITCHOVER = "switchover"


class Stage(StrEnum):
    """The cursor of a plan: the step that comes next. The value is how the timeline tells it once done."""

    CHOOSE = "chosen"
    FENCE = "fenced"
    SEAL = "sealed"
    LEVEL = "levelled"
    APPLY = "applied"
    PROMOTE = "promoted"
    OPEN = "epoch opened"
    ADMIT = "writable"
    REPOINT = "repointed"
    VERIFY = "verified"
    RECORD = "recorded"


ORDER: Mapping[Kind, tuple[Stage, ...]] = {
    Kind.BOOTSTRAP: (Stage.PROMOTE, Stage.OPEN, Stage.ADMIT, Stage.REPOINT, Stage.VERIFY, Stage.RECORD),
    Kind.FAILOVER: (
        Stage.SEAL,
        Stage.FENCE,
        Stage.CHOOSE,
        Stage.LEVEL,
        Stage.APPLY,
        Stage.PROMOTE,
        Stage.OPEN,
        Stage.ADMIT,
        Stage.REPOINT,
        Stage.VERIFY,
        Stage.RECORD,
    ),
    Kind.SWITCHOVER: (
        Stage.CHOOSE,
        Stage.FENCE,
        Stage.SEAL,
        Stage.LEVEL,
        Stage.APPLY,
        Stage.PROMOTE,
        Stage.OPEN,
        Stage.ADMIT,
        Stage.REPOINT,
        Stage.VERIFY,
        Stage.RECORD,
    ),
}
POINT_OF_NO_RETURN = Stage.OPEN
"""Once the new epoch is open a plan only goes forward."""


class Proof(StrEnum):
    """Why the old primary certainly accepts nothing any more. Kept in the history and as a metric label."""

    NONE_NEEDED = "there was no primary"
    WATCHDOG = "watchdog confirmed the fence"
    PROCESS_DEAD = "watchdog confirmed: the server process is dead and will be born fenced"
    LEASE_ENDED = "lease ended"
    OPERATOR = "an operator said that the old primary is off"


@dataclass(frozen=True, slots=True, kw_only=True)
class RejoinEvent:
    """One thing that was done by itself to a node that came back. It is written before it is done."""

    id: str
    """A seeding's is the same in the node's own report."""
    rung: str
    why: str
    epoch: int
    began: str
    attempt: int = 0
    """Which attempt at replacing its data this is, each soon after the one before; 0: no such attempt."""
    donor: str | None = None
    ended: str | None = None
    outcome: str | None = None
    """None: it is not over, or nobody has seen its end yet."""


REJOIN_EVENTS_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RejoinRecord:
    """What was done by itself to a node, oldest first. It outlives the controllers that did it."""

    events: tuple[RejoinEvent, ...] = ()

    @property
    def last_attempt(self) -> RejoinEvent | None:
        """Return the newest attempt at replacing the node's data."""
        return next((one for one in reversed(self.events) if one.attempt), None)

    def forgiven(self) -> "RejoinRecord":
        """Return the record with every attempt told, and none that has ended counted: an operator has looked."""
        return RejoinRecord(events=tuple(replace(one, attempt=0) if one.outcome else one for one in self.events))

    def with_event(self, event: RejoinEvent) -> "RejoinRecord":
        """Return the record with an event more, or with another state of one that it has."""
        kept = tuple(event if one.id == event.id else one for one in self.events)
        fresh = () if event.id in {one.id for one in self.events} else (event,)
        return RejoinRecord(events=(*kept, *fresh)[-REJOIN_EVENTS_MAX:])


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node, as settings and ZooKeeper know it. `report` None: its watchdog is not connected to ZooKeeper."""

    name: str
    site: str
    server_id: int
    report: NodeReport | None = None
    absent_ms: float | None = None
    """For how long we have seen no report, on our own clock; None while there is one."""
    order: Order | None = None
    """What an operator has ordered of it; None: never anything."""
    maintenance: Suspension | None = None
    """Somebody works on it: it is no candidate, nothing is done to it by itself, and its absence is no news."""
    rejoin: RejoinRecord | None = None
    """What was done to it by itself; None: never anything."""
    rejoin_age_ms: float = 0.0
    """For how long we have seen that record as it is."""
    deaf_ms: float | None = None
    """For how long its watchdog has not answered the leader directly, though it reports. None: it answers, or was not asked."""
    down_ms: float = 0.0
    """For how long its watchdog has been saying that the server is down, on our own clock."""
    missing_to_receive: tuple[str, ...] = ()
    """Settings without which it cannot be seeded."""
    missing_to_give: tuple[str, ...] = ()
    """Settings without which no other node can be seeded from it."""
    no_promotion: bool = False
    """The settings say that it becomes the primary only where an operator names it."""
    stale_ms: float | None = None
    """For how long its record has not been renewed; None while there is none."""
    last: Sighting | None = None
    """What it said last; None: nothing is known."""

    @property
    def version(self) -> str | None:
        """Return its server's version, as it says or once said."""
        if self.report is not None and self.report.server_version is not None:
            return self.report.server_version
        return self.last.version if self.last is not None else None

    @property
    def delay_seconds(self) -> int:
        """Return the delay that is ordered, 0 for none."""
        return 0 if self.order is None else self.order.delay_seconds

    @property
    def held(self) -> str | None:
        """Return where it is ordered to stand still, as a person says it; None when it is not."""
        return None if self.order is None or self.order.hold is None else self.order.hold.text


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicatorFacts:
    """One replicator, as settings and ZooKeeper know it."""

    site: str
    host: str
    port: int
    report: ReplicatorReport | None = None
    absent_ms: float | None = None
    stale_ms: float | None = None
    """For how long its record has not been renewed; None while there is none, or we have only just begun to look."""
    idle_ms: float | None = None
    """For how long it has been saying that it acknowledges nothing; None while it does, or says nothing."""
    refused_ms: float | None = None
    """For how long its host has been refusing our connections: nobody listens there. None: not known, or it answers."""
    silent_ms: float | None = None
    """For how long it has not answered us directly. None: it answers, or was not asked."""
    present_ms: float | None = None
    """For how long its record has been there all the time; None while there is none."""
    last: Sighting | None = None
    """What its archive had when it was last heard of; None: nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What of the settings decides."""

    sites: tuple[str, ...]
    initial_primary: str
    lease_margin_ms: float
    watchdog_grace_ms: float
    acks: Acks = Acks.ONE
    acks_all_degrade_after_ms: float | None = None
    """How long commits wait for a lost site under ALL before it is left out; None: for ever."""
    degrade_after_ms: float | None = None
    """How long commits wait while no site can acknowledge, before that is recorded and they wait no more; None: for ever."""
    holds: bool = False
    """Whether a primary that is cut off goes on serving whom it can reach."""
    loses_while_degraded: bool = False
    """Whether a failover while durability is degraded may by itself lose what the old primary alone has."""
    automatic_max: int = 5
    """So many automatic failovers within `automatic_within_ms`; the next one waits for an operator."""
    automatic_within_ms: float = 3_600_000.0
    rejoin_automatic: bool = True
    """Whether a node that cannot follow is built anew by itself, once what only it has is rescued."""
    rejoin_attempts_max: int = 3
    """So many attempts on a node, each within `rejoin_within_ms` of the one before; the next one waits for a person."""
    rejoin_within_ms: float = 24.0 * MS_PER_HOUR
    restart_after_ms: float = 5.0 * MS_PER_MINUTE
    """A crashed server that nobody has started for so long is started by its watchdog."""
    health_failover: bool = True
    """Whether a primary that answers, but has failed all the same, is replaced by itself."""
    session_ttl_ms: float = 6_000.0
    acker_deadline_ms: float = 2_000.0
    """An acker that has been silent, or has acknowledged nothing, for this long has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One look at the cluster."""

    policy: Policy
    nodes: tuple[NodeFacts, ...]
    replicators: tuple[ReplicatorFacts, ...]
    clinics: tuple[str, ...] = ()
    epoch: EpochRecord | None = None
    durability: DurabilityRecord | None = None
    durability_age_ms: float = 0.0
    """For how long we have seen the durability record as it is."""
    paused: bool = False
    pause: Suspension | None = None
    """Who paused it, why, and until when."""
    sighted: bool = True
    """ZooKeeper is seen. If it is not, all of this is of before."""
    automatic: int = 0
    """Automatic failovers within `policy.automatic_within_ms`, as this controller saw them and nobody has forgiven."""

    @property
    def degraded_since(self) -> str | None:
        """Return since when commits may have been answered OK that are on no other disk; None: none was."""
        record = self.durability
        return record.since if record is not None and record.is_degraded else None

    @property
    def alone(self) -> str | None:
        """Return why commits may have been answered OK that are on no other disk; None: none was.

        A primary that holds while it is cut off writes alone before anybody can record it (decision 0090): so until its own
        watchdog vouches that it did not, it may have.
        """
        if self.degraded_since is not None:
            return f"durability is degraded since {self.degraded_since}"
        if self.epoch is None:
            return None
        node = self.node(self.epoch.primary)
        report = node.report if node is not None else None
        if report is not None and report.alone is not None and report.alone.epoch == self.epoch.epoch:
            return f"{self.epoch.primary}: {report.alone.text}"
        if not self.epoch.may_hold or (report is not None and report.vouches == self.epoch.epoch):
            return None
        if report is None:
            return f"{self.epoch.primary} holds while it is cut off, and nobody has heard of it since"
        return f"the watchdog of {self.epoch.primary} does not know whether it has held alone"

    @property
    def flapping(self) -> str | None:
        """Return why the next failover waits for an operator; None when it does not."""
        if self.automatic < self.policy.automatic_max:
            return None
        minutes = self.policy.automatic_within_ms / MS_PER_MINUTE
        return (f"{self.automatic} automatic failovers within {minutes:.0f} minutes: the next one waits for an operator"
                " (find out why, then 'oscar-ha resume', or 'oscar-ha failover' if the primary is down)")  # fmt: skip

    def node(self, name: str) -> NodeFacts | None:
        """Return the node called `name`."""
        return next((node for node in self.nodes if node.name == name), None)

    def replicator(self, site: str) -> ReplicatorFacts | None:
        """Return the replicator of `site`."""
        return next((one for one in self.replicators if one.site == site), None)

    def lease_ended(self, absent_ms: float | None) -> bool:
        """Return whether somebody absent for `absent_ms` certainly holds no lease any more."""
        return absent_ms is not None and absent_ms >= self.policy.lease_margin_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """What is known of one replicator once it may acknowledge nothing more. `durable` None: not known."""

    site: str
    durable: str | None
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """Where the candidate's binlog stands when it stopped replicating: the first byte of the new epoch."""

    server_id: int
    file: str
    position: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """One line of the timeline. `ms` counts from the moment the fault or the request was seen."""

    name: str
    ms: float
    took_ms: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRun:
    """One run of a command of the clinic's own. `outcome` None: it has not ended, as far as anybody has written."""

    event: str
    name: str
    outcome: str | None = None
    took_ms: float | None = None
    output: str = ""
    """The last of what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """A running plan and its cursor. Everything a controller without memory needs to go on with it."""

    id: str
    kind: Kind
    epoch: int
    """The epoch it will open."""
    stage: Stage
    why: str
    started: str
    old: str | None = None
    old_generation: str | None = None
    """The old primary's server process when the plan began: another one may lack what it had acknowledged."""
    requested: str | None = None
    """The node that an operator asked for."""
    candidate: str | None = None
    excluded: tuple[str, ...] = ()
    """Candidates that failed during this plan."""
    accepts: Accepted | None = None
    """The loss that an operator accepts where completeness cannot be proven; None, as always by itself: none."""
    primary_is_off: bool = False
    """An operator has said that nothing of the old primary runs any more."""
    automatic: bool = False
    """Nobody asked for it."""
    proof: str | None = None
    vouched: bool | None = None
    """Whether the watchdog that fenced the old primary knows that it answered no commit alone without a record of that; None:
    none has. Its last report may be of before it was cut off."""
    fenced_position: str | None = None
    """Where a politely fenced primary stopped: what the sealed archives must reach."""
    old_position: str | None = None
    """Where the old primary stood when its watchdog closed it: nothing was acknowledged beyond."""
    sealed: tuple[Sealed, ...] = ()
    target: str | None = None
    """What the candidate must have applied before it is promoted."""
    promoted: Promoted | None = None
    loss: Loss | None = None
    """What naming the candidate un-says, as judged when it was chosen."""
    ranking: tuple[str, ...] = ()
    """Every node with the reasons for and against it, when the candidate was chosen."""
    rolled_back: str | None = None
    """Why a switchover gave up; the old primary is opened again in the plan's epoch."""
    waiting: str | None = None
    """Why the plan does not go on at this moment."""
    stalled_ms: float | None = None
    """Since when the seals have not brought what is needed, in the time of the timeline; None: they have not failed yet."""
    trouble: str | None = None
    """The last step that failed, and how: it stays when the plan goes on."""
    steps: tuple[StepDone, ...] = field(default=())
    hooks: tuple[HookRun, ...] = ()
    """Those that have ended, and at the plan's end those that are to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRecord:
    """A finished plan, for people and for the audit."""

    id: str
    kind: Kind
    why: str
    epoch: int
    old: str | None
    new: str | None
    proof: str | None
    outcome: str
    started: str
    ended: str
    total_ms: float
    steps: tuple[StepDone, ...]
    trouble: str | None = None
    """The last step that failed on the way, and how."""
    automatic: bool = False
    """Nobody asked for it."""
    hooks: tuple[HookRun, ...] = ()
    requested: str | None = None
    """The node that an operator asked for."""
    accepts: Accepted | None = None
    """The loss that an operator accepted."""
    loss: Loss | None = None
    """What was lost, as judged when the candidate was chosen; None: it was not judged."""
    ranking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AutomaticRecord:
    """How many failovers happened by themselves, and up to which of them an operator has forgiven. Both only grow."""

    failovers: int = 0
    forgiven: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DegradedInterval:
    """A time in which commits were answered OK though they were on no other disk. Written with the record that began it."""

    epoch: int
    primary: str
    began: str
    why: str
    ended: str | None = None
    """None: it lasts."""
    outcome: str | None = None
    """How it ended."""


DEGRADED_INTERVALS_MAX = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class DegradedRecord:
    """The newest such times, oldest first."""

    intervals: tuple[DegradedInterval, ...] = ()

    def begun(self, interval: DegradedInterval) -> "DegradedRecord":
        """Return the record with one more."""
        return DegradedRecord(intervals=(*self.intervals, interval)[-DEGRADED_INTERVALS_MAX:])

    def over(self, ended: str, outcome: str) -> "DegradedRecord":
        """Return the record in which none lasts."""
        return DegradedRecord(
            intervals=tuple(one if one.ended else replace(one, ended=ended, outcome=outcome) for one in self.intervals)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRecord:
    """The last comparison of all tables of all nodes, and when it ended."""

    result: str
    ended: str
    epoch: int
    primary: str
    nodes: tuple[str, ...]
    tables: int
    rows: int
    different: tuple[str, ...]
    """Names of tables, the first of them when there are many."""
    undecided: int
    seconds: float


def newest(positions: tuple[Position, ...]) -> Position | None:
    """Return the position that covers all others; None when there is none that does."""
    for one in positions:
        if all(one.covers(other) for other in positions):
            return one
    return None
