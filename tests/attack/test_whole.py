"""Whether a cluster is whole, by what its controllers say."""

from typing import Any

import pytest

from chaos.whole import not_whole, not_whole_by_all


def a_state(epoch: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "ready": True, "plan": None, "epoch": {"epoch": epoch},
        "nodes": [{"node": "one", "role": "primary"}, {"node": "two", "role": "standby", "replicating": True}],
        "replicators": [{"site": "here", "connected": True, "why": ""}], **changes,
    }  # fmt: skip


LACKS = {
    "not ready": {"ready": False, "reasons": ["no acker"]},
    "a plan runs": {"plan": {"kind": "failover"}},
    "a node that joins": {"nodes": [{"node": "two", "role": "joining", "why": "behind"}]},
    "a standby that does not replicate": {"nodes": [{"node": "two", "role": "standby", "replicating": False}]},
    "a replicator without its source": {"replicators": [{"site": "here", "connected": False, "why": "no stream"}]},
    "a damaged archive": {"replicators": [{"site": "here", "connected": True, "why": "", "damaged_files": 1}]},
}


@pytest.mark.parametrize("changes", LACKS.values(), ids=LACKS.keys())
def test_what_is_missing_is_said(changes: dict[str, Any]) -> None:
    assert not not_whole(a_state())
    assert not_whole(a_state(**changes))
    assert not_whole_by_all([a_state(), a_state(**changes), a_state()])


def test_a_controller_that_tells_of_an_older_epoch_was_frozen_and_is_waited_for() -> None:
    """Seed 5: it was believed, and the round after was blamed for the failover of the one before."""
    assert not not_whole_by_all([a_state(6), a_state(6)])
    assert "5, 6" in not_whole_by_all([a_state(5), a_state(6), a_state(6)])
