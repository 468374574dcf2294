"""`lab up`: from nothing to a healthy cluster, or back to nothing.

What can be refused is refused before anything is written. After that `lab.json` exists before the first process, and
whatever goes wrong takes everything down again.
"""

import os
import pwd
import secrets
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from chaos.lab import (
    connecting,
    database,
    disks,
    health,
    identity,
    ledger,
    load,
    preflight,
    process,
    remove,
    render,
    seed,
)
from chaos.lab.health import Reporter
from chaos.lab.identity import Identity
from chaos.lab.layout import (
    ARCHIVE_KEYS,
    DATABASE,
    FOLDERS,
    HOST,
    OSCAR_USER,
    Layout,
    Request,
    Wires,
    check,
    kinds,
    settings_of,
)
from chaos.lab.ledger import STARTING, UP, Ledger
from chaos.lab.names import SITES, Kind, Part
from chaos.lab.render import Programs
from chaos.lab.topology import ONLOOKER, place_of
from cluster import certificates
from cluster import settings as cluster_settings
from cluster.dialect import dialect_of
from cluster.errors import BadInput, Refused
from cluster.settings import Settings
from replicator.keys import add_key

SECRET_BYTES = 24
SECRETS = ("admin", "replication", "verify", "token", "oscar")
HAPROXY_CHECK_DEADLINE_SECONDS = 10
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def up(request: Request, report: Reporter, *, keep: bool = False) -> Ledger:
    """Start a lab and return it when it is healthy. Whatever fails takes it down again; `keep` keeps its files."""
    layout = Layout(request.directory)
    check(request)
    preflight.machine()
    programs = preflight.programs()
    preflight.writable_folder(request.directory)
    made = remove.make_folders(request.directory)
    with _undone(lambda: remove.remove_folders(made)), ledger.locked(request.directory):
        made = _make_room(layout, report) or made
        ports = preflight.choose_ports(request)
        lab = _begin(request, layout, made, ports)
        with _undone(lambda: remove.take_down(layout, ledger.read(layout) or lab, keep=keep)):
            return _Builder(request, layout, programs, lab, report).run()


def _make_room(layout: Layout, report: Reporter) -> tuple[str, ...]:
    """Clear away a lab of which nothing lives. Raises BadInput when one runs, or when the folder is somebody else's."""
    found = ledger.read(layout)
    if found is None:
        strange = [name for name in (*FOLDERS, layout.settings.name) if (layout.directory / name).exists()]
        if strange:
            raise BadInput(
                f"{layout.directory} holds {', '.join(strange)}, but no lab.json: it is not a lab's",
                hint="choose another folder with --dir",
            )
        return ()
    alive = remove.living(found)
    if any(not remove.is_network(found, one) for one in alive):
        raise BadInput(
            f"a lab runs in {layout.directory} already ({len(found.alive)} processes)",
            hint="see it with: oscar-ha lab status; end it with: oscar-ha lab down; or choose another folder with --dir",
        )
    remove.end_all(found)
    remove.remove_files(layout)
    report.done("cleared", "what an ended lab had left in the folder")
    return found.made


def _begin(request: Request, layout: Layout, made: tuple[str, ...], ports: dict[str, int]) -> Ledger:
    owner = identity.identify(os.getpid())
    lab = Ledger(
        lab_id=uuid.uuid4().hex,
        state=STARTING,
        clinics=request.clinics,
        zookeepers=request.zookeepers,
        boot=identity.boot(),
        owner=owner or Identity(os.getpid(), 0),
        made=made,
        ports=ports,
    )
    ledger.write(layout, lab)
    return lab


class _Builder:
    """One run of `lab up`, once its folder is ours."""

    def __init__(self, request: Request, layout: Layout, programs: Programs, lab: Ledger, report: Reporter) -> None:
        self._request = request
        self._layout = layout
        self._programs = programs
        self._lab = lab
        self._report = report
        self._user = pwd.getpwuid(os.geteuid()).pw_name

    def run(self) -> Ledger:
        for folder in FOLDERS:
            (self._layout.directory / folder).mkdir(mode=0o700)
        self._connect()
        settings = self._write_files()
        self._start(Kind.ZOOKEEPER)
        self._seed(settings)
        self._start(Kind.DATABASE)
        self._ready("ZooKeeper", Kind.ZOOKEEPER)
        self._ready("databases", Kind.DATABASE)
        database.require(settings)
        self._mount_disks()
        ours = (Kind.WATCHDOG, Kind.REPLICATOR, Kind.CONTROLLER)
        self._start(*ours, Kind.HAPROXY, Kind.PROMETHEUS)
        self._ready("watchdogs", Kind.WATCHDOG)
        self._ready("replicators", Kind.REPLICATOR)
        self._ready("controllers", Kind.CONTROLLER)
        self._ready("HAProxy", Kind.HAPROXY)
        self._ready("Prometheus", Kind.PROMETHEUS)
        health.await_healthy(settings, self._lab, self._layout, self._report)
        health.await_clinics(settings, self._secret("oscar"), self._report)
        load.run(self._request, self._layout, self._programs, settings, self._lab.lab_id, self._report)
        self._save(replace(self._lab, state=UP))
        return self._lab

    def _connect(self) -> None:
        """Make the network that was asked for, or say why everything is on loopback instead."""
        if self._request.wires is Wires.LOOPBACK:
            return
        self._report.working("making the network")
        found, why = connecting.connect(self._request, self._layout, self._lab.lab_id)
        self._save(replace(self._lab, network=found))
        told = f"not possible here ({why}): everything is on loopback, at no distance, and nothing can be cut"
        self._report.done("network", f"{len(found.hosts)} hosts in {found.block}.0/24" if found else told)

    def _mount_disks(self) -> None:
        """Give the archives disks of their own, or say why they have none."""
        if self._request.archive_disk_bytes is None:
            return
        try:
            for site in SITES:
                disks.mount(self._layout.archive(site), self._request.archive_disk_bytes)
        except Refused as error:
            self._report.done("disks", f"not possible here ({error.message}): no disk can be filled")

    # -- files ------------------------------------------------------------------------------------------------------

    def _write_files(self) -> Settings:
        """Write everything that can be known before a server runs, and let its readers check it."""
        for part in kinds(self._request.parts, Kind.ZOOKEEPER):
            self._layout.data(part.name).mkdir()
            (self._layout.data(part.name) / "myid").write_text(f"{part.number}\n", encoding="utf-8")
        for name in SECRETS:
            write_private(self._layout.secret(name), secrets.token_urlsafe(SECRET_BYTES) + "\n")
        if self._request.tls:
            write_certificates(self._layout, self._lab.hosts.values())
        if self._request.encrypt_archive:
            add_key(self._layout.secret(ARCHIVE_KEYS))
        raw = settings_of(self._request, self._lab.ports, self._lab.hosts)
        self._layout.settings.write_text(render.toml(raw), encoding="utf-8")
        settings = cluster_settings.load(self._layout.settings)
        for file, text in self._configurations(settings):
            self._layout.config(file).write_text(text, encoding="utf-8")
        write_private(
            self._layout.secret(load.CLIENT_FILE), load.client_file(settings.clinics[0], self._secret("oscar"))
        )
        self._check_haproxy()
        self._save(replace(self._lab, public=_public(self._layout, settings, self._lab, self._secret)))
        return settings

    def _configurations(self, settings: Settings) -> Iterator[tuple[str, str]]:
        init_file = self._layout.config("born-fenced.sql")
        database.write_init_file(settings, init_file)
        for node in settings.nodes:
            required = dialect_of(settings).server_options(node, settings)
            yield (
                f"{node.name}.cnf",
                render.option_file(self._layout, node, required, self._request.options, init_file, self._user),
            )
        for part in kinds(self._request.parts, Kind.ZOOKEEPER):
            yield (
                f"{part.name}.cfg",
                render.zookeeper(self._layout, part, self._lab.ports, self._request.zookeepers, self._lab.hosts),
            )
        yield render.HOLD, render.hold()
        for clinic in settings.clinics:
            yield f"haproxy-{clinic.name}.cfg", render.haproxy(self._layout, clinic, settings.nodes)
        yield "prometheus.yml", render.prometheus(settings)

    def _check_haproxy(self) -> None:
        for part in kinds(self._request.parts, Kind.HAPROXY):
            file = self._layout.config(f"{part.name}.cfg")
            done = subprocess.run(
                (self._programs.haproxy, "-c", "-q", "-f", str(file)),
                capture_output=True, text=True, check=False, timeout=HAPROXY_CHECK_DEADLINE_SECONDS,
            )  # fmt: skip
            if done.returncode != 0:
                raise BadInput(f"{part.name}: HAProxy refuses its configuration: {process.choose_error(done.stderr)}")

    def _seed(self, settings: Settings) -> None:
        self._report.working("making the databases")
        onlooker = self._lab.network.topology.host(ONLOOKER) if self._lab.network is not None else None
        statements = (*database.account_statements(settings, onlooker), *seed.oscar_statements(self._secret("oscar")))
        seed.make(self._request, self._programs, self._lab.lab_id, statements, self._user, os.environ)
        seed.copy(self._layout, [node.name for node in settings.nodes])
        self._report.done("data directories", f"{len(settings.nodes)} identical ones, accounts included")

    def _secret(self, name: str) -> str:
        return self._layout.secret(name).read_text(encoding="utf-8").strip()

    # -- processes --------------------------------------------------------------------------------------------------

    def _start(self, *wanted: Kind) -> None:
        for kind in wanted:
            for part in kinds(self._request.parts, kind):
                command = render.command(part, self._layout, self._programs, self._lab.ports)
                if self._lab.network is not None:
                    command = (*self._lab.network.enter(place_of(part)), *command)
                started = process.spawn(part.name, command, self._layout, self._lab.lab_id)
                self._save(self._lab.with_started(started))

    def _ready(self, what: str, kind: Kind) -> None:
        found: Sequence[Part] = kinds(self._request.parts, kind)
        settings = cluster_settings.load(self._layout.settings)
        health.await_parts(found, settings, self._lab, self._layout, self._report)
        self._report.done(what, f"{len(found)} running")

    def _save(self, lab: Ledger) -> None:
        self._lab = lab
        ledger.write(self._layout, lab)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first moment on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def write_certificates(layout: Layout, hosts: Iterable[str] = ()) -> None:
    """Write the lab's certificates. All its parts share one, wherever they are. The authority's key is not kept."""
    authority = certificates.make_authority("lab")
    layout.certificate("authority").write_bytes(authority.certificate_pem)
    issued = certificates.issue(authority, (HOST, "localhost", *hosts))
    issued.write(layout.certificate("server"), layout.certificate("server-key"))


def _public(layout: Layout, settings: Settings, lab: Ledger, secret: Callable[[str], str]) -> dict[str, Any]:
    """Return the part of lab.json that others rely on (keep it stable)."""
    return {
        "clinics": [
            {"name": one.name, "host": one.host, "port": one.port, "user": OSCAR_USER, "password": secret("oscar"),
             "database": DATABASE, "runtime_port": one.runtime_port}
            for one in settings.clinics
        ],
        "nodes": [
            {"name": one.name, "site": one.site, "host": one.host, "port": one.port,
             "socket": str(layout.socket(one.name)), "admin_user": settings.accounts.admin_user,
             "admin_password": secret("admin"), "admin_port": one.admin_port, "pid": None, "watchdog_url": one.watchdog_url}
            for one in settings.nodes
        ],
        "replicators": [
            {"site": one.site, "host": one.host, "port": one.port, "archive": str(one.archive), "url": one.url}
            for one in settings.replicators
        ],
        "controllers": [{"name": one.name, "site": one.site, "url": one.url} for one in settings.controllers],
        "token": secret("token"),
        "zookeeper": ",".join(settings.zookeeper),
        "prometheus": f"http://127.0.0.1:{lab.ports['prometheus']}",
        "settings": str(layout.settings),
    }  # fmt: skip


@contextmanager
def _undone(undo: Callable[[], None]) -> Iterator[None]:
    """Undo on any way out but success: an error, Ctrl-C, SIGTERM. A second Ctrl-C does not stop the undoing."""
    try:
        yield
    except BaseException:
        with _undisturbed():
            undo()
        raise


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore what a person or a supervisor sends; only the main thread may say so, and only it is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
