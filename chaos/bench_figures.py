"""Figures and goals of a bench, as its JSON file has them. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

DECIMALS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a figure should reach. A safety goal decides over the exit code; a goal of speed only when asked."""

    figure: str
    statistic: str
    at_most: float | None = None
    at_least: float | None = None
    safety: bool = False

    @property
    def name(self) -> str:
        return self.figure if self.statistic == "median" else f"{self.figure}_{self.statistic}"


@dataclass(slots=True)
class Measured:
    """What a bench collects: the measurements by figure, a record of each trial, and what did not run as it must."""

    values: dict[str, list[float]]
    records: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """Return one that has no measurement of these figures yet."""
        return cls({name: [] for name in names})


def figure(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Return what is said of some measurements; the numbers are None when there are none."""
    if not values:
        return {"median": None, "min": None, "max": None, "p99": None, "n": 0, "unit": unit}
    return {
        "median": round(median(values), DECIMALS),
        "min": round(min(values), DECIMALS),
        "max": round(max(values), DECIMALS),
        "p99": round(percentile(values, 99), DECIMALS),
        "n": len(values),
        "unit": unit,
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of all do not exceed (nearest rank): always one that was measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def judge(goals: Sequence[Goal], figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return every goal with whether it was met. What was not measured was not met."""
    return {goal.name: _judged(goal, figures.get(goal.figure, {}).get(goal.statistic)) for goal in goals}


def _judged(goal: Goal, value: float | None) -> dict[str, Any]:
    if goal.at_most is not None:
        return {"at_most": goal.at_most, "met": value is not None and value <= goal.at_most}
    assert goal.at_least is not None, "a goal has a bound"
    return {"at_least": goal.at_least, "met": value is not None and value >= goal.at_least}
