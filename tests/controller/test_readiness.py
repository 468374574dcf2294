"""Readiness: every reason at once, each with a code that alerts rely on."""

from prometheus_client.parser import text_string_to_metric_families

from cluster.records import Condition, Health, Role
from controller.metrics import Metrics
from controller.model import View
from controller.readiness import MENDS, Code, readiness, sentences
from tests.controller.builders import a_node, a_replicator, a_view


def test_readiness_names_every_reason_at_once() -> None:
    """A false alarm that blocks failover silently is as bad as no failover (TRAPS.md 37)."""
    view = a_view(
        paused=True,
        replicator_toronto=a_replicator("toronto", acknowledging=False),
        toronto=a_node("toronto", role=Role.JOINING),
        montreal=a_node("montreal", absent_ms=1.0),
        clinic=a_node("clinic", unmet=("rpl_semi_sync_master_enabled is OFF: commits are not acknowledged",)),
    )

    found = readiness(view)
    reasons = " / ".join(sentences(found))

    assert "paused" in reasons
    assert "no standby is current" in reasons
    assert "toronto does not acknowledge" in reasons
    assert "on db-clinic rpl_semi_sync_master_enabled is OFF" in reasons
    assert [one.code for one in found] == [
        Code.PAUSED, Code.PRIMARY_UNSAFE, Code.NO_CURRENT_STANDBY, Code.ACKER_SILENT,
    ]  # fmt: skip


def test_a_failed_primary_that_nobody_could_replace_is_not_ready() -> None:
    sick = Health(condition=Condition.FAILED, reasons=("it takes no writes",))
    everybody = {site: a_node(site, health=sick) for site in ("clinic", "toronto", "montreal")}

    found = readiness(a_view(**everybody))

    assert any("no other node would do better" in reason.why for reason in found)
    assert Code.PRIMARY_FAILED in [reason.code for reason in found]


def test_who_failed_over_too_often_is_not_ready_and_is_told_what_to_do() -> None:
    (reason,) = readiness(a_view(automatic=5))

    assert "5 automatic failovers within 60 minutes" in reason.why
    assert "oscar-ha resume" in reason.mend


def test_who_does_not_see_zookeeper_promises_no_failover() -> None:
    """What was seen last looks healthy for ever."""
    (reason,) = readiness(a_view(sighted=False))

    assert "ZooKeeper is not seen" in reason.why


def test_a_healthy_cluster_is_ready() -> None:
    assert readiness(a_view()) == ()


def exported(view: View) -> dict[str, float]:
    """What Prometheus would read."""
    text = Metrics("c", lambda: view, lambda: True).text().decode()
    (family,) = (one for one in text_string_to_metric_families(text) if one.name == "oscar_ha_failover_ready")
    return {sample.labels["reason"]: sample.value for sample in family.samples}


def test_a_label_is_a_code_however_the_sentence_counts() -> None:
    """A sentence in a label would be a new series every second."""
    assert exported(a_view()) == {"": 1.0}
    assert exported(a_view(paused=True, automatic=7)) == {"paused": 0.0, "too_many_failovers": 0.0}


def test_every_code_says_what_to_do() -> None:
    assert set(MENDS) == set(Code)
