"""What `oscar-ha archive` says: of every form, with and without keys, to people and to scripts."""

import json
import sys
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from replicator.archive import Archive
from replicator.holds import kept_text
from replicator.keys import NO_KEYS, add_key, read_keys
from tests.replicator.test_archive import FIRST, fill, first_log
from tests.typed import typed

COMMAND = str(Path(sys.executable).parent / "oscar-ha")


def run(*arguments: str) -> "CompletedProcess[bytes]":
    return typed("archive", *arguments)


@pytest.mark.parametrize("encrypted", [False, True])
def test_cat_gives_the_primarys_bytes_and_ls_says_what_is_there(tmp_path: Path, encrypted: bool) -> None:
    key_file, directory = tmp_path / "keys", tmp_path / "archive"
    add_key(key_file)
    with closing(Archive.open(directory, read_keys(key_file) if encrypted else NO_KEYS)) as archive:
        fill(archive, FIRST, first_log())
    where = ("--archive", str(directory), *(("--key-file", str(key_file)) if encrypted else ()))
    (listed,) = json.loads(run("ls", "--json", *where).stdout)["files"]

    assert run("cat", FIRST.file, *where).stdout == first_log().data
    assert (listed["bytes"], listed["position"]) == (len(first_log().data), "0-1-3")
    assert listed["form"] == ("encrypted" if encrypted else "plain")
    assert FIRST.file.encode() in run("ls", *where).stdout


def test_ls_without_the_key_shows_what_can_be_known(tmp_path: Path) -> None:
    key_file, directory = tmp_path / "keys", tmp_path / "archive"
    add_key(key_file)
    with closing(Archive.open(directory, read_keys(key_file))) as archive:
        fill(archive, FIRST, first_log())
    done = run("ls", "--json", "--archive", str(directory))
    (listed,) = json.loads(done.stdout)["files"]

    assert done.returncode == 0
    assert listed["bytes"] is None
    assert "which we have not" in listed["why"]


def test_without_an_archive_it_says_how_to_name_one(tmp_path: Path) -> None:
    done = run("ls")
    assert done.returncode == 2
    assert b"--archive DIR" in done.stderr
    assert run("ls", "--archive", str(tmp_path)).returncode == 2


def test_help_loses_no_name_of_a_section() -> None:
    assert "section `archive`" in " ".join(run("new-key", "--help").stdout.decode().split())


def test_a_hold_says_in_words_what_it_keeps(tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    with closing(Archive.open(directory, NO_KEYS)) as archive:
        fill(archive, FIRST, first_log())
    where = ("--archive", str(directory))

    assert b"nothing is held" in run("holds", *where).stdout
    assert b"nightly: everything after 0-1-3 is kept" in run("hold", "nightly", "--from", FIRST.file, *where).stdout
    assert b"everything after 0-1-3" in run("holds", *where).stdout
    assert kept_text("") == "everything"


def test_new_key_makes_and_rotates_and_refuses_what_is_no_key_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    assert b"1 in all" in run("new-key", str(path)).stdout
    assert b"2 in all" in run("new-key", str(path)).stdout
    assert len(read_keys(path).ring) == 2
    path.write_text("nonsense\n")
    assert run("new-key", str(path)).returncode == 2
    assert path.read_text() == "nonsense\n"
    assert run("new-key", str(tmp_path / "nowhere" / "keys")).returncode == 2


@pytest.mark.parametrize("command", [("cat", "binlog.999999"), ("hold", "nightly", "--from", "binlog.999999")])
def test_a_file_that_is_nowhere_is_said_so_and_no_epoch_is_asked_for(tmp_path: Path, command: tuple[str, ...]) -> None:
    with closing(Archive.open(tmp_path, NO_KEYS)) as archive:
        fill(archive, FIRST, first_log())

    done = run(*command, "--archive", str(tmp_path))

    assert done.returncode == 2
    assert b"has no file 'binlog.999999'" in done.stderr
    assert b"--epoch" not in done.stderr
