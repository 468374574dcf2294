"""Every trap has a test that can fail, and docs/traps.md says which: the list cannot rot."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8")
TRAPS = range(1, 45)
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> dict[int, str]:
    """Return trap number -> the cell that says who looks after it."""
    found = re.findall(r"^\| (\d+) \| .+? \| ([^|]+) \|$", LIST, re.MULTILINE)
    assert len({number for number, _ in found}) == len(found), "a trap is listed twice"
    return {int(number): cell for number, cell in found}


def test_every_trap_is_listed_with_a_test_or_the_issue_it_belongs_to() -> None:
    found = rows()

    assert set(found) == set(TRAPS)
    assert not [number for number, cell in found.items() if not NAMED.search(cell) and not re.search(r"issue \d", cell)]


def test_every_test_that_is_named_there_exists() -> None:
    named = NAMED.findall(LIST)
    missing = [f"{path}::{name}" for path, name in named
               if not re.search(rf"def {name}\(", (ROOT / path).read_text(encoding="utf-8"))]  # fmt: skip

    assert not missing
    assert len(named) == LIST.count("`tests/") - 1, "one is not written as `tests/FILE.py::test_NAME`"
