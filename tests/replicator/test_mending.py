"""A byte flipped at rest heals by itself: a running system with a standby that needs the file and a peer that has it."""

import os
import threading
from contextlib import closing
from pathlib import Path

import pytest

from cluster.errors import Refused
from cluster.position import Position
from cluster.settings import ArchiveRules
from replicator import indexes, mending
from replicator.archive import Archive
from replicator.frames import Damaged
from replicator.keeping import Keeper
from replicator.keys import NO_KEYS
from replicator.mending import Expected, Got
from replicator.metrics import Metrics
from replicator.scrubbing import Scrubber, damage_of
from tests.replicator.house import House, until
from tests.replicator.test_archive import FIRST
from tests.replicator.test_epochs import epoch_files
from tests.replicator.test_verifying import NEXT_FILE, RING, fill_two
from tests.servers.mariadb import MariaDBServer

ROWS = 60
KILLS = 3


def flip(path: Path, at: int) -> None:
    """Change a byte of a file as a bad disk does: in place."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


# -- without servers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [NO_KEYS, RING], ids=["plain", "encrypted"])
@pytest.mark.parametrize("harm", ["a byte", "cut", "removed"])
def test_what_a_disk_has_lost_is_found_by_reading_again_and_after_a_start(
    tmp_path: Path, keys: object, harm: str
) -> None:
    rules = ArchiveRules(scrub_every_hours=0.00001)
    assert keys is NO_KEYS or keys is RING
    with closing(Archive.open(tmp_path / "archive", keys)) as archive:
        fill_two(archive)
        Keeper(archive, threading.Event()).tick()
        segment = archive.epochs[1].segments[0]
        assert damage_of(segment) is None
        size = segment.path.stat().st_size
        if harm == "a byte":
            flip(segment.path, size // 2)
        elif harm == "cut":
            os.truncate(segment.path, size // 2)
        else:
            segment.path.unlink()
        scrubber = Scrubber(archive, rules, Metrics("test"), lambda: None)
        assert scrubber.tick()

        assert segment.damage is not None
    if harm == "removed":
        return  # at its front an archive may end anywhere
    with closing(Archive.open(tmp_path / "archive", keys)) as again:
        first, second = again.epochs[1].segments
        assert (first.file, str(first.position), str(second.start)) == (FIRST.file, "0-1-6", "0-1-6")
        assert indexes.head(first.stored) is not None, "what proves the file is kept"
        assert Keeper(again, threading.Event()).tick() == 0, "no index is made of what is damaged"
        assert (first.damage is not None) == (harm == "cut"), "a start reads no file, but its size tells"
        assert first.identity in Scrubber(again, rules, Metrics("test"), lambda: None).state.damaged


def test_a_round_goes_on_after_a_start_where_it_was(tmp_path: Path) -> None:
    with closing(Archive.open(tmp_path / "archive")) as archive:
        fill_two(archive)
        Keeper(archive, threading.Event()).tick()
        archive.end(1, archive.epochs[1].position)
        Keeper(archive, threading.Event()).tick()
        first = Scrubber(archive, ArchiveRules(), Metrics("test"), lambda: None)
        assert first.tick()
        metrics = Metrics("test")
        second = Scrubber(archive, ArchiveRules(), metrics, lambda: None)

        assert second.state.after == (1, 3)
        assert (second.tick(), second.tick()) == (True, False)
        assert second.state.finished is not None
        assert second.state.files == 2
        assert not second.tick(), "the next round is due in a week"


def test_nobody_is_led_past_a_file_that_is_missing(tmp_path: Path) -> None:
    with closing(Archive.open(tmp_path / "archive")) as archive:
        fill_two(archive)
        Keeper(archive, threading.Event()).tick()
        folder = archive.epochs[1].directory
        (folder / NEXT_FILE).rename(folder / "binlog.000005")
    with closing(Archive.open(tmp_path / "archive")) as again:
        missing = again.epochs[1].segments[1]

        assert (missing.file, missing.damage) == (NEXT_FILE, "it is missing")
        with pytest.raises(Damaged):
            missing.open()


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_a_lost_epoch_json_is_made_anew_and_the_lineage_has_the_last_word(tmp_path: Path, harm: str) -> None:
    with closing(Archive.open(tmp_path / "archive")) as archive:
        fill_two(archive)
        path = archive.epochs[1].directory / "epoch.json"
    good = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"{" + good[5:])
    with closing(Archive.open(tmp_path / "archive")) as again:
        assert again.epochs[1].start.rebuilt
        again.begin(FIRST)
        assert not again.epochs[1].start.rebuilt

        assert path.read_bytes() == good
        assert str(again.epochs[1].position) == "0-1-7"


P3, P6 = Position.parse("0-1-3"), Position.parse("0-1-6")
GOT = Got(start=P3, position=P6, next_file="binlog.000004", size=900, sha256="aa")
PROOFS = {
    "the index is enough": (Expected(start=P3, position=P6, next_file=None, size=900, sha256="aa"), None),
    "another SHA-256": (Expected(start=P3, position=P6, next_file=None, size=900, sha256="bb"), "SHA-256"),
    "another size": (Expected(start=P3, position=P6, next_file=None, size=901, sha256="aa"), "SHA-256"),
    "no index, both ends agree": (Expected(start=P3, position=P6, next_file="binlog.000004"), None),
    "no index, another begin": (Expected(start=P6, position=P6, next_file=None), "begins after"),
    "no index, another end": (Expected(start=P3, position=P3, next_file=None), "ends at"),
    "no index, another file next": (Expected(start=P3, position=P6, next_file="binlog.000005"), "goes on in"),
    "nothing proves an end": (Expected(start=P3, position=None, next_file=None), "nothing here proves"),
}


@pytest.mark.parametrize("situation", PROOFS)
def test_what_is_not_proved_takes_no_place(situation: str) -> None:
    expected, words = PROOFS[situation]
    said = mending.objection(expected, GOT)

    assert said is None if words is None else words in (said or "")


def test_a_file_that_changed_meanwhile_is_not_replaced_and_few_damaged_ones_are_kept(tmp_path: Path) -> None:
    with closing(Archive.open(tmp_path / "archive")) as archive:
        fill_two(archive)
        segment = archive.epochs[1].segments[0]
        with pytest.raises(Refused, match="changed meanwhile"):
            mending.install(archive, segment, segment, segment.generation + 1)
        mending.set_aside(archive, segment)
        mending.set_aside(archive, segment)
        kept = list((archive.directory / "damaged").iterdir())
        assert [path.read_bytes() for path in kept] == [segment.path.read_bytes()], "the same file is kept once"
        for number in range(2 * mending.KEPT_MAX):
            (archive.directory / "damaged" / f"x.replaced-{number:03d}").write_bytes(b"")
        kept[0].unlink()
        mending.set_aside(archive, segment)

        assert len(list((archive.directory / "damaged").iterdir())) == mending.KEPT_MAX


# -- with servers ---------------------------------------------------------------------------------------------------


def archived_by(house: House, *sites: str) -> MariaDBServer:
    """Start a primary and replicators, and let them archive three closed files, each with its index."""
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    for site in sites:
        house.replicator(site)
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT)")
    for number in range(3):
        rows = [f"INSERT INTO d.t VALUES ({1000 * number + n}, REPEAT('{n % 10}', 20000))" for n in range(ROWS)]
        primary.run(*rows, "FLUSH BINARY LOGS")
    primary.run("INSERT INTO d.t VALUES (9999, 'end')")
    for site in sites:
        house.await_durable(site, house.position("clinic"))
        until(lambda: len(list(folder_of(house, site).glob("*.index"))) == 3, what="the indexes")  # noqa: B023 - called in this very round
    return primary


def folder_of(house: House, site: str) -> Path:
    return house.archive(site) / "epochs" / "0000000001-1"


@pytest.mark.servers
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_byte_flipped_at_rest_is_fetched_again_from_a_peer_and_the_standby_that_needs_it_goes_on(
    house: House, encrypted: bool
) -> None:
    """The primary has purged the file. Nobody does anything: the standby is refused, the file is mended, it comes back."""
    house.use_tls()
    if encrypted:
        house.encrypt()
    primary = archived_by(house, "toronto", "montreal")
    primary.run("PURGE BINARY LOGS TO 'binlog.000005'")
    whole = epoch_files(house, "toronto", 1)
    path = sorted(folder_of(house, "toronto").glob("binlog.*[0-9]"))[1]
    flip(path, path.stat().st_size // 2)
    house.database("toronto")
    house.follow("toronto", position="")
    house.await_applied("toronto", house.position("clinic"))
    report = house.await_health("toronto", lambda report: not report.damaged, what="nothing is damaged any more")
    until(lambda: "archive.mended" in (house.directory / "toronto.log").read_text(), what="it is logged")

    assert house.servers["toronto"].value("CHECKSUM TABLE d.t") == primary.value("CHECKSUM TABLE d.t")
    assert report.damaged_files == 0
    if not encrypted:
        assert epoch_files(house, "toronto", 1) == whole
    else:
        assert path.read_bytes() != whole[path.name], "a run of its own, under our key"
    assert len(list((house.archive("toronto") / "damaged").glob("*.replaced-*"))) == 1


@pytest.mark.servers
def test_a_file_that_nobody_has_whole_is_said_and_one_that_the_primary_has_is_fetched_from_there(house: House) -> None:
    house.archive_rules(scrub_every_hours=0.0005)
    primary = archived_by(house, "toronto", "montreal", "clinic")
    first, second = sorted(folder_of(house, "toronto").glob("binlog.*[0-9]"))[:2]
    everywhere = {site: folder_of(house, site) / first.name for site in ("toronto", "montreal", "clinic")}
    whole = first.read_bytes()
    primary.run(f"PURGE BINARY LOGS TO '{second.name}'")
    for damaged in everywhere.values():
        flip(damaged, len(whole) // 2)
        (damaged.parent / second.name).unlink()
    report = house.await_health("toronto", lambda report: any(one.nobody for one in report.damaged), what="said")
    house.await_health("toronto", lambda report: len(report.damaged) == 1, what="the other comes from the primary")
    (said,) = [one for one in report.damaged if one.nobody]

    assert said.file.endswith(first.name)
    assert "a person must: put a whole" in said.state
    first.write_bytes(whole)  # that person
    house.await_health("toronto", lambda report: not report.damaged, what="it is believed")
    assert second.read_bytes()[30:] == (primary.datadir / second.name).read_bytes()[30:]
    house.await_health("montreal", lambda report: not report.damaged, what="the others fetch it from there")


@pytest.mark.servers
def test_a_kill_at_any_moment_of_the_healing_leaves_a_file_that_heals(house: House) -> None:
    archived_by(house, "toronto", "montreal")
    process, path = house.replicators["toronto"], sorted(folder_of(house, "toronto").glob("binlog.*[0-9]"))[1]
    whole, log = path.read_bytes(), house.directory / "toronto.log"
    for number in range(KILLS):
        process.kill()
        os.truncate(path, len(whole) // 2)
        found = log.read_text().count("archive.damaged")
        house.replicator("toronto", wait=False)
        # From the moment it is known to be damaged, a little later each time, until past the end of the healing.
        until(lambda: log.read_text().count("archive.damaged") > found, what="it is found")  # noqa: B023 - called in this very round
        threading.Event().wait(0.12 * number)
        process.kill()
        kept = path.read_bytes()
        assert kept in (whole, whole[: len(whole) // 2]), "the old one or the whole one, nothing between"
        house.replicator("toronto")
        house.await_health("toronto", lambda report: not report.damaged, what="it is whole")
        assert path.read_bytes() == whole
    until(lambda: not list((house.archive("toronto") / "mending").iterdir()), what="what was fetched is tidied up")
