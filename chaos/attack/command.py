"""`script/chaos`: the options, the story as it happens, the verdicts at the end, and an exit code that can be trusted."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chaos import script
from chaos.attack import report
from chaos.attack.catalogue import Kind, Lab
from chaos.attack.plan import MINUTES_MAX, Round, plan, problems
from chaos.attack.run import Attack
from chaos.attack.told import Told
from chaos.bench import commit, machine
from chaos.lab.layout import Wires
from chaos.run_folder import alone
from cluster import records
from cluster.errors import BadInput

FOLDER = Path("build/chaos")
MINUTES = 10.0
PLAIN_WIDTH = 200
KINDS = ", ".join(f"'{kind.value}'" for kind in Kind)
SAFE = "0123456789abcdefghijklmnopqrstuvwxyz-"


def chaos(
    seed: Annotated[int, typer.Option(help="The same seed makes the same faults in the same order.")] = 1,
    minutes: Annotated[float, typer.Option(help="So long new rounds begin; the last one is waited for.")] = MINUTES,
    faults: Annotated[
        str, typer.Option(help=f"Only these kinds, with commas between them; all if left out: {KINDS}.")
    ] = "",
    network: Annotated[
        Wires,
        typer.Option(help="namespaces needs root and can cut sites off; where it is not allowed all is loopback."),
    ] = Wires.NAMESPACES,
    repeat_from: Annotated[
        Path | None, typer.Option(help="A JSON file of a run: the very rounds that it did, once more.", metavar="FILE")
    ] = None,
) -> None:
    """Break things at random while clinics work, and judge every promise. Exit code 0: all of them were kept.

    Writes build/chaos/SEED.json and SEED.html; when it fails, logs and journal are kept in build/chaos.
    """
    kinds = wanted(faults)
    rounds: tuple[Round, ...] | None = None
    if repeat_from is not None:
        (seed, rounds), minutes = repeated(repeat_from), MINUTES_MAX
    plan(
        seed, minutes, kinds, Lab(has_network=network is Wires.NAMESPACES, has_disks=True)
    )  # refused before anything is started
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    folder = FOLDER.absolute()
    with (
        alone(folder, "chaos"),
        Attack(folder, partial(_say, console), seed=seed, minutes=minutes, network=network) as attack,
    ):
        told = attack.attack(lambda lab: plan(seed, minutes, kinds, lab) if rounds is None else rounds)
    document = {"name": "chaos", "commit": commit(), "machine": machine(), **told.document()}
    write(folder, seed, document)
    _show(console, told, document)
    if not told.passed:
        again = f"script/chaos --repeat-from {FOLDER / f'{seed}.json'}"
        console.print(f"again: {again}; logs and journal are kept in {FOLDER}")
        raise typer.Exit(1)


def wanted(text: str) -> tuple[Kind, ...]:
    """Return the kinds that a person means; spaces may be written as hyphens. Raises BadInput naming all there are."""
    known = {_plain(kind.value): kind for kind in Kind}
    names = [_plain(name) for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in known]
    if wrong:
        raise BadInput(f"--faults {', '.join(wrong)}", hint=f"choose from: {', '.join(known)}")
    return tuple(known[name] for name in names) or tuple(Kind)


def repeated(path: Path) -> tuple[int, tuple[Round, ...]]:
    """Return the seed and the rounds of an earlier run. Raises BadInput."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        seed, plans = int(document["seed"]), [one["plan"] for one in document["rounds"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"--repeat-from {path}: {records.shorten(str(error))}", hint="give a file that script/chaos wrote"
        ) from error
    rounds = tuple(records.decode(Round, json.dumps(one), where=f"{path}, a round") for one in plans)
    wrong = [problem for one in rounds for problem in problems(one)]
    if wrong or not rounds:
        raise BadInput(f"--repeat-from {path}: {wrong[0] if wrong else 'no round'}", hint="it was changed by hand?")
    return seed, rounds


def write(folder: Path, seed: int, document: dict[str, Any]) -> None:
    """Write the JSON file and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{seed}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / f"{seed}.html").write_text(report.page(document), encoding="utf-8")


def _say(console: Console, line: str) -> None:
    console.print(escape(line), soft_wrap=True)


def _plain(name: str) -> str:
    """Return a name as it is compared: `site cut off`, `Site-cut-off` and `kill -9` are typed in many ways."""
    words = name.strip().lower().replace(",", "").replace("_", " ").replace("-", " ").split()
    return "-".join("".join(letter for letter in word if letter in SAFE) for word in words)


def _show(console: Console, told: Told, document: dict[str, Any]) -> None:
    table = Table(box=SIMPLE_HEAD, title="milliseconds, of the rounds with this fault alone", title_justify="left")
    for heading in ("fault", "times", "alone", "longest pause p50", "p99", "max", "whole again p50", "p99", "max"):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    for line in document["matrix"]:
        numbers = [line[what].get(key) for what in ("outage_ms", "whole_ms") for key in ("p50", "p99", "max")]
        cells = ("-" if one is None else f"{one:.0f}" for one in numbers)
        table.add_row(line["kind"], str(line["times"]), str(line["alone"]), *cells)
    console.print(table)
    counts = ", ".join(f"{count} {what}" for what, count in told.counts.items())
    console.print(f"{document['faults']} faults in {len(told.rounds)} rounds, {counts}, {told.seconds:.0f} s")
    for claim, finding in told.verdicts.items():
        colour = "green" if finding.kept else "bold red"
        console.print(f"[{colour}]{finding.verdict.value}[/]: {claim} ({escape(finding.why)})", soft_wrap=True)
    for problem in told.problems:
        console.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(script.run(chaos))
