"""A node made anew from nothing: an empty data directory, and everything since the first epoch from its site's archive.

For a node that has transactions the cluster never had, or that refuses to start. Its old binlogs are put aside first:
whoever wants to compare them later still can.
"""

import os
import pwd
import shutil
from pathlib import Path

from chaos.lab import control, database, ledger, preflight, seed
from chaos.lab.layout import Layout, Request
from chaos.lab.topology import ONLOOKER
from cluster import settings

KEPT = "binlogs"
"""The folder beside the data directories where the old binlogs go, one folder a rebuild."""


def rebuild(request: Request, node: str) -> Path:
    """Make a node anew and start it, without waiting for it; return the folder its old binlogs are in now."""
    layout = Layout(request.directory)
    pristine = _pristine(request, layout)
    control.kill(request.directory, node)
    kept = _put_aside(layout, node)
    shutil.rmtree(layout.data(node))
    shutil.copytree(pristine, layout.data(node))
    control.start(request.directory, node, wait=False)
    return kept


def binlog_folders(directory: Path, node: str) -> tuple[Path, ...]:
    """Return every folder that holds binlogs this node wrote, in any of its lives."""
    layout = Layout(directory)
    return (layout.data(node), *sorted(layout.data(KEPT).glob(f"{node}.*")))


def _pristine(request: Request, layout: Layout) -> Path:
    """Return a data directory as `lab up` makes it: made at the first need, then copied."""
    made = layout.data(seed.TEMPLATE)
    if not made.exists():
        password = layout.secret("oscar").read_text(encoding="utf-8").strip()
        lab = ledger.require(layout)
        onlooker = lab.network.topology.host(ONLOOKER) if lab.network is not None else None
        accounts = database.account_statements(settings.load(layout.settings), onlooker)
        user = pwd.getpwuid(os.geteuid()).pw_name
        statements = (*accounts, *seed.oscar_statements(password))
        seed.make(request, preflight.programs(), lab.lab_id, statements, user, os.environ)
    return made


def _put_aside(layout: Layout, node: str) -> Path:
    number = len(binlog_folders(layout.directory, node))
    kept = layout.data(KEPT) / f"{node}.{number}"
    kept.mkdir(parents=True)
    for path in layout.data(node).glob("binlog.[0-9]*"):
        path.rename(kept / path.name)
    return kept
