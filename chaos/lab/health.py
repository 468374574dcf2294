"""Waiting until a part serves, and until the whole is a cluster. A part that ended is news at once, not at a deadline."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from chaos.lab import probe, process
from chaos.lab.identity import Life
from chaos.lab.layout import Layout
from chaos.lab.ledger import Ledger, Started
from chaos.lab.names import Kind, Part
from cluster.errors import BadInput, OscarHaError
from cluster.settings import Settings

PART_DEADLINE_MS = 40_000
HEALTHY_DEADLINE_MS = 60_000
CLINIC_DEADLINE_MS = 20_000
KEEP_HINT = "try again with --keep, and look into the folder log"


class Reporter(Protocol):
    """Who is told how far it is."""

    def working(self, what: str) -> None:
        """Say what is waited for now."""

    def done(self, what: str, detail: str = "") -> None:
        """Say what is done, one line a part."""


def await_parts(wanted: Sequence[Part], settings: Settings, lab: Ledger, layout: Layout, report: Reporter) -> None:
    """Wait until every one of these processes serves. Raises BadInput or OscarHaError when one has ended."""
    waiting = {part.name: part for part in wanted}

    def missing() -> str:
        fail_if_ended(lab.started.values(), lab.parts, layout)
        for name, part in tuple(waiting.items()):
            reason = probe.part_missing(part, settings, lab.ports)
            if reason:
                report.working(f"{name}: {reason}")
                return f"{name}: {reason}"
            del waiting[name]
        return ""

    process.wait_until(missing, deadline_ms=PART_DEADLINE_MS, what="a part does not serve", hint=KEEP_HINT)
    fail_if_ended(lab.started.values(), lab.parts, layout)


def await_healthy(settings: Settings, lab: Ledger, layout: Layout, report: Reporter) -> None:
    """Wait until there is a primary, standbys that replicate and a site that acknowledges."""

    def missing() -> str:
        fail_if_ended(lab.started.values(), lab.parts, layout)
        state, silent = probe.cluster(settings)
        reason = probe.unhealthy(state) or ", ".join(silent)
        if reason:
            report.working(reason)
        return reason

    process.wait_until(
        missing, deadline_ms=HEALTHY_DEADLINE_MS, what="the cluster does not get healthy",
        hint=KEEP_HINT,
    )  # fmt: skip
    state, _ = probe.cluster(settings)
    epoch = (state or {}).get("epoch") or {}
    report.done("cluster", f"primary {epoch.get('primary')}, epoch {epoch.get('epoch')}, every standby replicates")


def await_clinics(settings: Settings, password: str, report: Reporter) -> None:
    """Wait until every clinic can write through its own HAProxy."""
    for clinic in settings.clinics:
        report.working(f"{clinic.name}: a first write")

        def missing(host: str = clinic.host, port: int = clinic.port) -> str:
            return probe.write_check(host, port, password)

        process.wait_until(missing, deadline_ms=CLINIC_DEADLINE_MS, what=f"{clinic.name} cannot write")
    names = ", ".join(clinic.name for clinic in settings.clinics)
    report.done("clinics", f"{names}: a write was acknowledged")


def fail_if_ended(started: Iterable[Started], parts: Sequence[Part], layout: Layout) -> None:
    """Raise when one of these processes has ended: its own last words are the message."""
    kinds = {part.name: part.kind for part in parts}
    for one in started:
        if one.life is not Life.ENDED:
            continue
        said = process.last_error(layout.log(one.name), one.log_offset) or "it said nothing"
        if kinds.get(one.name) is Kind.DATABASE:
            raise BadInput(f"{one.name} does not start: {said}", hint="mend the --mysqld-option that it names")
        raise OscarHaError(f"{one.name} ended: {said}", hint=KEEP_HINT)
