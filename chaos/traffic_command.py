"""`oscar-ha traffic`: clinics at work against a running lab, for a bounded time, with a journal."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chaos import lab_file
from chaos.history import Outcome, outcomes
from chaos.traffic import SECONDS_MAX, WRITES_PER_SECOND, Traffic, prepare
from chaos.traffic_journal import Journal
from cluster.errors import Unreachable

PREPARE_DEADLINE_MS = 20_000


def traffic(
    lab: Annotated[Path, typer.Option(help="The folder of a running lab.")] = Path("build/lab"),
    seconds: Annotated[float, typer.Option(help=f"How long to write, at most {SECONDS_MAX:g}.")] = 30.0,
    journal: Annotated[Path, typer.Option(help="One JSON line for every write.")] = Path("build/traffic.jsonl"),
    rate: Annotated[float, typer.Option(help="Writes per second and clinic.")] = WRITES_PER_SECOND,
    seed: Annotated[int, typer.Option(help="The same seed writes the same things.")] = 1,
) -> None:
    """Write as clinics do, each through its own address, and record what was acknowledged."""
    found = lab_file.load(lab)
    journal_file = Journal(journal)
    try:
        run = Traffic(
            found.clinics, journal_file, seconds=seconds, writes_per_second=rate, seed=seed, nodes=found.nodes
        )
        prepare(found.clinics[0], deadline_ms=PREPARE_DEADLINE_MS)
        with run:
            run.wait()
    finally:
        journal_file.close()
    _tell(run, journal)


def _tell(run: Traffic, journal: Path) -> None:
    counts = outcomes(run.history)
    Console(highlight=False).print(
        f"{counts[Outcome.OK]} writes acknowledged, {counts[Outcome.FAILED]} refused, {counts[Outcome.UNKNOWN]} without "
        f"an answer, {sum(writer.refused_connections for writer in run.writers)} connections refused; journal {journal}",
        soft_wrap=True,
    )
    silent = [f"{writer.clinic.name}: {writer.gave_up}" for writer in run.writers if writer.gave_up]
    if silent:
        raise Unreachable(f"no connection any more at {'; '.join(silent)}")
