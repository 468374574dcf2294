"""Loading SQL files as a clinic would: through its endpoint, so that everything goes through the stream."""

import os
import re
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
MS_PER_SECOND = 1000
_ABSENT = re.compile(r"Failed to open file '([^']+)', error: 2$")


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
        absent = _load(path.resolve(), layout, programs, lab_id)
        without = f", without {', '.join(absent)}: it names them, but they are not there" if absent else ""
        seconds = clock.ms_between(begin, clock.now()) / MS_PER_SECOND
        report.done("loaded", f"{path.name} in {seconds:.1f} s{without}")
    if request.load:
        _await_caught_up(settings, report)


def judge(said: str) -> tuple[str, tuple[str, ...]]:
    """Return the first error of a client that was told to go on, and the files it was to include but did not find.

    OSCAR's own scripts `source` files that are not shipped with them: this is said, and is no reason to stop.
    """
    lines = [line for line in said.splitlines() if line.startswith("ERROR")]
    absent = tuple(found[1] for line in lines if (found := _ABSENT.search(line)))
    wrong = [line for line in lines if not _ABSENT.search(line)]
    return (wrong[0] if wrong else ""), absent


def _load(path: Path, layout: Layout, programs: Programs, lab_id: str) -> tuple[str, ...]:
    command = (
        programs.client, f"--defaults-file={layout.secret(CLIENT_FILE)}", "--local-infile=1",
        "--default-character-set=utf8", "--batch", "--force",
    )  # fmt: skip
    if not os.access(path, os.R_OK):
        raise BadInput(f"--load {path} cannot be read", hint="mend its permissions")
    # Thousands of single rows are one transaction: each commit waits for a disk in another city.
    script = f"SET autocommit = 0;\nsource {path}\ndelimiter ;\nCOMMIT;\n"
    try:
        done = subprocess.run(
            command, input=script.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=path.parent,
            env=environment(lab_id, os.environ), timeout=FILE_DEADLINE_SECONDS, check=False, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DeadlinePassed(f"--load {path} did not end within {FILE_DEADLINE_SECONDS} s") from error
    text = done.stderr.decode(errors="replace")
    wrong, absent = judge(text)
    if wrong or (done.returncode != 0 and not absent):
        raise BadInput(
            f"--load {path}: {wrong or choose_error(text)}", hint="mend that statement, or leave the file out"
        )
    return absent


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
