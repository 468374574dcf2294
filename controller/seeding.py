"""Handing a seeding over to the watchdog of the node that is to be built. The controller does no more of it than this.

So a failover never waits for a repair, and a seeding outlives the controller that began it (TRAPS.md 35).
"""

import secrets
from dataclasses import asdict
from typing import Any

from cluster import clock, records
from cluster.errors import BadInput
from cluster.http import Client
from cluster.records import SeedReport
from cluster.settings import Settings
from controller.seed import SeedPlan

HAND_OVER_DEADLINE_MS = 40_000
"""The receiver looks at its files and lets the donor begin before it answers."""
ID_RANDOM_BYTES = 3


def require_settings(settings: Settings, plan: SeedPlan) -> None:
    """Raise BadInput naming every setting without which the two nodes cannot do it."""
    needs = (
        (plan.node, settings.node(plan.node).missing_to_receive()),
        (plan.donor, settings.node(plan.donor).missing_to_give()),
    )
    problems = [f"node {name!r} lacks {', '.join(missing)}" for name, missing in needs if missing]
    if problems:
        raise BadInput(
            f"the settings do not say how: {'; '.join(problems)}",
            hint="add them to the settings file on every host, then restart watchdogs and controllers",
        )


def describe(plan: SeedPlan) -> dict[str, Any]:
    """Return what a seeding would do, as `dry_run` tells it."""
    return {
        "dry_run": True,
        "node": plan.node,
        "donor": plan.donor,
        "epoch": plan.epoch,
        "donors": [{**asdict(one), "able": one.able} for one in plan.donors],
        "warnings": list(plan.warnings),
    }


async def hand_over(client: Client, settings: Settings, plan: SeedPlan, *, force: bool, keep: bool) -> dict[str, Any]:
    """Tell the watchdog of the node to begin; return what it said."""
    body = {"epoch": plan.epoch, "donor": plan.donor, "id": new_id(clock.utc_now()), "force": force, "keep": keep}
    url = f"{settings.node(plan.node).watchdog_url}/v1/reinitialize"
    answer = await client.post(url, body, deadline_ms=HAND_OVER_DEADLINE_MS)
    begun = records.decode(SeedReport, answer, where=f"the answer of {plan.node}")
    return {**describe(plan), "dry_run": False, "seeding": asdict(begun)}


def new_id(now: str) -> str:
    """Return a name for a seeding that sorts by time and can be part of a file's name."""
    digits = "".join(letter for letter in now[:19] if letter.isdigit() or letter == "T")
    return f"{digits}-{secrets.token_hex(ID_RANDOM_BYTES)}"
