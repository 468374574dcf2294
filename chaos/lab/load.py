"""Loading SQL files as a clinic would: through its endpoint, so that everything goes through the stream."""

import os
import subprocess
from pathlib import Path

from chaos.lab import probe, process
from chaos.lab.health import Reporter
from chaos.lab.layout import DATABASE, OSCAR_USER, Layout, Request
from chaos.lab.process import choose_error, environment
from chaos.lab.render import Programs
from cluster import clock
from cluster.errors import BadInput, DeadlinePassed
from cluster.settings import Clinic, Settings

FILE_DEADLINE_SECONDS = 900
CAUGHT_UP_DEADLINE_MS = 180_000
LAG_MS_MAX = 3_000
CLIENT_FILE = "oscar.cnf"


def client_file(clinic: Clinic, password: str) -> str:
    """Return an option file with which the `mariadb` client connects as OSCAR through a clinic's HAProxy."""
    return (
        f"[client]\nprotocol=tcp\nhost={clinic.host}\nport={clinic.port}\nuser={OSCAR_USER}\npassword={password}\n"
        f"[mariadb-client]\ndatabase={DATABASE}\n"
    )


def run(
    request: Request, layout: Layout, programs: Programs, settings: Settings, lab_id: str, report: Reporter
) -> None:
    """Load every file in order, each from its own folder; then wait until the standbys have it too."""
    for path in request.load:
        report.working(f"loading {path.name}")
        begin = clock.now()
        _load(path.resolve(), layout, programs, lab_id)
        report.done(f"loaded {path.name}", f"{clock.ms_between(begin, clock.now()) / 1000:.1f} s")
    if request.load:
        _await_caught_up(settings, report)


def _load(path: Path, layout: Layout, programs: Programs, lab_id: str) -> None:
    command = (
        programs.client, f"--defaults-file={layout.secret(CLIENT_FILE)}", "--local-infile=1",
        "--default-character-set=utf8", "--batch",
    )  # fmt: skip
    try:
        with path.open("rb") as text:
            done = subprocess.run(
                command, stdin=text, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=path.parent,
                env=environment(lab_id, os.environ), timeout=FILE_DEADLINE_SECONDS, check=False, start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise BadInput(f"--load {path} cannot be read: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise DeadlinePassed(f"--load {path} did not end within {FILE_DEADLINE_SECONDS} s") from error
    if done.returncode != 0:
        said = choose_error(done.stderr.decode(errors="replace"))
        raise BadInput(f"--load {path}: {said}", hint="mend that statement, or leave the file out")


def _await_caught_up(settings: Settings, report: Reporter) -> None:
    def missing() -> str:
        state, _ = probe.cluster(settings)
        nodes = (state or {}).get("nodes", [])
        slow = [str(node["node"]) for node in nodes if node.get("role") == "standby" and _behind(node.get("lag_ms"))]
        reason = f"{', '.join(slow)} still applies" if slow else "" if nodes else "no controller answers"
        if reason:
            report.working(reason)
        return reason

    process.wait_until(missing, deadline_ms=CAUGHT_UP_DEADLINE_MS, what="a standby does not catch up")
    report.done("standbys", "have applied everything that was loaded")


def _behind(lag_ms: float | None) -> bool:
    return lag_ms is None or lag_ms > LAG_MS_MAX
