"""The three data directories: made once, copied twice, identical and with an empty GTID position.

The accounts are made in bootstrap mode, which has no network, no binlog and no password on a command line. Every
node therefore begins with the same accounts and with nothing that another node has not.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chaos.lab.layout import DATABASE, OSCAR_USER, Layout, Request
from chaos.lab.process import choose_error, environment
from chaos.lab.render import LAB_OPTIONS, Programs
from cluster.errors import BadInput, DeadlinePassed

INSTALL_DEADLINE_SECONDS = 120
TEMPLATE = "template"


def make(
    request: Request, programs: Programs, lab_id: str, statements: Sequence[str], user: str, environ: Mapping[str, str]
) -> None:
    """Make the data directory of every node. Raises BadInput with the server's own words."""
    layout = Layout(request.directory)
    template = layout.data(TEMPLATE)
    options, temporary = layout.config("template.cnf"), layout.temporary(TEMPLATE)
    temporary.mkdir(exist_ok=True)
    lines = [name if value is None else f"{name}={value}" for name, value in LAB_OPTIONS.items()]
    lines += [option.name if option.value is None else f"{option.name}={option.value}" for option in request.options]
    options.write_text(
        "\n".join(["[mariadbd]", f"user={user}", f"tmpdir={temporary}", *lines]) + "\n", encoding="utf-8"
    )
    run = _Runner(layout, environment(lab_id, environ))
    run("install", (
        programs.install_db, f"--defaults-file={options}", f"--datadir={template}", f"--user={user}",
        "--skip-test-db", "--auth-root-authentication-method=socket", f"--auth-root-socket-user={user}",
    ))  # fmt: skip
    run("accounts", (programs.mariadbd, f"--defaults-file={options}", f"--datadir={template}", "--bootstrap"),
        text="FLUSH PRIVILEGES;\n" + "".join(f"{statement};\n" for statement in statements))  # fmt: skip


def copy(layout: Layout, nodes: Sequence[str]) -> None:
    """Give every node its copy, and a folder for temporary files; the last one gets the template itself."""
    for node in nodes:
        layout.temporary(node).mkdir()
    template = layout.data(TEMPLATE)
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: shutil.copytree(template, layout.data(node)), nodes[:-1]))
    template.rename(layout.data(nodes[-1]))


def oscar_statements(password: str) -> tuple[str, ...]:
    """Return what makes OSCAR's database and an account that may do all in it, and nothing outside."""
    return (
        "DELETE FROM mysql.global_priv WHERE User = ''",
        "FLUSH PRIVILEGES",
        f"CREATE DATABASE {DATABASE} DEFAULT CHARACTER SET utf8mb3 DEFAULT COLLATE utf8mb3_general_ci",
        f"CREATE USER '{OSCAR_USER}'@'%' IDENTIFIED BY '{password}'",
        f"GRANT ALL PRIVILEGES ON `{DATABASE}`.* TO '{OSCAR_USER}'@'%'",
        # A clinic may read in which epoch its connection was made: the checks of its traffic rely on it.
        f"GRANT SELECT ON oscar_ha.* TO '{OSCAR_USER}'@'%'",
    )


class _Runner:
    """Runs a program to its end with its output in a log of its own."""

    def __init__(self, layout: Layout, environ: Mapping[str, str]) -> None:
        self._layout = layout
        self._environ = dict(environ)

    def __call__(self, name: str, command: Sequence[str], text: str = "") -> None:
        log: Path = self._layout.log(name)
        try:
            done = subprocess.run(
                command, input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self._environ,
                cwd=self._layout.directory / "run", timeout=INSTALL_DEADLINE_SECONDS, check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise DeadlinePassed(f"{command[0]} did not end within {INSTALL_DEADLINE_SECONDS} s") from error
        log.write_bytes(done.stdout)
        if done.returncode != 0:
            said = choose_error(done.stdout.decode(errors="replace"))
            raise BadInput(
                f"MariaDB's data directory cannot be made: {said}", hint="mend the --mysqld-option that it names"
            )
