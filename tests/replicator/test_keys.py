"""The key file: what is taken, what is refused with a mend, and that no secret is ever shown."""

import base64
from pathlib import Path

import pytest

from cluster.errors import BadInput
from replicator.keys import KEY_BYTES, Key, Keys, add_key, read_keys

SECRET = bytes(range(32))


def key_file(directory: Path, text: str, *, mode: int = 0o600) -> Path:
    path = directory / "archive.keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_first_key_is_for_new_files_and_the_others_still_read(tmp_path: Path) -> None:
    older, newer = bytes(32), SECRET
    text = f"# ours\n\nnew:{newer.hex()}\nold: {base64.b64encode(older).decode()} # until May\n"
    keys = read_keys(key_file(tmp_path, text))

    assert keys.newest == Key("new", newer)
    assert keys.named("old", Key("old", older).fingerprint, where="x").secret == older


@pytest.mark.parametrize(
    ("text", "complaint"),
    {
        "empty": ("# nothing\n", "holds 0 keys"),
        "no name": (SECRET.hex(), "line 1: not of the form"),
        "too short": (f"a:{SECRET.hex()}\nb:{base64.b64encode(SECRET[:16]).decode()}", "line 2: key 'b' is 16 bytes"),
        "too long": ("a:" + base64.b64encode(SECRET * 2).decode(), "64 bytes, not 32"),
        "not encoded": ("a:" + "ü" * 44, "neither base64 nor hex"),
        "a name twice": (f"a:{SECRET.hex()}\na:{bytes(32).hex()}", "names a key twice"),
        "a name too long": ("a" * 25 + f":{SECRET.hex()}", "not of the form"),
    }.values(),
)
def test_a_wrong_key_file_is_refused_without_showing_it(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint) as refused:
        read_keys(key_file(tmp_path, text))

    assert SECRET.hex()[:16] not in str(refused.value)
    assert base64.b64encode(SECRET).decode()[:16] not in str(refused.value)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="others can read"):
        read_keys(key_file(tmp_path, f"a:{SECRET.hex()}", mode=0o640))


def test_a_new_key_comes_first_and_keeps_the_older_ones(tmp_path: Path) -> None:
    path = tmp_path / "archive.keys"
    made = [add_key(path)[0] for _ in range(3)]

    assert read_keys(path).ring == tuple(reversed(made))
    assert path.stat().st_mode & 0o777 == 0o600
    assert len({key.secret for key in made}) == 3
    assert all(len(key.secret) == KEY_BYTES for key in made)


def test_no_secret_is_shown_by_repr() -> None:
    shown = repr(Keys((Key("a", SECRET),)))

    assert "a" in shown
    assert repr(SECRET)[2:20] not in shown
    assert SECRET.hex()[:8] not in shown
