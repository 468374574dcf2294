"""Whose archive it is: a folder of another cluster or site is refused, and so is a replicator of another cluster."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import BadInput, Refused
from cluster.position import Position
from replicator import owner
from replicator.archive import Resume
from replicator.owner import OWNER_FILE, Owner
from replicator.remedy import Remedy, remedy_of
from replicator.source import Wanted, opened
from tests.replicator.serving import FILE, TIMING, a_log, an_archive, serving

OURS = Owner(cluster="downtown", site="toronto")


@pytest.mark.parametrize("other", [replace(OURS, cluster="uptown"), replace(OURS, site="montreal")])
def test_an_archive_of_another_cluster_or_site_is_refused_by_name(tmp_path: Path, other: Owner) -> None:
    """Two that were set up alike have the same epochs, servers and files; and a seal is the promise of one site."""
    owner.require(tmp_path, other)
    owner.note(tmp_path, other)
    owner.require(tmp_path, other)

    with pytest.raises(BadInput, match=f"'{other.cluster}', site '{other.site}', not of cluster 'downtown'") as refused:
        owner.require(tmp_path, OURS)
    assert OWNER_FILE in refused.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b'{"cluster": 1, "site": 2}', b"\xff\xfe"])
def test_a_damaged_owner_file_is_made_anew(tmp_path: Path, content: bytes) -> None:
    """It protects from a mistake, it is no lock: commits do not wait for a person because of it."""
    (tmp_path / OWNER_FILE).write_bytes(content)
    owner.require(tmp_path, OURS)
    owner.note(tmp_path, OURS)

    with pytest.raises(BadInput):
        owner.require(tmp_path, replace(OURS, site="montreal"))


def test_a_replicator_of_another_cluster_gives_nothing_and_a_person_is_asked(tmp_path: Path) -> None:
    wanted = Wanted(resume=Resume(FILE, 4, Position()), epoch=1)
    with serving(an_archive(tmp_path / "a", a_log().data), cluster="uptown") as server:
        with opened(replace(server.target(), cluster="uptown"), wanted, TIMING) as stream:
            assert "oscar-ha" in stream.server_version
        with pytest.raises(Refused, match="cluster 'uptown'") as refused:  # noqa: SIM117 - one thing each
            with opened(replace(server.target(), cluster="downtown"), wanted, TIMING):
                pass

    assert remedy_of(refused.value) is Remedy.PERSON
