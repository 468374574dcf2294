"""`owner.json`: whose archive a directory is. Another cluster's looks the same: epoch 1, server 1, binlog.000001.

What is pulled is compared with what is archived, position by position; two clusters that were set up alike agree at first.
The seal is of one site too: with another's archive a replicator would forget what it has promised (decision 0083).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from cluster import durable, records
from cluster.errors import BadInput

OWNER_FILE = "owner.json"
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The replicator that writes an archive."""

    cluster: str
    site: str

    def __str__(self) -> str:
        return f"cluster {self.cluster!r}, site {self.site!r}"


def require(directory: Path, ours: Owner) -> None:
    """Raise BadInput when an archive says that it is somebody else's."""
    known = _read(directory)
    if known is not None and known != ours:
        raise BadInput(f"archive {directory} is that of {known}, not of {ours}",
                       hint="name the right folder in the settings; if it was copied or renamed on purpose, remove"
                            f" {OWNER_FILE} there")  # fmt: skip


def note(directory: Path, ours: Owner) -> None:
    """Write whose archive it is. Whoever calls has its lock, and `require` was content."""
    if _read(directory) != ours:
        durable.replace_file(directory / OWNER_FILE, json.dumps(asdict(ours)).encode() + b"\n")
        log.info("archive.owned", archive=str(directory), cluster=ours.cluster, site=ours.site)


def _read(directory: Path) -> Owner | None:
    """Return what the file says; None when there is none, or none that can be read: it is made anew."""
    path = directory / OWNER_FILE
    try:
        return records.decode(Owner, path.read_bytes(), where=str(path))
    except (OSError, BadInput):
        return None
