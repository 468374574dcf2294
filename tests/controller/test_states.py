"""The diagrams of the documentation are what production obeys."""

from pathlib import Path

import pytest

from cluster.records import Role
from controller.model import ORDER, Kind
from controller.states import document, plan_diagram, role_diagram

PAGE = Path(__file__).parents[2] / "docs" / "states.md"


def test_the_page_of_states_is_what_the_tables_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), "python -m controller.states > docs/states.md"


def test_every_role_is_drawn_and_can_be_left() -> None:
    drawn = [line.split(" --> ") for line in role_diagram()[1:]]

    for role in Role:
        assert any(before == role.value and not after.startswith(f"{role.value}:") for before, after in drawn), role


@pytest.mark.parametrize("kind", Kind)
def test_a_plan_is_drawn_with_every_stage(kind: Kind) -> None:
    drawn = "\n".join(plan_diagram(kind))

    assert all(f" as {stage.name}" in drawn for stage in ORDER[kind])
