"""Whether a rescued row may be applied: every situation is one line."""

import itertools

import pytest

from controller.replaying import Cells, Situation, Verdict, judge

OLD: Cells = {"id": "1", "name": "Tremblay"}
NEW: Cells = {"id": "1", "name": "Roy"}
OTHER: Cells = {"id": "1", "name": "Gagnon"}
MOVED: Cells = {"id": "2", "name": "Roy"}
APPLY, PRESENT, CONFLICT = Verdict.APPLY, Verdict.PRESENT, Verdict.CONFLICT


@pytest.mark.parametrize(
    ("before", "after", "at_before", "at_after", "expected"),
    [
        pytest.param(None, NEW, None, None, APPLY, id="inserted, nothing is there"),
        pytest.param(None, NEW, None, NEW, PRESENT, id="inserted, and it is there"),
        pytest.param(None, NEW, None, OTHER, CONFLICT, id="inserted, another row has its key"),
        pytest.param(OLD, None, OLD, None, APPLY, id="deleted, it is as it was"),
        pytest.param(OLD, None, None, None, PRESENT, id="deleted, it is gone"),
        pytest.param(OLD, None, OTHER, None, CONFLICT, id="deleted, somebody changed it since"),
        pytest.param(OLD, NEW, OLD, OLD, APPLY, id="changed, it is as it was"),
        pytest.param(OLD, NEW, NEW, NEW, PRESENT, id="changed, it is as it became"),
        pytest.param(OLD, NEW, OTHER, OTHER, CONFLICT, id="changed, somebody else changed it too"),
        pytest.param(OLD, NEW, None, None, CONFLICT, id="changed, it is gone"),
        pytest.param(OLD, MOVED, OLD, None, APPLY, id="its key changed, it is as it was"),
        pytest.param(OLD, MOVED, None, MOVED, PRESENT, id="its key changed, it is as it became"),
        pytest.param(OLD, MOVED, OLD, MOVED, CONFLICT, id="its key changed, both are there"),
        pytest.param(OLD, MOVED, OTHER, None, CONFLICT, id="its key changed, somebody changed it since"),
        pytest.param(OLD, MOVED, None, None, CONFLICT, id="its key changed, it is gone"),
        pytest.param(
            {"id": "1"}, {"id": "1", "extra": "x"}, {"id": "1"}, {"id": "1"}, APPLY, id="a column is not told"
        ),
    ],
)
def test_a_row_is_judged_by_what_is_there(
    before: Cells | None, after: Cells | None, at_before: Cells | None, at_after: Cells | None, expected: Verdict
) -> None:
    if at_before == at_after:
        at_after = at_before
    found = judge(Situation(before=before, after=after, at_before=at_before, at_after=at_after))

    assert found.verdict is expected
    assert bool(found.why) is (expected is CONFLICT)
    assert not any(name in found.why for name in ("Tremblay", "Roy", "Gagnon")), "patients' data in a reason"


def test_nothing_is_applied_that_is_neither_as_it_was_nor_absent() -> None:
    """Over every small situation: what somebody changed since is never written over."""
    rows: list[Cells | None] = [None, OLD, NEW, OTHER]
    for before, after, there in itertools.product(rows, rows, rows):
        if before is None and after is None:
            continue
        at_after = there if after is not None else None
        found = judge(Situation(before=before, after=after, at_before=there if before else None, at_after=at_after))

        if found.verdict is Verdict.APPLY:
            assert there == before
        if found.verdict is Verdict.PRESENT:
            assert there == after
