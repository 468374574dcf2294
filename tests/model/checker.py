"""Breadth first through every state; the shortest way to a broken promise is the story that is told."""

import gc
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, fields

from tests.model.nature import ACTIONS
from tests.model.promises import broken_in, is_well
from tests.model.rules import Rules
from tests.model.state import World


@dataclass(slots=True)
class Explored:
    """What was found. `story` is empty when no promise was broken."""

    states: int = 0
    transitions: int = 0
    well: int = 0
    """States in which the newest primary takes writes and no plan runs."""
    story: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = f"{self.states} distinct states, {self.transitions} transitions, {self.well} of the states are well"
        return told + "".join(f"\n{number:3}. {line}" for number, line in enumerate(self.story, 1))


class Shared:
    """Keeps one object of each value, so that a state is told by the identities of its parts."""

    def __init__(self) -> None:
        self._parts: dict[Hashable, Hashable] = {}
        self._kept: set[int] = set()

    def key(self, world: World) -> tuple[int, ...]:
        """Return what is equal for equal worlds, and for no others."""
        return tuple(self._identity(getattr(world, name)) for name in FIELDS)

    def _identity(self, part: Hashable) -> int:
        if id(part) in self._kept:
            return id(part)
        one = self._parts.setdefault(part, part)
        self._kept.add(id(one))
        return id(one)


FIELDS = tuple(one.name for one in fields(World))


def moves(world: World, rules: Rules) -> Iterator[tuple[str, World]]:
    """Yield everything that can happen next."""
    for action in ACTIONS:
        yield from action(world, rules)


@dataclass(slots=True)
class Graph:
    """Every state met, how it was first met, and who leads to it without a fault."""

    states: list[World] = field(default_factory=list)
    met: list[tuple[int, str]] = field(default_factory=list)
    before: list[list[int]] = field(default_factory=list)

    def story(self, at: int, end: str) -> tuple[str, ...]:
        """Return how a state comes about, and what is wrong with it."""
        lines: list[str] = [end]
        while at:
            at, line = self.met[at]
            lines.append(line)
        return tuple(reversed(lines))


def after(world: World, rules: Rules, lines: Iterable[str]) -> World:
    """Return the world after a story, given by how each of its lines begins."""
    for line in lines:
        world = next(found for told, found in moves(world, rules) if told.startswith(line))
    return world


def explore(start: World, rules: Rules, *, begins: tuple[str, ...] = (), states_max: int = 1_000_000) -> Explored:
    """Visit every state after `begins`; stop at the first broken promise: no shorter story leads from there to one."""
    gc.disable()  # nothing here is ever garbage, and looking for it costs a third of the time
    try:
        found = _explore(after(start, rules, begins), rules, states_max)
    finally:
        gc.enable()
    if found.story:
        found.story = (*begins, *found.story)
    return found


def _explore(start: World, rules: Rules, states_max: int) -> Explored:
    shared, graph, found = Shared(), Graph([start], [(0, "")], [[]]), Explored()
    number_of = {shared.key(start): 0}
    waiting = deque([0])
    while waiting:
        at = waiting.popleft()
        world = graph.states[at]
        for line, following in moves(world, rules):
            found.transitions += 1
            key = shared.key(following)
            number = number_of.get(key)
            if number is None:
                number = number_of[key] = len(graph.states)
                graph.states.append(following)
                graph.met.append((at, line))
                graph.before.append([])
                waiting.append(number)
                if (promise := broken_in(following, rules)) is not None:
                    found.states, found.story = number + 1, graph.story(number, f"BROKEN {promise}")
                    return found
            if following.faults == world.faults:
                graph.before[number].append(at)
        if len(graph.states) > states_max:
            raise AssertionError(f"more than {states_max} states: make the scope smaller")
    found.states = len(graph.states)
    _require_a_way_out(graph, rules, found)
    return found


def _require_a_way_out(graph: Graph, rules: Rules, found: Explored) -> None:
    """From every state the cluster must get well without another fault (invariant 5)."""
    well = [number for number, world in enumerate(graph.states) if is_well(world, rules)]
    reached, waiting = set(well), deque(well)
    while waiting:
        for number in graph.before[waiting.popleft()]:
            if number not in reached:
                reached.add(number)
                waiting.append(number)
    found.well = len(well)
    stuck = next((number for number in range(len(graph.states)) if number not in reached), None)
    if stuck is not None:
        found.story = graph.story(stuck, f"BROKEN 5: no primary takes writes ever again, {graph.states[stuck]}")
