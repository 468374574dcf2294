"""Who may be seeded, and from whom: pure, with the reasons that `--dry-run` prints.

A standby gives before the primary does, because a copy makes commits wait for a moment. What a person must not do
unknowingly needs `force`, and the refusal says what would be lost.
"""

from dataclasses import dataclass

from cluster.errors import BadInput, Refused
from cluster.position import Position
from cluster.records import Database, NodeReport, RescueState, Role
from controller.choose import is_ours, numbers_of
from controller.decide import Reach, is_current, judge_primary
from controller.model import NodeFacts, View

DONOR_LAG_MAX_MS = 10_000
"""A standby further behind would only make the new one begin further behind."""
RELEASE_NUMBERS = 2
"""10.11: within one such release line a copy may go either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """One node as a possible donor. `against` is empty when it is able."""

    node: str
    role: str
    against: tuple[str, ...]
    behind: int | None
    """Transactions that the primary has and it has not; None: not known."""

    @property
    def able(self) -> bool:
        return not self.against


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPlan:
    """What a seeding would do."""

    node: str
    donor: str
    epoch: int
    donors: tuple[Donor, ...]
    """Every other node, the best first."""
    warnings: tuple[str, ...]
    """What it costs."""


def plan_seeding(view: View, name: str, *, requested: str | None, force: bool) -> SeedPlan:
    """Return how `name` would be seeded. Raises Refused or BadInput with every reason, before anything is touched."""
    node = view.node(name)
    if node is None:
        raise BadInput(f"there is no node {name!r}", hint=f"one of: {', '.join(one.name for one in view.nodes)}")
    if view.epoch is None:
        raise Refused("no epoch is open yet", hint="wait until the first primary is open")
    _require_seedable(view, node)
    dangers = _dangers(view, node)
    if dangers and not force:
        raise Refused(f"{name}: {'; '.join(dangers)}", hint="--force seeds it all the same")
    donors = rank_donors(view, node)
    chosen = _choose(donors, requested)
    return SeedPlan(
        node=name, donor=chosen.node, epoch=view.epoch.epoch, donors=donors, warnings=(*dangers, *_costs(chosen))
    )


def rank_donors(view: View, node: NodeFacts) -> tuple[Donor, ...]:
    """Return every other node, the best donor first: able, a standby, least behind, in the order of sites."""
    judged = [(_judge(view, node, other), other.site) for other in view.nodes if other.name != node.name]

    def key(pair: tuple[Donor, str]) -> tuple[object, ...]:
        donor, site = pair
        sites = view.policy.sites
        return (
            not donor.able,
            donor.role == Role.PRIMARY,
            donor.behind if donor.behind is not None else 2**64,
            sites.index(site) if site in sites else len(sites),
            donor.node,
        )

    return tuple(donor for donor, _ in sorted(judged, key=key))


def _require_seedable(view: View, node: NodeFacts) -> None:
    """Refuse what no word of an operator makes right."""
    report, epoch = node.report, view.epoch
    if epoch is not None and epoch.primary == node.name:
        raise Refused(f"{node.name} is the primary", hint="switch over first, or wait for the failover")
    if report is None:
        raise Refused(f"the watchdog of {node.name} does not report", hint="start it: it does the work")
    if report.seeding is not None and not report.seeding.phase.over:
        raise Refused(
            f"{node.name} is being seeded already from {report.seeding.donor}: {report.seeding.phase.value}",
            hint="wait for it: oscar-ha status",
        )


def _dangers(view: View, node: NodeFacts) -> list[str]:
    """Return what would be lost, each a sentence."""
    found, report, epoch = [], node.report, view.epoch
    others = [one for one in view.nodes if epoch and one.name not in (node.name, epoch.primary)]
    if is_current(node) and not any(is_current(one) for one in others):
        found.append("it is the only standby that could take over: until it is seeded a failover would not work")
    if node.held is not None:
        found.append(f"it is {node.held} as ordered: what it holds would be replaced by what came later")
    position = report.position if report else None
    # The head moves: a standby's report may be newer than the primary's, and then it only looks ahead.
    if position is not None and not is_ours(view, position) and not is_rescued(report):
        found.append(f"it has transactions that the cluster has not ({position}), and they are not rescued yet")
    return found


def is_rescued(report: NodeReport | None) -> bool:
    """Return whether what only a node has is on disk elsewhere, all of it."""
    if report is None or report.rescue is None or report.position is None:
        return False
    rescue = report.rescue
    return rescue.state is RescueState.COMPLETE and Position.parse(rescue.position) == Position.parse(report.position)


def _choose(donors: tuple[Donor, ...], requested: str | None) -> Donor:
    able = [one for one in donors if one.able and requested in (None, one.node)]
    if able:
        return able[0]
    if requested is not None and requested not in {one.node for one in donors}:
        raise BadInput(f"{requested!r} cannot be the donor", hint=f"one of: {', '.join(one.node for one in donors)}")
    wanted = [one for one in donors if requested in (None, one.node)]
    reasons = "; ".join(f"{one.node}: {', '.join(one.against)}" for one in wanted)
    raise Refused(f"nobody can give its data now ({reasons})", hint="see 'oscar-ha status'")


def _costs(donor: Donor) -> list[str]:
    if donor.role != Role.PRIMARY:
        return []
    return ["the primary gives: commits wait while its tables that are not InnoDB are copied"]


def _judge(view: View, node: NodeFacts, other: NodeFacts) -> Donor:
    report = other.report
    if report is None:
        return Donor(node=other.name, role="silent", against=("its watchdog does not report",), behind=None)
    against = _judge_state(view, other, report) + _judge_version(node, report)
    return Donor(node=other.name, role=report.role.value, against=tuple(against), behind=_behind(view, report.position))


def _judge_state(view: View, other: NodeFacts, report: NodeReport) -> list[str]:
    if report.seeding is not None and not report.seeding.phase.over:
        return ["it is being seeded itself"]
    if report.database is not Database.UP:
        return [f"its database is {report.database.value}"]
    if view.epoch is not None and other.name == view.epoch.primary:
        judged = judge_primary(view, view.epoch)
        return [] if judged.reach is Reach.UP else [f"the primary is {judged.reach.value}: {judged.why}"]
    if other.maintenance is not None:
        return ["it is in maintenance"]
    if other.order is not None and other.order.in_force:
        return [f"it is {other.order.text}"]
    if report.role is not Role.STANDBY:
        return [f"it is {report.role.value}: {report.why}"]
    if not report.replicating:
        return ["it does not replicate"]
    if report.lag_ms is None or report.lag_ms > DONOR_LAG_MAX_MS:
        lag = "an unknown time" if report.lag_ms is None else f"{report.lag_ms / 1000:.0f} s"
        return [f"it is {lag} behind"]
    if report.position is not None and not is_ours(view, report.position):
        return [f"its history is another one ({report.position})"]
    return []


def _judge_version(node: NodeFacts, report: NodeReport) -> list[str]:
    ours = node.report.server_version if node.report else None
    if ours is None or report.server_version is None:
        return []
    if numbers_of(report.server_version)[:RELEASE_NUMBERS] <= numbers_of(ours)[:RELEASE_NUMBERS]:
        return []
    return [f"its server {report.server_version} is newer than {ours}: a copy cannot go back"]


def _behind(view: View, position: str | None) -> int | None:
    primary = view.node(view.epoch.primary) if view.epoch else None
    head = primary.report.position if primary and primary.report else None
    if position is None or head is None:
        return None
    return Position.parse(position).distance(Position.parse(head))
