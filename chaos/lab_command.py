"""`oscar-ha lab`: the whole cluster on this machine, to watch, to break and to throw away."""

import json
import os
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from chaos.lab import build, control, cutting, faults, ledger, remove, status
from chaos.lab.cuts import WHOLE, Cut, Only
from chaos.lab.layout import Layout, Request, Wires, parse_option
from chaos.lab.ledger import Ledger
from cluster import clock
from cluster.errors import BadInput
from cluster.records import Acks

DEFAULT_DIRECTORY = Path("build/lab")
MS_PER_SECOND = 1000
EXIT_INTERRUPTED = 130
HELP = """The whole cluster as real processes on this machine: to watch, to break, to throw away.

Three sites (clinic, toronto, montreal), each with a database, its watchdog, a replicator and a controller; ZooKeeper,
one HAProxy per clinic, Prometheus. Everything listens on loopback and lies in one folder.

[bold]lab up[/]                        start it, about 15 s
[bold]lab status[/]                    who is the primary, would a failover work
[bold]lab kill db-clinic[/]            the primary dies; look at the status again
[bold]lab start db-clinic[/]           it comes back, and follows
[bold]lab freeze host:db-toronto[/]    a host hangs; [bold]thaw[/] lets it go on
[bold]lab kill site:montreal[/]        a whole site is gone
[bold]rm -rf D/data/db-montreal[/]     after [bold]lab kill db-montreal[/]: [bold]oscar-ha reinitialize db-montreal[/] builds it anew
[bold]lab down[/]                      nothing is left behind

With [bold]lab up --network namespaces[/] (as root) every site and every clinic is a host of its own, as far away as in life:
[bold]lab cut clinic[/]                the servers in the clinic reach nobody, and nobody reaches them
[bold]lab cut clinic --keep-lan[/]     the clinic's line is cut, its own users still reach the servers
[bold]lab cut clinic:toronto --only replication[/]   one pair, one kind of traffic
[bold]lab heal[/]                      all is well again
"""
WHAT_HELP = (
    "A process (db-clinic, watchdog-clinic, replicator-clinic, controller-clinic, zookeeper-1, haproxy-clinic-1, "
    "prometheus), a host with its database and watchdog (host:db-clinic), or a whole site (site:toronto)."
)
app = typer.Typer(name="lab", help=HELP, no_args_is_help=True, rich_markup_mode="rich")
DirectoryOption = typer.Option(DEFAULT_DIRECTORY, "--dir", help="The lab's folder.", envvar="OSCAR_HA_LAB_DIR")
AcksOption = typer.Option(Acks.ONE, "--acks", help="Acknowledged means on disk in one other city, or in all of them.")
JsonOption = typer.Option(False, "--json", help="Print JSON.")
EncryptOption = typer.Option(
    False, "--encrypt-archive", help="Encrypt the archives; `oscar-ha archive` finds the key by --settings and --site."
)
OptionOption = typer.Option(
    [], "--mysqld-option", metavar="K=V", help="Option of all three databases, e.g. innodb_page_size=32K; repeatable."
)
WhatArgument = typer.Argument(help=WHAT_HELP, metavar="WHAT")
WAYS_HELP = (
    "A site (clinic, toronto, montreal) or a clinic (clinic-1), cut off from all; or FROM:TO, `all` being one of them."
)
NetworkOption = typer.Option(
    Wires.LOOPBACK, "--network",
    help="loopback, or namespaces: each site and clinic a host of its own that `lab cut` can cut off; needs root.",
)  # fmt: skip
DistanceOption = typer.Option(
    1.0, "--distance",
    help="With namespaces: multiplies the round trips (Toronto 8 ms, Montreal 15 ms from the clinic); 0 is none.",
)  # fmt: skip


class Progress:
    """One line a part, on standard error, and what is waited for while it is waited for."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spinner = console.status("starting")
        self._begin = clock.now()

    def __enter__(self) -> "Progress":
        self._spinner.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self._spinner.__exit__(None, None, None)

    def working(self, what: str) -> None:
        self._spinner.update(escape(what[: self._console.width - 4]))

    def done(self, what: str, detail: str = "") -> None:
        seconds = clock.ms_between(self._begin, clock.now()) / MS_PER_SECOND
        self._console.print(f"[green]✓[/] {what:<18} {escape(detail)} [dim]{seconds:.1f} s[/]", soft_wrap=True)


@app.command()
def up(
    directory: Path = DirectoryOption,
    clinics: int = typer.Option(1, "--clinics", help="How many clinics, each with its own HAProxy; 1 to 20."),
    zookeepers: int | None = typer.Option(
        None, "--zookeepers", help="1, or 3: one in each site, so that a site can fail; 3 with namespaces."
    ),
    network: Wires = NetworkOption,
    distance: float = DistanceOption,
    load: list[Path] = typer.Option(
        [], "--load", metavar="FILE.sql", help="SQL to load through the first clinic; may be repeated, kept in order."
    ),
    mysqld_option: list[str] = OptionOption,
    acks: Acks = AcksOption,
    profile: str = typer.Option("default", "--profile", help="The deadlines: default, or fast."),
    base_port: int | None = typer.Option(None, "--base-port", help="Number the ports from here instead of free ones."),
    no_tls: bool = typer.Option(False, "--no-tls", help="Replicate in plain text, without certificates."),
    encrypt_archive: bool = EncryptOption,
    keep: bool = typer.Option(False, "--keep", help="When it fails keep the files, to look into D/log."),
    as_json: bool = JsonOption,
) -> None:
    """Start a lab and wait until it is healthy. Whatever fails, nothing is left behind."""
    options = tuple(parse_option(text) for text in mysqld_option)
    members = zookeepers if zookeepers is not None else 1 if network is Wires.LOOPBACK else 3
    request = Request(directory=_absolute(directory), clinics=clinics, zookeepers=members, load=tuple(load),
                      wires=network, distance=distance, profile=profile,
                      options=options, base_port=base_port, tls=not no_tls, encrypt_archive=encrypt_archive, acks=acks)  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    console = Console(stderr=True, highlight=False)
    try:
        with Progress(console) as progress:
            lab = build.up(request, progress, keep=keep)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted[/]: everything was taken down again")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(ledger.document(lab), indent=2))
    else:
        _print_summary(request.directory, lab)


@app.command("status")
def show_status(directory: Path = DirectoryOption, as_json: bool = JsonOption) -> None:
    """Show what lives, who is the primary, and whether a failover would work."""
    found = status.gather(_absolute(directory))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console(highlight=False)
    for line in (*status.network_lines(found), *status.headline(found)):
        console.print(line)
    console.print()
    console.print(status.table(found))
    console.print()
    console.print(status.others(found))


@app.command()
def kill(what: str = WhatArgument, directory: Path = DirectoryOption, as_json: bool = JsonOption) -> None:
    """Kill -9, as a crash or a power cut does."""
    _print_done(control.kill(_absolute(directory), what), as_json)


@app.command()
def freeze(what: str = WhatArgument, directory: Path = DirectoryOption, as_json: bool = JsonOption) -> None:
    """SIGSTOP: connections stay open and nothing answers, as on a host that hangs."""
    _print_done(control.freeze(_absolute(directory), what), as_json)


@app.command()
def thaw(what: str = WhatArgument, directory: Path = DirectoryOption, as_json: bool = JsonOption) -> None:
    """SIGCONT: a frozen process goes on and does not know that time has passed."""
    _print_done(control.thaw(_absolute(directory), what), as_json)


@app.command()
def start(what: str = WhatArgument, directory: Path = DirectoryOption, as_json: bool = JsonOption) -> None:
    """Start what was killed, with the very same command line."""
    _print_done(control.start(_absolute(directory), what), as_json)


@app.command()
def cut(
    what: str = typer.Argument(help=WAYS_HELP, metavar="SITE|FROM:TO"),
    one_way: bool = typer.Option(False, "--one-way", help="Lose only what goes from FROM to TO; SITE is SITE:all."),
    only: Only | None = typer.Option(None, "--only", help="Lose only this of what sites say to each other."),
    keep_lan: bool = typer.Option(False, "--keep-lan", help="The clinic on the site's LAN still reaches its servers."),
    loss: float = typer.Option(WHOLE, "--loss", metavar="PERCENT", help="Lose so much of it instead of all."),
    slow: bool = typer.Option(False, "--slow", help="Lose nothing, but take 150 ms there and back."),
    directory: Path = DirectoryOption,
    as_json: bool = JsonOption,
) -> None:
    """Lose packets in silence: nobody is told and connections stay open. Needs a lab with --network namespaces."""
    place = _absolute(directory)
    found = cutting.cut(place, what, one_way=one_way, only=only, keep_lan=keep_lan, loss_percent=loss, slow=slow)
    _print_cuts(found, as_json)


@app.command()
def heal(
    what: str | None = typer.Argument(
        None, help="What was cut, in the same words; everything if left out.", metavar="SITE|FROM:TO"
    ),
    directory: Path = DirectoryOption,
    as_json: bool = JsonOption,
) -> None:
    """Let packets pass again; without a word also undo what a `script/chaos` that was killed has left broken."""
    place = _absolute(directory)
    undone = faults.heal(place) if what is None else ()
    if not as_json:
        for one in undone:
            typer.echo(f"undone: {one}")
    if not undone or cutting.found(place):
        _print_cuts(cutting.heal(place, what), as_json)
    elif as_json:
        _print_cuts((), as_json)


@app.command()
def down(
    directory: Path = DirectoryOption,
    keep: bool = typer.Option(False, "--keep", help="End the processes but keep the files."),
    as_json: bool = JsonOption,
) -> None:
    """End every process of the lab and remove its files; works after any crash."""
    place = _absolute(directory)
    found = remove.down(place, keep=keep)
    left = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    if as_json:
        typer.echo(json.dumps({"ended": list(found.started) if found else [], "left": left}))
        return
    console = Console(highlight=False)
    if found is None:
        console.print(f"no lab in {escape(str(place))}: nothing to do", soft_wrap=True)
        return
    left = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    console.print(
        f"[green]down[/]: {len(found.started)} processes ended" + (", files kept" if keep else ", files removed")
    )
    if left and not keep:
        console.print(f"not the lab's, left alone: {escape(', '.join(left))}", soft_wrap=True)


def _absolute(directory: Path) -> Path:
    """Return the folder without links or dots: it is written into files that are read elsewhere."""
    try:
        return directory.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise BadInput(f"--dir {directory}: {error}", hint="choose another folder with --dir") from error


def _interrupted(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _print_done(done: list[control.Done], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([{"name": one.name, "what": one.what, "pid": one.pid} for one in done], indent=2))
        return
    for one in done:
        typer.echo(f"{one.name}: {one.what} (pid {one.pid})")


def _print_cuts(found: tuple[Cut, ...], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    for one in found:
        typer.echo(f"cut: {one.sentence}")
    if not found:
        typer.echo("nothing is cut")


def _called() -> str:
    """Return how the user can call us again: by name where it is on the PATH, else as just now."""
    return "oscar-ha" if shutil.which("oscar-ha") else os.path.relpath(sys.argv[0])


def _print_summary(directory: Path, lab: Ledger) -> None:
    console = Console(highlight=False)
    public, layout = lab.public, Layout(directory)
    suffix = "" if directory == _absolute(DEFAULT_DIRECTORY) else f" --dir {directory}"
    console.print("\n[bold green]The lab is up.[/] A clinic writes here, whoever is the primary:")
    for clinic in public["clinics"]:
        console.print(
            f"  {clinic['name']}: {clinic['host']}:{clinic['port']}, database {clinic['database']}", soft_wrap=True
        )
    console.print(f"  by hand:   mariadb --defaults-file={layout.secret('oscar.cnf')}", soft_wrap=True)
    console.print(f"Control:     {', '.join(one['url'] for one in public['controllers'])}", soft_wrap=True)
    console.print(f"Prometheus:  {public['prometheus']}")
    console.print(
        f"All of it:   {layout.ledger} (with the passwords), logs in {layout.directory / 'log'}", soft_wrap=True
    )
    called = _called()
    console.print("\n[bold]What to try next[/]")
    hints = (
        (f"{called} lab status{suffix}", "who is the primary, would a failover work"),
        (f"{called} lab kill db-clinic{suffix}", "the primary dies; status again two seconds later"),
        (f"{called} lab start db-clinic{suffix}", "it comes back and follows"),
        (f"{called} switchover --settings {public['settings']}", "back, as planned work"),
        (f"{called} lab down{suffix}", "nothing is left"),
    )
    width = max(len(command) for command, _ in hints)
    for command, what in hints:
        console.print(f"  [bold]{escape(command):<{width}}[/]  [dim]{what}[/]", soft_wrap=True)
