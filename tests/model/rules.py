"""The rules that the model obeys: production code, a field for everything that a mutation may take away."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import FencedOut, Refused
from cluster.lineage import judge_history
from cluster.records import Alone
from controller.advance import failed, may_stay_unwritten, next_step, progress
from controller.decide import decide
from controller.invariants import check_repair, check_step
from controller.model import View
from healthcheck import granted, judge
from replicator import granting, permission
from tests.model.state import Node, Replicator, Request, World

Rule = Callable[..., Any]


def committed(world: World, request: Request) -> bool:
    """Return whether ZooKeeper takes a leader's transaction: its election node is there, and no version has changed.

    The same operations as `World._transact` and `World._open` of controller/world.py send.
    """
    return request.leader == world.leader and request.record == world.record


def refuse_older(node: Node, epoch: int) -> None:
    """Refuse an order of an older epoch, or of one that no controller can have named, as the watchdog's `fence` does."""
    if epoch < node.epoch:
        raise FencedOut(f"epoch {epoch} is older than {node.epoch}")
    if epoch > node.epoch + 1:
        raise Refused(f"epoch {epoch} is not known here")


def seal(one: Replicator, epoch: int) -> int:
    """Return the sealed epoch after a seal."""
    return max(one.sealed, epoch)


def unchanged(view: View) -> View:
    """The controller sees what is."""
    return view


@dataclass(frozen=True, slots=True)
class Rules:
    """Callables of production where it has them; what is IO there is written here once, beside its name."""

    decide: Rule = decide
    next_step: Rule = next_step
    progress: Rule = progress
    failed: Rule = failed
    may_stay_unwritten: Rule = may_stay_unwritten
    check_step: Rule = check_step
    check_repair: Rule = check_repair
    see: Callable[[View], View] = unchanged
    margin_ms: float = 1_000.0
    why_not_primary: Rule = judge.why_not_primary
    why_not_open: Rule = judge.why_not_open
    must_fence: Rule = judge.must_fence
    judge_history: Rule = judge_history
    may_acknowledge: Rule = permission.may_acknowledge
    seal: Rule = seal
    committed: Rule = committed
    refuse_older: Rule = refuse_older
    generation: Callable[[Node], str] = field(default=lambda node: str(node.generation))
    """What a watchdog reports as the run of its server process."""
    lease_valid: Callable[[Node | Replicator], bool] = field(default=lambda holder: holder.lease.valid)
    why_not_grant: Rule = granting.why_not_grant
    granted_until: Rule = granted.granted_until
    commits_wait: Rule = judge.commits_wait
    may_hold: Rule = judge.may_hold
    is_covered: Rule = Alone.is_covered
    answers_unremembered: bool = False
    """A primary that holds lets commits go before it has remembered that."""
    returns_before_all_is_there: bool = False
    """Sync is recorded though who is named lacks what was written meanwhile."""
    counts_at_once: bool = False
    """A lease counts though its record was away and nobody has looked for a plan since."""
    seals_while_granted: bool = False
    """A seal is told though somebody relies on a grant."""
    forgets_its_promise: bool = False
    """A replicator that crashed does not know that it ever granted."""
    trusts_what_it_read_before: bool = False
    """A replicator whose record was gone acts on the durability record that it read before that, whatever plan runs."""
    settles_while_confirmed: bool = False
    """A primary tells its position as fresh though somebody acknowledges by its direct word."""
    believes_late_requests: bool = False
    """A confirmation counts from when it arrives, however old it is."""
    looks_for_a_newer_plan: bool = True
    resumes_while_a_plan_runs: bool = False
