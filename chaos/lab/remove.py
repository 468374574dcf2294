"""Taking a lab down: from `lab.json` alone, however far `lab up` came, and never more than the lab itself made.

Processes are found twice, by what was written down and by the mark they carry: a `lab up` that was killed between a
start and its note leaves nobody behind either.
"""

import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

from chaos.lab import disks, identity, ledger, process
from chaos.lab.identity import Identity, Life
from chaos.lab.layout import ENTRIES, Layout
from chaos.lab.ledger import STARTING, Busy, Ledger
from cluster import clock
from cluster.errors import BadInput, Bug

OWNER_DEADLINE_MS = 40_000
POLL_SECONDS = 0.05
ROUNDS_MAX = 5


def down(directory: Path, *, keep: bool) -> Ledger | None:
    """End every process of the lab and remove its files, unless `keep`. Return what was taken down, None if nothing."""
    layout = Layout(directory)
    if not directory.is_dir():
        return None
    deadline = clock.after(clock.now(), OWNER_DEADLINE_MS)
    while True:
        try:
            with ledger.locked(directory):
                found = ledger.read(layout)
                if found is not None:
                    take_down(layout, found, keep=keep)
                return found
        except Busy:
            _stop_owner(layout, force=clock.seconds_left(deadline) == 0.0)
            time.sleep(POLL_SECONDS)
        if not directory.is_dir():
            return None


def take_down(layout: Layout, found: Ledger, *, keep: bool) -> None:
    """End the processes, then remove the files. The caller holds the lock."""
    end_all(found)
    if not keep:
        remove_files(layout)
        remove_folders(found.made)


def end_all(found: Ledger) -> None:
    """End every process that was written down or carries the mark. Raises DeadlinePassed if one survives."""
    for _ in range(ROUNDS_MAX):
        alive = living(found)
        if not alive:
            return
        # The network goes last: without it the servers would wait for each other instead of ending.
        process.end([one for one in alive if not is_network(found, one)] or alive)
    raise Bug("processes of the lab appear faster than they can be ended", hint="see which with: oscar-ha lab status")


def living(found: Ledger) -> tuple[Identity, ...]:
    """Return every living process of the lab."""
    known = {one.identity for one in found.alive} | set(identity.marked(found.lab_id))
    return tuple(sorted(known, key=lambda one: one.pid))


def is_network(found: Ledger, one: Identity) -> bool:
    """Return whether this process is what holds the lab's network: alone it is no lab."""
    return found.network is not None and one == found.network.holder


def remove_files(layout: Layout) -> None:
    """Remove what a lab puts into its folder; lab.json goes last, so that a second `down` can finish a first."""
    disks.unmount_below(layout.directory)
    for name in sorted(ENTRIES, key=lambda entry: entry == layout.ledger.name):
        entry = layout.directory / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def make_folders(directory: Path) -> tuple[str, ...]:
    """Make a folder with its parents and return those that were made, the outermost first. Raises BadInput."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remove_folders(tuple(str(path) for path in reversed(missing)))
        raise BadInput(
            f"--dir {directory} cannot be made: {error.strerror}", hint="choose another folder with --dir"
        ) from error
    return tuple(str(path) for path in reversed(missing))


def remove_folders(made: tuple[str, ...]) -> None:
    """Remove folders that `make_folders` made, the innermost first, as far as they are empty."""
    for path in reversed(made):
        with suppress(OSError):
            Path(path).rmdir()


def _stop_owner(layout: Layout, *, force: bool) -> None:
    """Ask the `lab up` that holds the folder to end; it takes its lab down by itself."""
    found = ledger.read(layout)
    if found is None or found.state != STARTING or identity.life(found.owner) is Life.ENDED:
        if force:
            raise Busy(f"another lab command holds {layout.directory}", hint="wait for it, then try again")
        return
    identity.send(found.owner, signal.SIGKILL if force else signal.SIGTERM)
