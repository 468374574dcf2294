"""What the cluster looked like from outside while it was attacked: one look after the other, from a thread of its own."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chaos.attack.catalogue import Parts
from chaos.lab_remote import RemoteLab
from chaos.whole import playing
from cluster import clock
from cluster.clock import Nanos
from cluster.errors import OscarHaError

LOOK_EVERY_S = 0.5
SAMPLES_MAX = 100_000
JOIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look. A node that nobody hears of has the role `silent`."""

    at: Nanos
    epoch: int | None
    roles: Mapping[str, str]
    lag_ms: Mapping[str, float] = field(default_factory=dict)
    """Of the standbys that tell it."""
    ready: bool = False


SILENT = "silent"


def sample(state: Mapping[str, Any], at: Nanos) -> Sample:
    """Return what one answer of `GET /v1/cluster` says."""
    nodes = state.get("nodes", [])
    return Sample(
        at=at,
        epoch=(state.get("epoch") or {}).get("epoch"),
        roles={str(one["node"]): str(one["role"]) if one.get("reporting") else SILENT for one in nodes},
        lag_ms={
            str(one["node"]): float(one["lag_ms"])
            for one in nodes
            if one.get("role") == "standby" and one.get("lag_ms") is not None
        },
        ready=bool(state.get("ready")),
    )


class Observer:
    """Looks again and again. Use as a context manager."""

    def __init__(self, lab: RemoteLab, clinics: tuple[str, ...]) -> None:
        self.samples: list[Sample] = []
        self.parts = Parts(clinics=clinics)
        """Who plays which part, as the controllers said last."""
        self._lab = lab
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="observer")

    def __enter__(self) -> "Observer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(JOIN_SECONDS)

    def saw(self, state: Mapping[str, Any]) -> None:
        """Take note of what a controller said, whoever asked it."""
        self.parts = playing(state, self.parts)
        if len(self.samples) < SAMPLES_MAX:
            self.samples.append(sample(state, clock.now()))

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.saw(self._lab.cluster())
            except OscarHaError:
                if len(self.samples) < SAMPLES_MAX:
                    self.samples.append(Sample(at=clock.now(), epoch=None, roles={}))
