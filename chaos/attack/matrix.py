"""The tables of docs/reliability.md from the JSON files of one or more runs: `python -m chaos.attack.matrix FILE...`."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from chaos.attack.catalogue import Kind
from chaos.attack.told import RoundTold, matrix
from chaos.history import Finding, Verdict
from cluster import records
from cluster.errors import BadInput

HEAD = ("fault", "times", "alone", "longest pause p50", "p99", "whole again p50", "p99", "verdict")


def markdown(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return what was run, the verdicts over all runs, and the matrix, as Markdown."""
    rounds = [decoded(one) for document in documents for one in document["rounds"]]
    commits = ", ".join(f"`{commit}`" for commit in sorted({str(one.get("commit", ""))[:12] for one in documents}))
    seeds = ", ".join(str(one["seed"]) for one in documents)
    counts: Counter[str] = sum((Counter(one["counts"]) for one in documents), Counter())
    told = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    whole = (
        f"Commit {commits}; seeds {seeds}; {sum(one['faults'] for one in documents)} faults in {len(rounds)} rounds, "
    )
    lines = [f"{whole}{sum(one['seconds'] for one in documents) / 60:.0f} minutes; {told}.", ""]
    lines += _table(("verdict", "claim", "in how many runs"), verdict_rows(documents))
    findings = [Finding(verdict=Verdict(value), why="") for one in documents for value in one["verdicts"].values()]
    lines += ["", *_table(HEAD, [_line(one) for one in matrix(rounds, findings)])]
    happened = {kind for one in rounds for kind in one.happened}
    missing = [kind.value for kind in Kind if kind not in happened]
    return "\n".join([*lines, "", f"Not in these runs: {', '.join(missing) or 'nothing; every kind came'}.", ""])


def verdict_rows(documents: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return each claim with its worst verdict, and how many runs came to it."""
    order = [Verdict.BROKEN.value, Verdict.PROVED_NOTHING.value, Verdict.KEPT.value]
    claims = dict.fromkeys(claim for one in documents for claim in one["verdicts"])
    rows: list[tuple[str, ...]] = []
    for claim in claims:
        found = Counter(one["verdicts"][claim] for one in documents if claim in one["verdicts"])
        worst = min(found, key=order.index)
        rows.append((worst, claim, f"{found[worst]} of {len(documents)}"))
    return rows


def decoded(one: Mapping[str, Any]) -> RoundTold:
    """Return a round of a document. Raises BadInput."""
    return records.decode(RoundTold, json.dumps(one), where="a round")


def _line(one: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (_ms(one[what].get(key)) for what in ("outage_ms", "whole_ms") for key in ("p50", "p99"))
    return (one["kind"], str(one["times"]), str(one["alone"]), *numbers, one["verdict"])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows),
    ]  # fmt: skip


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def show(files: Annotated[list[Path], typer.Argument(help="What script/chaos wrote.")]) -> None:
    """Print the tables."""
    try:
        typer.echo(markdown([json.loads(file.read_text(encoding="utf-8")) for file in files]))
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{error}", hint="give files that script/chaos wrote") from error


if __name__ == "__main__":
    typer.run(show)
