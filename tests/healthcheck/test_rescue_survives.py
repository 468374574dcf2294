"""A rescue frees a node's data only while it lies where the replacing does not reach it. No server needed."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.dialect import Session
from cluster.records import RescueReport, RescueState
from cluster.settings import Node, Settings
from healthcheck.rescue_folder import RECORD
from healthcheck.rescuing import Foreign, Rescuing
from tests.healthcheck.site import make_settings

HERE, NAME = "0-1-105", "2-one-20261124T110530Z"


class Host:
    """A watchdog of which only the settings are asked for."""

    def __init__(self, node: Node, settings: Settings) -> None:
        self.node, self.settings = node, settings

    def foreign(self) -> Foreign | None:
        return None

    def connect(self, deadline_ms: float) -> Session:
        raise AssertionError(f"nobody connects within {deadline_ms} ms")

    def tell_changes(self) -> None: ...


def rescued(directory: Path, place: Path) -> Rescuing:
    """A complete rescue of HERE that lies in `place`."""
    settings, _ = make_settings(directory, "127.0.0.1:1", "survives")
    node = replace(settings.node("one"), rescue_directory=place)
    (directory / "one" / "data").mkdir(parents=True, exist_ok=True)
    rescuing = Rescuing(Host(node, settings))
    (rescuing.place / NAME).mkdir(parents=True)
    (rescuing.place / NAME / RECORD).write_text("{}")
    rescuing.report = RescueReport(id=NAME, state=RescueState.COMPLETE, position=HERE)
    return rescuing


def test_a_whole_rescue_beside_the_data_frees_exactly_what_it_is_of(tmp_path: Path) -> None:
    rescuing = rescued(tmp_path, tmp_path / "rescue")

    assert rescuing.survives(HERE)
    assert not rescuing.survives("0-1-106")
    assert not rescuing.survives(None)


def test_a_rescue_that_somebody_took_away_frees_nothing_and_is_made_again(tmp_path: Path) -> None:
    rescuing = rescued(tmp_path, tmp_path / "rescue")
    (rescuing.place / NAME / RECORD).unlink()

    assert not rescuing.survives(HERE)
    assert rescuing.report is None


@pytest.mark.parametrize("inside", ["data", "data/deep"])
def test_a_rescue_that_a_link_leads_into_the_data_frees_nothing(tmp_path: Path, inside: str) -> None:
    """The settings cannot see that: they refuse only a path that says so."""
    (tmp_path / "one" / inside).mkdir(parents=True)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "one" / inside)

    assert not rescued(tmp_path, tmp_path / "elsewhere").survives(HERE)
