"""The state diagrams of the documentation, drawn from the tables and functions that production obeys.

`python -m controller.states > docs/states.md` writes them anew; a test compares.
"""

from collections.abc import Mapping
from itertools import pairwise

from cluster.records import Role
from controller.advance import failed
from controller.model import ORDER, POINT_OF_NO_RETURN, Kind, PlanRecord, Stage
from healthcheck.roles import ROLES

INTRODUCTION = """# States

Drawn from the tables that production obeys, by `python -m controller.states > docs/states.md`; a test fails when this page is not
what they say.

## A node's role
`healthcheck/roles.py`: a signal that is not an arrow here is a bug, and raises. `new server` leads from every role to `fenced`.
"""
PLANS = """
## A plan
`controller/model.py` has the order of the stages, `controller/advance.py` what follows from a step that failed for good. The cursor
stands at the step that comes next, and is in ZooKeeper before that step is taken. Bold: the point of no return.
"""
FAILOVER = "FAILOVER_"
TITLES: Mapping[Kind, str] = {
    Kind.BOOTSTRAP: "The first epoch",
    Kind.FAILOVER: "Failover",
    Kind.SWITCHOVER: "Switchover",
}


def document() -> str:
    """Return the page."""
    plans = (f"\n### {title}\n{_fenced(plan_diagram(kind))}" for kind, title in TITLES.items())
    return f"{INTRODUCTION}{_fenced(role_diagram())}{PLANS}{''.join(plans)}"


def role_diagram() -> list[str]:
    """Return the roles of a node and what leads from one to another."""
    signals: dict[tuple[Role, Role], list[str]] = {}
    for (before, signal), after in ROLES.items():
        signals.setdefault((before, after), []).append(signal.value)
    arrows = [f"{before.value} --> {after.value}: {', '.join(names)}" for (before, after), names in signals.items()]
    return ["stateDiagram-v2", f"[*] --> {Role.FENCED.value}", *arrows]


def plan_diagram(kind: Kind) -> list[str]:
    """Return the stages of a plan: the way that leads to its end, and where a failed step leads to."""
    order = ORDER[kind]
    names = [f'state "{_name(stage)}" as {stage.name}' for stage in order]
    onward = [
        f"{before.name} --> {after.name}{': **point of no return**' * (before is POINT_OF_NO_RETURN)}"
        for before, after in pairwise(order)
    ]
    astray = [f"{stage.name} --> {goal}: fails" for stage in order[:-1] if (goal := _goal(kind, stage))]
    again = [
        f"{stage.name} --> {goal}: the rollback fails" for stage in order if (goal := _goal_of_rollback(kind, stage))
    ]
    names += [
        f'state "{_name(stage)}, as a failover" as {FAILOVER}{stage.name}'
        for stage in order
        if f"{FAILOVER}{stage.name}" in "".join(again)
    ]
    return [
        "stateDiagram-v2",
        *names,
        f"[*] --> {order[0].name}",
        *onward,
        *astray,
        *again,
        f"{order[-1].name} --> [*]",
    ]


def _goal(kind: Kind, stage: Stage) -> str:
    """Return where a step that failed for good leads to, empty when it is tried again or what is left goes on."""
    after = failed(_plan(kind, stage), "")
    if after.stage is stage and after.rolled_back is None:
        return ""
    order = ORDER[kind]
    onward = order.index(after.stage) == order.index(stage) + 1
    return "" if onward and after.rolled_back is None else after.stage.name


def _goal_of_rollback(kind: Kind, stage: Stage) -> str:
    """A rollback opens the old primary again, by the last stages before the point of no return."""
    if kind is not Kind.SWITCHOVER or stage not in (Stage.PROMOTE, Stage.OPEN):
        return ""
    after = failed(_plan(kind, stage, rolled_back="it failed"), "")
    return f"{FAILOVER}{after.stage.name}"


def _plan(kind: Kind, stage: Stage, rolled_back: str | None = None) -> PlanRecord:
    return PlanRecord(id="", kind=kind, epoch=2, stage=stage, why="", started="", old="old", candidate="new",
                      rolled_back=rolled_back)  # fmt: skip


def _name(stage: Stage) -> str:
    return stage.name.lower()


def _fenced(lines: list[str]) -> str:
    head, *rest = lines
    return "\n".join(["```mermaid", head, *(f"    {line}" for line in rest), "```", ""])


if __name__ == "__main__":
    print(document(), end="")
