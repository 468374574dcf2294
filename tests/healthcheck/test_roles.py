"""The role table proves itself."""

import pytest

from cluster.errors import Bug
from cluster.records import Role
from healthcheck.roles import ROLES, Signal, advance, allows


def test_only_a_fenced_node_is_opened() -> None:
    assert [role for role in Role if allows(role, Signal.OPEN)] == [Role.FENCED]


def test_every_role_can_be_fenced_and_none_is_open_afterwards() -> None:
    assert all(advance(role, Signal.FENCE) is not Role.PRIMARY for role in Role)


def test_a_new_server_process_is_fenced_whatever_it_was() -> None:
    assert {advance(role, Signal.NEW_SERVER) for role in Role} == {Role.FENCED}


def test_no_role_is_a_dead_end_and_each_is_reached() -> None:
    reached = {Role.FENCED}
    for _ in Role:
        reached |= {after for (before, _), after in ROLES.items() if before in reached}
    leaves = {before for (before, _), after in ROLES.items() if after is not before}

    assert reached == set(Role)
    assert leaves >= set(Role) - {Role.FENCED}


def test_fencing_and_following_twice_change_nothing() -> None:
    for signal in (Signal.FENCE, Signal.FOLLOW):
        for role in Role:
            if allows(role, signal):
                once = advance(role, signal)
                assert advance(once, signal) is once


@pytest.mark.parametrize("role", [Role.PRIMARY, Role.STANDBY, Role.JOINING, Role.FAILED])
def test_what_the_table_does_not_allow_is_a_bug(role: Role) -> None:
    with pytest.raises(Bug, match="cannot open"):
        advance(role, Signal.OPEN)
