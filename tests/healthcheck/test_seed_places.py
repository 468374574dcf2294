"""Directories change places by rename, whatever was left half-done; nothing is thrown away without being told."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import Refused
from cluster.records import SeedPhase, SeedReport
from healthcheck.seed_places import Places, SeedMemory, interrupted

REPORT = SeedReport(id="seed-1", donor="one", phase=SeedPhase.COPYING, began="2026-01-01T00:00:00.000Z")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A node with old data and a whole copy beside it."""
    found = Places(tmp_path / "data")
    for directory, text in ((found.data, "old"), (found.fresh, "new")):
        directory.mkdir()
        (directory / "file").write_text(text)
    return found


def test_the_copy_takes_the_place_and_the_old_data_is_kept(places: Places) -> None:
    kept = places.swap("seed-1")

    assert (places.data / "file").read_text() == "new"
    assert kept is not None
    assert (Path(kept) / "file").read_text() == "old"


def test_a_swap_that_was_cut_in_the_middle_is_finished(places: Places) -> None:
    places.data.rename(places.before("seed-1"))
    kept = places.swap("seed-1")

    assert (places.data / "file").read_text() == "new"
    assert kept == str(places.before("seed-1"))


def test_a_swap_that_was_done_is_not_done_again(places: Places) -> None:
    first = places.swap("seed-1")

    assert places.swap("seed-1") == first
    assert (places.data / "file").read_text() == "new"


def test_old_data_is_never_put_over_older_data(places: Places) -> None:
    places.before("seed-1").mkdir()
    with pytest.raises(Refused, match="exists already"):
        places.swap("seed-1")

    assert (places.data / "file").read_text() == "old"


def test_the_old_data_goes_only_when_it_may(places: Places) -> None:
    places.swap("seed-1")
    places.tidy("seed-1", keep=True)
    assert places.before("seed-1").exists()
    places.tidy("seed-1", keep=False)
    assert not places.before("seed-1").exists()


def test_what_is_half_made_goes_at_the_next_attempt(places: Places) -> None:
    places.clear()
    places.clear()

    assert not places.fresh.exists()
    assert (places.data / "file").read_text() == "old"


def test_a_data_directory_that_a_server_holds_is_in_use(places: Places) -> None:
    assert not places.in_use()
    (places.data / "ibdata1").write_bytes(b"x")
    assert not places.in_use()
    # Locks of one process do not hinder itself: so another one must hold it.
    script = "import fcntl,sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(places.data / "ibdata1")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert places.in_use()
        holder.communicate(b"\n")
    assert not places.in_use()


def test_memory_survives_and_damage_is_said(places: Places) -> None:
    memory = SeedMemory(report=replace(REPORT, position="0-1-5"), ran=True, keep=False)
    assert places.recall() is None
    places.remember(memory)

    assert places.recall() == memory

    places.memory_file.write_text('{"report": {')
    damaged = places.recall()
    assert damaged is not None
    assert damaged.report.phase is SeedPhase.FAILED
    assert str(places.memory_file) in damaged.report.why
    assert "reinitialize" in damaged.report.why


@pytest.mark.parametrize("phase", SeedPhase)
def test_only_a_proven_copy_is_gone_on_with(phase: SeedPhase) -> None:
    found = interrupted(SeedMemory(report=replace(REPORT, phase=phase)))
    goes_on = phase in (SeedPhase.STARTING, SeedPhase.CATCHING_UP, SeedPhase.DONE, SeedPhase.FAILED)

    assert (found is None) == goes_on
    if found is not None:
        assert found.report.phase is SeedPhase.FAILED
        assert "reinitialize" in found.report.why


def test_a_mount_point_and_a_missing_parent_are_said_before_anything_is_copied(tmp_path: Path) -> None:
    assert "mount point" in Places(Path("/proc")).problems()[0]
    assert "there is no folder" in Places(tmp_path / "nowhere" / "data").problems()[0]
    assert Places(tmp_path / "data").problems() == []
