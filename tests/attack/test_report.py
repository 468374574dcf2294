"""What is told of an attack: the figures by kind, the picture, and that nothing from outside becomes HTML."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chaos.attack import command, matrix, report, told
from chaos.attack.catalogue import Fault, Kind, Part, Where
from chaos.attack.observe import SILENT, Sample, sample
from chaos.attack.plan import Round
from chaos.attack.run import story
from chaos.attack.told import TWO, FaultTold, RoundTold, Told
from chaos.history import Finding, Verdict
from cluster.clock import Nanos
from tests.traffic.test_history import MS, a_write, unanswered

KEPT = Finding(verdict=Verdict.KEPT, why="all is there")
BROKEN = Finding(verdict=Verdict.BROKEN, why="one is lost")


def a_fault(kind: Kind = Kind.KILL) -> Fault:
    return Fault(kind=kind, part=Part.DATABASE, where=Where.PRIMARY, begins_ms=0.0, lasts_ms=1_000.0)


def a_round(
    *kinds: Kind, outage_ms: float | None = 500.0, whole_ms: float | None = 4_000.0, **fields: str
) -> RoundTold:
    faults = tuple(FaultTold(kind=kind, hit="db-clinic", began_s=1.0, healed_s=2.0, **fields) for kind in kinds)
    plan = Round(pause_ms=1.0, faults=tuple(a_fault(kind) for kind in kinds))
    return RoundTold(
        number=1, plan=plan, faults=faults, outage_ms=outage_ms, writing_ms=100.0, whole_ms=whole_ms, epoch=2
    )


def a_told(*rounds: RoundTold, **verdicts: Finding) -> Told:
    found = Told(seed=7, minutes=1.0, network="9 hosts", rounds=list(rounds), verdicts=dict(verdicts), seconds=61.0)
    found.timeline = {
        "writes": [3, 0, 5], "lag_ms": {"db-toronto": [(0, 12.5), (2, 90.0)]},
        "roles": {"db-clinic": [(0.0, 1.0, "primary"), (1.0, 2.5, SILENT)]},
    }  # fmt: skip
    return found


def test_an_attack_passes_only_with_rounds_verdicts_and_no_problem() -> None:
    assert a_told(a_round(Kind.KILL), lost=KEPT).passed
    assert not a_told(lost=KEPT).passed, "no fault was done"
    assert not a_told(a_round(Kind.KILL)).passed, "nothing was judged"
    assert not a_told(a_round(Kind.KILL), lost=BROKEN).passed
    assert not replace(a_told(a_round(Kind.KILL), lost=KEPT), problems=["stuck"]).passed


def test_the_matrix_counts_a_kind_wherever_it_came_and_its_outage_only_where_it_came_alone() -> None:
    rounds = [
        a_round(Kind.KILL),
        a_round(Kind.KILL, outage_ms=None),
        a_round(Kind.KILL, Kind.CUT_SITE, outage_ms=9_000.0),
    ]
    lines = {line["kind"]: line for line in told.matrix(rounds, [KEPT])}

    assert lines.keys() == {Kind.KILL.value, Kind.CUT_SITE.value, TWO}
    assert (lines[Kind.KILL.value]["times"], lines[Kind.KILL.value]["alone"]) == (3, 2)
    assert lines[Kind.KILL.value]["outage_ms"]["p99"] == 500.0
    assert lines[Kind.CUT_SITE.value]["outage_ms"]["n"] == 0
    assert lines[TWO]["outage_ms"]["max"] == 9_000.0


def test_a_fault_that_did_not_happen_is_not_counted() -> None:
    (line,) = told.matrix([a_round(Kind.KILL), a_round(Kind.CUT_SITE, did_not="it has ended")], [KEPT])

    assert line["kind"] == Kind.KILL.value


def test_a_broken_attack_calls_no_kind_kept() -> None:
    assert {line["verdict"] for line in told.matrix([a_round(Kind.KILL)], [KEPT, BROKEN])} == {"broken"}


def test_writes_are_counted_by_the_second_in_which_they_were_acknowledged() -> None:
    writes = [a_write(1, at_ms=100), a_write(2, at_ms=900), a_write(3, at_ms=2_100), unanswered(a_write(4, at_ms=150))]

    assert told.per_second(writes, 0, 3_000 * MS) == [2, 0, 1, 0]


def test_a_role_is_one_span_while_it_lasts_and_nothing_where_nobody_answered() -> None:
    def looked(second: int, **roles: str) -> Sample:
        return Sample(at=Nanos(second * 1_000 * MS), epoch=1, roles=roles)

    samples = [
        looked(0, one="primary"),
        looked(1, one="primary"),
        looked(2),
        looked(3, one="fenced"),
        looked(4, one="fenced"),
    ]

    assert told.role_spans(samples, 0) == {"one": [(0.0, 2.0, "primary"), (3.0, 4.0, "fenced")]}


def test_a_role_is_one_span_whatever_the_instants_of_the_looks_are() -> None:
    """Rounded ones are not: a run of four minutes had a thousand spans of one role."""
    samples = [Sample(at=Nanos(look * 123_456_789), epoch=1, roles={"one": "primary"}) for look in range(100)]

    assert len(told.role_spans(samples, 0)["one"]) == 1


def test_a_look_tells_roles_and_the_lag_of_standbys_and_who_is_silent() -> None:
    nodes = [
        {"node": "one", "role": "primary", "reporting": True, "lag_ms": None},
        {"node": "two", "role": "standby", "reporting": True, "lag_ms": 7},
        {"node": "three", "reporting": False},
    ]
    found = sample({"nodes": nodes, "epoch": {"epoch": 4}, "ready": True}, Nanos(5))

    assert found == Sample(at=Nanos(5), epoch=4, roles={"one": "primary", "two": "standby", "three": SILENT},
                           lag_ms={"two": 7.0}, ready=True)  # fmt: skip
    assert sample({}, Nanos(5)).epoch is None


def test_a_story_line_says_what_when_and_what_it_cost() -> None:
    line = story(a_round(Kind.KILL), ["kill -9: db-clinic"], 75.0)

    assert line == "  1:15.0    1  kill -9: db-clinic: longest pause 500 ms, whole 4.0 s after the last heal, epoch 2"
    assert "never whole again" in story(a_round(Kind.KILL, whole_ms=None), ["kill -9: db-clinic"], 75.0)


# -- the page --------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects which elements a page has, and whether each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(document: dict[str, Any]) -> Reader:
    reader = Reader()
    reader.feed(report.page(json.loads(json.dumps(document))))
    assert not reader.open
    return reader


def test_the_page_has_a_picture_and_needs_nothing_from_anywhere() -> None:
    document = a_told(a_round(Kind.KILL, Kind.CUT_SITE), lost=KEPT).document()
    reader = read(document)

    assert {"svg", "polygon", "polyline", "rect", "table"} <= set(reader.elements)
    assert reader.elements.count("rect") == 2 + 2, "two roles and two faults"
    assert "script" not in reader.elements
    assert not re.search(r"https?://", report.page(document))


def test_the_page_of_an_attack_that_did_nothing_can_be_read() -> None:
    empty = Told(seed=1, minutes=1.0, problems=["the lab did not start"])

    assert "rect" not in read(empty.document()).elements
    assert "NOT PASSED" in report.page(empty.document())


@given(st.text(max_size=60))
def test_whatever_a_process_said_stays_text(said: str) -> None:
    one = a_round(Kind.SWITCHOVER, told=said)
    found = replace(a_told(one, lost=replace(BROKEN, why=said)), events=[said], problems=["<script>alert(1)</script>"])

    assert "script" not in read(found.document()).elements


def test_what_is_written_is_read_again_as_the_same_rounds(tmp_path: Any) -> None:
    rounds = [a_round(Kind.KILL, Kind.CUT_SITE), a_round(Kind.SLOW)]
    command.write(tmp_path, 7, a_told(*rounds, lost=KEPT).document())

    assert command.repeated(tmp_path / "7.json") == (7, tuple(one.plan for one in rounds))


def test_the_tables_of_several_runs_are_one_and_name_what_did_not_come() -> None:
    """The worst verdict of any run is the verdict; percentiles are over all rounds."""
    runs = [
        a_told(a_round(Kind.KILL, outage_ms=100.0), lost=KEPT),
        a_told(a_round(Kind.KILL, outage_ms=900.0), lost=BROKEN),
    ]
    text = matrix.markdown([json.loads(json.dumps({"commit": "abc", **one.document()})) for one in runs])

    assert "seeds 7, 7; 2 faults in 2 rounds, 2 minutes" in text
    assert "| broken | lost | 1 of 2 |" in text
    assert "| kill -9 | 2 | 2 | 100 | 900 | 4,000 | 4,000 | broken |" in text
    assert f"Not in these runs: {Kind.RESTARTS.value}, " in text
