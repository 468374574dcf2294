"""`script/storm`: the options, the story as it happens, the table at the end, and an exit code that can be trusted."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chaos import script
from chaos.bench import commit, machine
from chaos.run_folder import alone
from chaos.storm import Storm, Told
from chaos.storm_plan import KILLS_MAX
from cluster.errors import BadInput

FOLDER = Path("build/storm")
KILLS = 200
PLAIN_WIDTH = 180


def storm(
    kills: Annotated[int, typer.Option(help=f"How often a process is killed, 1 to {KILLS_MAX}.")] = KILLS,
    seed: Annotated[int, typer.Option(help="The same seed hits the same parts after the same delays.")] = 1,
    encrypt_archive: Annotated[
        bool, typer.Option("--encrypt-archive", help="The archives of the lab are encrypted.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
) -> None:
    """Kill databases and replicators at random under load, then compare everything with everything.

    Exit code 0: nothing acknowledged was lost, nothing was doubled, all databases and archives are equal. A storm of 200
    takes about a quarter of an hour; when it fails, logs and journal are in build/storm.
    """
    if not 1 <= kills <= KILLS_MAX:
        raise BadInput(f"--kills {kills}", hint=f"choose from 1 to {KILLS_MAX}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    folder = FOLDER.absolute()
    with (
        alone(folder, "storm"),
        Storm(
            folder,
            lambda line: console.print(escape(line), soft_wrap=True),
            kills=kills,
            seed=seed,
            encrypt_archive=encrypt_archive,
        ) as one,
    ):
        told = one.run()
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        document = {"name": "storm", "commit": commit(), "machine": machine(), **told.document()}
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    _show(console, told)
    if not told.passed:
        again = " --encrypt-archive" * encrypt_archive
        console.print(
            f"again: script/storm --kills {kills} --seed {seed}{again}; logs and journal are kept in {FOLDER}"
        )
        raise typer.Exit(1)


def _show(console: Console, told: Told) -> None:
    document = told.document()
    table = Table(box=SIMPLE_HEAD, title="milliseconds", title_justify="left")
    for heading in ("killed", "n", "pause median", "p99", "max", "whole again median", "p99", "max"):
        table.add_column(heading, justify="left" if heading == "killed" else "right")
    for kind, whole in document["whole_ms"].items():
        pause = document["outage_ms"].get(kind, {})
        numbers = [pause.get(key) for key in ("median", "p99", "max")] + [
            whole[key] for key in ("median", "p99", "max")
        ]
        table.add_row(kind, str(whole["n"]), *("-" if one is None else f"{one:.0f}" for one in numbers))
    console.print(table)
    kills = ", ".join(f"{count} {kind}" for kind, count in sorted(told.kills.items()))
    console.print(f"{sum(told.kills.values())} kills ({kills}), {told.epochs} epochs, {told.acknowledged} writes"
                  f" acknowledged, {len(told.rebuilt)} nodes made anew, {told.seconds:.0f} s")  # fmt: skip
    for claim, finding in told.verdicts.items():
        colour = "green" if finding.kept else "bold red"
        console.print(f"[{colour}]{finding.verdict.value}[/]: {claim} ({escape(finding.why)})", soft_wrap=True)
    for problem in told.problems:
        console.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(script.run(storm))
