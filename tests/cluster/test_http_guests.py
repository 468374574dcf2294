"""Who keeps an HTTP connection when too many come: tables of the pure rule."""

import pytest

from cluster.clock import Nanos
from cluster.http_guests import Guest, Worth, to_leave

SILENT, IDLE, ASKING, TRUSTED = Worth


def guests(*present: tuple[str, Worth]) -> dict[int, Guest]:
    """Return guests in the order of their coming; the last one is the newest."""
    return {
        number: Guest(address=address, worth=worth, since=Nanos(number))
        for number, (address, worth) in enumerate(present)
    }


@pytest.mark.parametrize(
    ("present", "leaves"),
    [
        (guests(("a", SILENT), ("a", SILENT)), None),
        (guests(("a", SILENT), ("a", SILENT), ("b", SILENT)), 0),
        (guests(("b", SILENT), ("a", SILENT), ("a", SILENT)), 1),
        (guests(("a", IDLE), ("a", SILENT), ("a", SILENT)), 1),
        (guests(("a", ASKING), ("b", IDLE), ("a", SILENT)), 1),
        (guests(("a", TRUSTED), ("b", ASKING), ("b", SILENT)), 1),
        (guests(("a", TRUSTED), ("b", TRUSTED), ("b", SILENT)), 2),
    ],
    ids=["there is room", "the crowd's oldest leaves", "who came first alone stays", "who was answered once stays",
         "who is being answered stays", "the token stays, and who has had no time to ask", "all are trusted"],
)  # fmt: skip
def test_who_floods_makes_room_and_who_works_stays(present: dict[int, Guest], leaves: int | None) -> None:
    assert to_leave(present, max(present), 2) == leaves
