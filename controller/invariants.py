"""The safety rules, written once: before every step in production, and over every small view in tests.

Numbers are those of DESIGN.md section 6.
"""

from dataclasses import replace

from cluster.errors import Bug
from cluster.position import Position
from cluster.records import Database, DurabilityRecord, EpochRecord, Isolation
from controller import plan as steps
from controller.accepted import excess
from controller.ackers import acts_on, is_known_to_primary, outside
from controller.choose import forbids_grants, incomplete, is_ours, may_acknowledge
from controller.decide import Reach, judge_primary
from controller.isolation import has_let_go
from controller.model import Kind, PlanRecord, Proof, View
from controller.plan import Repair, Step
from controller.proof import lease_end_proves_nothing
from controller.seed import is_rescued


def check_step(view: View, plan: PlanRecord, step: Step) -> None:
    """Raise Bug if doing `step` now could break an invariant. Nothing has been done then."""
    newest = view.epoch.epoch if view.epoch else 0
    match step:
        case steps.Promote() | steps.Open():
            _require(newest < plan.epoch, f"4: epoch {plan.epoch} is not newer than {newest}")
            _check_promotion(view, plan)
        case steps.Admit() | steps.Repoint() | steps.Verify():
            opened = view.epoch is not None and (view.epoch.epoch, view.epoch.primary) == (plan.epoch, step.node)
            _require(opened, f"1: {step.node} is not the primary of the newest epoch {newest}")
        case _:
            pass
    if isinstance(step, steps.Open):
        _check_open(view, plan, step, newest)


def _check_promotion(view: View, plan: PlanRecord) -> None:
    if plan.kind is Kind.BOOTSTRAP:
        _require(view.epoch is None, "1: a first epoch while there is one")
        return
    _require(plan.proof is not None, "3: a promotion without a proof of fence")
    if plan.rolled_back is not None:
        _require(plan.candidate == plan.old, "3: a rollback opens another node than the old primary")
        return
    by_lease = plan.proof in (Proof.LEASE_ENDED.value, Proof.OPERATOR.value)
    held = by_lease and not forbids_grants(view, plan)
    _require(not held, "3: an ended lease is no proof while the replicators may grant that the primary goes on")
    if plan.proof == Proof.LEASE_ENDED.value:
        unproven = lease_end_proves_nothing(view)
        _require(unproven is None, f"3: {unproven}")
    told = plan.proof != Proof.OPERATOR.value or plan.primary_is_off
    _require(told, "3: nobody has said that the old primary is off")
    _require(plan.target is not None, "2: a promotion without knowing what was acknowledged")
    missing = incomplete(view, plan)
    _require(missing is None or _is_accepted(plan), f"2: {missing}")
    may = may_acknowledge(view, plan) if missing is not None else None
    _require(may is None, f"3: {may}")
    _require(is_ours(view, plan.target or ""), f"2: {plan.target} is not in the cluster's history")


def _is_accepted(plan: PlanRecord) -> bool:
    """Return whether an operator has accepted at least what is lost by going on to the plan's target."""
    accepts, loss = plan.accepts, plan.loss
    if accepts is None or loss is None or plan.automatic or loss.target != plan.target:
        return False
    return excess(loss, accepts) is None


def _check_open(view: View, plan: PlanRecord, step: steps.Open, newest: int) -> None:
    _require(step.previous == newest, f"4: the plan follows epoch {step.previous}, the newest is {newest}")
    _require(step.record.epoch == newest + 1, "4: epochs grow by one")
    node = view.node(step.record.primary)
    _require(node is not None and node.site not in step.durability.ackers, "2: the primary's own site acknowledges")
    _require(bool(step.durability.ackers), "2: nobody is named to acknowledge")
    _require(not step.durability.former, "2: a new epoch begins with acknowledgements of another")
    _require(is_ours(view, step.record.position), f"2: {step.record.position} is not in the cluster's history")
    if plan.target is not None and plan.rolled_back is None:
        reached = Position.parse(step.record.position).covers(Position.parse(plan.target))
        _require(reached, f"2: {step.record.primary} has not applied {plan.target}")


def check_repair(view: View, repair: Repair) -> None:
    """Raise Bug if `repair` could make a failover forget what somebody acknowledged, or throw data away."""
    match repair:
        case steps.Follow() | steps.NoteRejoin():
            return
        case steps.Reseed():
            _check_reseed(view, repair)
        case steps.Restart():
            _check_restart(view, repair)
        case steps.NameAckers() | steps.SettleAckers() | steps.ReturnToSync():
            _check_ackers(view, repair)
        case steps.NameIsolation():
            _check_isolation(view, repair)


def _check_reseed(view: View, repair: steps.Reseed) -> None:
    """Data is replaced only while a primary is well, never the primary's, and never before what only it holds is rescued."""
    epoch, node = view.epoch, view.node(repair.node)
    if epoch is None or node is None or node.report is None:
        raise Bug("invariant 7: the data of a node that nobody knows is replaced", hint="nothing was done; report this")
    _require(repair.epoch == epoch.epoch, f"4: a seeding of epoch {repair.epoch}, the newest is {epoch.epoch}")
    _require(repair.node not in (epoch.primary, repair.donor), f"7: the data of {repair.node} is the cluster's")
    _require(
        judge_primary(view, epoch).reach is Reach.UP, "7: a copy is replaced while the primary is not certainly well"
    )
    position = node.report.position
    _require(position is not None, "7: data is replaced of which nobody knows what it has")
    _require(is_ours(view, position or "") or is_rescued(node.report), f"7: {position} is not rescued")


def _check_restart(view: View, repair: steps.Restart) -> None:
    epoch, node = view.epoch, view.node(repair.node)
    if epoch is None or node is None or node.report is None:
        raise Bug("invariant 8: a server is started that nobody knows", hint="nothing was done; report this")
    _require(repair.epoch == epoch.epoch, f"4: a start of epoch {repair.epoch}, the newest is {epoch.epoch}")
    _require(repair.node != epoch.primary, "8: the primary's server is for a failover to judge")
    crashed = node.report.crashed and node.report.database is Database.DOWN
    _require(crashed, "8: a server is started that somebody means to be down")


def _check_isolation(view: View, repair: steps.NameIsolation) -> None:
    """Only what is said of isolation changes, and a primary that has not let go of holding is never taken for one that has."""
    old, new = view.epoch, repair.record
    if old is None:
        raise Bug("invariant 4: there is no epoch whose record could change", hint="nothing was done; report this")
    same = replace(old, on_isolation=new.on_isolation, revision=old.revision + 1) == new
    _require(same, "4: the record is not the one after the known one")
    node = view.node(old.primary)
    released = old.on_isolation is Isolation.HOLD_ENDS and has_let_go(node.report if node is not None else None, old)
    _require(new.may_hold or released, "3: a primary may still hold, and the end of its lease would be a proof")


def _check_ackers(view: View, repair: steps.NameAckers | steps.SettleAckers | steps.ReturnToSync) -> None:
    old, new = view.durability, repair.durability
    _require(view.epoch is not None and view.epoch.epoch == new.epoch, "4: ackers of an epoch that is not the newest")
    if old is None or view.epoch is None:
        raise Bug("invariant 2: there is no record of who acknowledges", hint="nothing was done; report this")
    _require((new.epoch, new.serial) == (old.epoch, old.serial + 1), "4: the record is not the one after the known one")
    _require(bool(new.ackers) or new.is_degraded, "2: nobody is named to acknowledge")
    _require(set(new.ackers) <= set(outside(view, view.epoch.primary)), "2: the primary's own site acknowledges")
    if isinstance(repair, steps.ReturnToSync):
        _check_return(view, view.epoch, old, new)
        return
    _require(
        new.is_degraded >= old.is_degraded, "2: nothing is degraded any more, and nobody has shown that commits wait"
    )
    degrades = new.is_degraded and not old.is_degraded
    held = view.degraded_since is None and view.alone is not None
    allowed = view.policy.degrade_after_ms is not None or held
    _require(not degrades or allowed, "2: degraded though the settings say strict")
    dropped = [group for group in old.groups if not any(set(one) <= set(group) for one in new.groups)]
    if isinstance(repair, steps.NameAckers):
        _require(not dropped, f"2: the word of {dropped} would not be asked for any more")
        _require(new.floor == old.floor, "2: a floor that nobody has proven")
        return
    _require((new.acks, new.ackers) == (old.acks, old.ackers), "2: settling names somebody")
    _require(
        all(acts_on(view, old, site) for group in dropped for site in group), f"2: {dropped} may still acknowledge"
    )
    _require(is_known_to_primary(view, view.epoch, old), f"2: {dropped} could acknowledge again by a grant")


def _check_return(view: View, epoch: EpochRecord, old: DurabilityRecord, new: DurabilityRecord) -> None:
    """In sync again only once the primary waits by the very record, and nobody's older word is forgotten by that."""
    node = view.node(epoch.primary)
    waits_by = node.report.waits_by if node is not None and node.report is not None else None
    _require(old.is_degraded and not new.is_degraded, "2: what was not degraded returns to sync")
    _require((new.acks, new.ackers, new.former) == (old.acks, old.ackers, old.former), "2: the return names somebody")
    _require(waits_by is not None and waits_by >= old.serial, "2: sync is recorded before commits wait")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise Bug(f"invariant {rule}", hint="nothing was done; report this with the plan and the view")
