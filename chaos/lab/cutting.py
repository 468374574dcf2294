"""`lab cut | heal`, and the same for tests and benches: what is cut is in `lab.json`, and in force before the command ends."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from chaos.lab import cuts, ledger, network
from chaos.lab.cuts import WHOLE, Cut, Only
from chaos.lab.layout import Layout
from chaos.lab.ledger import Busy
from cluster import clock
from cluster.errors import BadInput

LOCK_DEADLINE_MS = 10_000
"""A watchdog that starts its server is a lab command too: a cut waits for it."""
POLL_SECONDS = 0.05
CUTS_MAX = 100
NO_NETWORK_HINT = "start the lab with: oscar-ha lab up --network namespaces (as root)"


def cut(
    directory: Path, what: str, *, one_way: bool = False, only: Only | None = None, keep_lan: bool = False,
    loss_percent: float = WHOLE, slow: bool = False,
) -> tuple[Cut, ...]:  # fmt: skip
    """Cut, and return all that is cut now. Raises BadInput for a lab on loopback, or what is no place of it."""

    def change(found: tuple[Cut, ...], places: tuple[str, ...]) -> tuple[Cut, ...]:
        new = cuts.parse(
            what, places, one_way=one_way, only=only, keep_lan=keep_lan, loss_percent=loss_percent, slow=slow
        )
        return found if new in found else (*found, new)

    return _changed(directory, change)


def heal(directory: Path, what: str | None = None) -> tuple[Cut, ...]:
    """Heal everything, or what was cut by this SITE or FROM:TO; return what is cut still. Raises BadInput."""

    def change(found: tuple[Cut, ...], places: tuple[str, ...]) -> tuple[Cut, ...]:
        if what is None:
            return ()
        cuts.parse(what, places)
        left = tuple(one for one in found if one.text != what)
        if len(left) == len(found):
            named = ", ".join(dict.fromkeys(one.text for one in found)) or "nothing is"
            raise BadInput(f"{what} is not cut", hint=f"cut now: {named}")
        return left

    return _changed(directory, change)


def found(directory: Path) -> tuple[Cut, ...]:
    """Return what is cut now; nothing on loopback."""
    lab = ledger.require(Layout(directory))
    return () if lab.network is None else lab.network.cuts


def mend(directory: Path, cut: Cut) -> tuple[Cut, ...]:
    """Heal this one cut and no other of the same words; return what is cut still. Safe to repeat."""
    return _changed(directory, lambda found, _: tuple(one for one in found if one != cut))


@contextmanager
def while_cut(
    directory: Path, what: str, *, one_way: bool = False, only: Only | None = None, keep_lan: bool = False,
    loss_percent: float = WHOLE, slow: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Cut for the time of a `with` block and always heal this cut after it. Others stay as they are."""
    cut(directory, what, one_way=one_way, only=only, keep_lan=keep_lan, loss_percent=loss_percent, slow=slow)
    try:
        yield
    finally:
        heal(directory, what)


def _changed(directory: Path, change: Callable[[tuple[Cut, ...], tuple[str, ...]], tuple[Cut, ...]]) -> tuple[Cut, ...]:
    layout, deadline = Layout(directory), clock.after(clock.now(), LOCK_DEADLINE_MS)
    while True:
        try:
            with ledger.locked(directory):
                lab = ledger.require(layout)
                if lab.network is None:
                    raise BadInput("this lab is all on loopback: nothing can be cut", hint=NO_NETWORK_HINT)
                wanted = change(lab.network.cuts, lab.network.topology.places)
                if len(wanted) > CUTS_MAX:
                    raise BadInput(f"more than {CUTS_MAX} cuts", hint="heal some: oscar-ha lab heal")
                found = lab.network.with_cuts(*wanted)
                network.apply(found, lab.ports)
                ledger.write(layout, replace(lab, network=found))
                return found.cuts
        except Busy:
            if clock.now() >= deadline:
                raise
        time.sleep(POLL_SECONDS)
