"""`lab kill | freeze | thaw | start`: what a person does to processes of a running lab."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.lab import health, identity, ledger, process
from chaos.lab.identity import Life
from chaos.lab.layout import Layout
from chaos.lab.ledger import Ledger
from chaos.lab.names import Part, select
from cluster import settings
from cluster.errors import Refused


@dataclass(frozen=True, slots=True)
class Done:
    """What was done to one process."""

    name: str
    what: str
    pid: int | None


class _Silent:
    def working(self, what: str) -> None:
        pass

    def done(self, what: str, detail: str = "") -> None:
        pass


def kill(directory: Path, *what: str) -> list[Done]:
    """Kill -9, all of them in the same moment. One that has ended already is fine."""
    with ledger.locked(directory):
        found = [_find(directory, one) for one in what]
        lab, parts = found[0][0], [part for _, some in found for part in some]
        alive = [part.name for part in parts if _life(lab, part) is not Life.ENDED]
        process.kill(lab.started[name].identity for name in alive)
        return [_done(lab, part, "killed" if part.name in alive else "had ended already") for part in parts]


def freeze(directory: Path, what: str, *, living: bool = False) -> list[Done]:
    """SIGSTOP: connections stay open and nothing answers. Raises Refused if one has ended; `living` passes those over."""
    return _signal(directory, what, signal.SIGSTOP, Life.FROZEN, "frozen", living=living)


def thaw(directory: Path, what: str, *, living: bool = False) -> list[Done]:
    """SIGCONT. Raises Refused if one has ended; `living` passes those over."""
    return _signal(directory, what, signal.SIGCONT, Life.RUNNING, "thawed", living=living)


def start(directory: Path, what: str, *, wait: bool = True) -> list[Done]:
    """Start what has ended, with the very same command line, and wait until it serves unless told not to."""
    layout = Layout(directory)
    with ledger.locked(directory):
        lab, parts = _find(directory, what)
        frozen = [part.name for part in parts if _life(lab, part) is Life.FROZEN]
        if frozen:
            raise Refused(f"{', '.join(frozen)} is frozen, not ended", hint=f"oscar-ha lab thaw {what}")
        ended = [part for part in parts if _life(lab, part) is Life.ENDED]
        before = lab
        for part in ended:
            lab = lab.with_started(process.spawn(part.name, before.started[part.name].command, layout, lab.lab_id))
            ledger.write(layout, lab)
        if wait:
            ours = lab.only(part.name for part in ended)
            health.await_parts(ended, settings.load(layout.settings), ours, layout, _Silent())
        names = {part.name for part in ended}
        return [_done(lab, part, "started" if part.name in names else "ran already") for part in parts]


def _signal(directory: Path, what: str, number: signal.Signals, wanted: Life, word: str, *, living: bool) -> list[Done]:
    with ledger.locked(directory):
        lab, parts = _find(directory, what)
        ended = [part.name for part in parts if _life(lab, part) is Life.ENDED]
        if ended and not living:
            raise Refused(f"{', '.join(ended)} has ended", hint=f"oscar-ha lab start {what}")
        parts = [part for part in parts if part.name not in ended]
        for part in parts:
            identity.send(lab.started[part.name].identity, number)
        process.wait_until(
            lambda: ", ".join(part.name for part in parts if _life(lab, part) not in (wanted, *_fine(living))),
            deadline_ms=process.KILL_DEADLINE_MS,
            what=f"not {word}",
        )
        return [_done(lab, part, word) for part in parts]


def _fine(living: bool) -> tuple[Life, ...]:
    """Return what is well besides what was asked for: one may end while it is waited for."""
    return (Life.ENDED,) if living else ()


def _find(directory: Path, what: str) -> tuple[Ledger, Sequence[Part]]:
    layout = Layout(directory)
    lab = ledger.require(layout)
    for part in lab.parts:
        process.trim(layout.log(part.name))
    return lab, select(what, [part for part in lab.parts if part.name in lab.started])


def _life(lab: Ledger, part: Part) -> Life:
    return lab.started[part.name].life


def _done(lab: Ledger, part: Part, word: str) -> Done:
    return Done(part.name, word, lab.started[part.name].pid)
