"""WHAT a person may call, and what it means."""

import pytest

from chaos.lab.names import CLINICS_MAX, Kind, choices, parts, select
from cluster.errors import BadInput

ONE = parts(clinics=1, zookeepers=1)
THREE = parts(clinics=2, zookeepers=3)


def names(what: str, known: tuple[object, ...] = THREE) -> set[str]:
    return {part.name for part in select(what, known)}  # type: ignore[arg-type]  # the tests hand over parts only


@pytest.mark.parametrize(
    ("what", "meant"),
    [
        ("db-clinic", {"db-clinic"}),
        ("haproxy-clinic-2", {"haproxy-clinic-2"}),
        ("host:db-toronto", {"db-toronto", "watchdog-toronto"}),
        ("site:toronto",
         {"db-toronto", "watchdog-toronto", "replicator-toronto", "controller-toronto", "zookeeper-2"}),
    ],
)  # fmt: skip
def test_a_name_or_a_group_means_these_processes(what: str, meant: set[str]) -> None:
    assert names(what) == meant


def test_a_single_zookeeper_survives_every_site() -> None:
    """Else killing a site would also kill the quorum, and no experiment with a site would mean anything."""
    for site in ("clinic", "toronto", "montreal"):
        assert "zookeeper-1" not in names(f"site:{site}", ONE)


@pytest.mark.parametrize(
    "what", ["", "nonsense", "site:", "host:", "site:ottawa", "host:db", "db-clinic ", "rack:db-clinic"]
)
def test_a_wrong_what_lists_every_name_there_is(what: str) -> None:
    with pytest.raises(BadInput) as raised:
        select(what, ONE)

    assert raised.value.exit_code == 2
    assert all(name in raised.value.hint for name in ("db-clinic", "prometheus", "host:db-montreal", "site:toronto"))
    assert "\t" not in str(raised.value)


def test_every_choice_can_be_selected_and_every_process_has_one_name() -> None:
    for clinics in (1, CLINICS_MAX):
        known = parts(clinics=clinics, zookeepers=3)
        assert all(select(what, known) for what in choices(known))
        assert len({part.name for part in known}) == len(known)


def test_databases_and_coordination_start_before_what_needs_them() -> None:
    order = [part.kind for part in THREE]

    assert order.index(Kind.ZOOKEEPER) < order.index(Kind.DATABASE) < order.index(Kind.WATCHDOG)
