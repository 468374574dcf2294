"""Small disks of a lab: nothing but the lab's own is unmounted, nothing but a disk of its own is filled."""

import os
from pathlib import Path

import pytest

from chaos.lab import disks
from chaos.lab.faults import Undo, Verb
from cluster.errors import Refused

INFO = """22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:29 / /srv/lab/data/archive-clinic rw - tmpfs tmpfs rw
31 30 0:30 / /srv/lab/data/archive-clinic/deeper rw - tmpfs tmpfs rw
32 22 0:31 / /srv/lab-of-another/data rw - tmpfs tmpfs rw
33 22 0:32 / /srv/lab/with\\040space rw - tmpfs tmpfs rw
a line that is none
"""


def test_what_is_mounted_below_a_folder_is_found_the_innermost_first() -> None:
    assert disks.mounted_below(INFO, Path("/srv/lab")) == (
        "/srv/lab/data/archive-clinic/deeper", "/srv/lab/data/archive-clinic", "/srv/lab/with space",
    )  # fmt: skip


def test_a_folder_with_no_disk_of_its_own_is_never_filled(tmp_path: Path) -> None:
    """It would be the machine's disk."""
    with pytest.raises(Refused, match="no disk of its own"):
        disks.fill(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_disk_is_full_until_it_is_emptied_and_gone_once_it_is_unmounted(tmp_path: Path) -> None:
    place = tmp_path / "archive"
    try:
        disks.mount(place, 1024 * 1024)
    except Refused as error:
        pytest.skip(error.message)
    try:
        disks.fill(place)
        disks.fill(place)
        with pytest.raises(OSError, match="No space left"):
            (place / "more").write_bytes(bytes(8192))
        disks.empty(place)
        disks.empty(place)
        (place / "more").write_bytes(bytes(8192))
    finally:
        found = disks.unmount_below(tmp_path)

    assert found == (str(place),)
    assert not list(place.iterdir())
    assert Undo(verb=Verb.EMPTY, what=str(place)).text.startswith("empty ")
