"""What benches and the demo compute from measurements and histories."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from chaos import bench, bench_failover, bench_figures, demo, demo_view, processor_time, run_folder
from chaos.bench_figures import Goal
from chaos.history import Finding, Outcome, Verdict, Write
from cluster.errors import BadInput, OscarHaError

MS = 1_000_000
numbers = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@given(numbers)
def test_every_statistic_lies_within_what_was_measured(values: list[float]) -> None:
    figure = bench_figures.figure(values, "ms")

    assert figure["min"] <= figure["median"] <= figure["max"]
    assert figure["median"] <= figure["p99"] <= figure["max"]
    assert figure["n"] == len(values)


@given(numbers, st.floats(1, 100))
def test_a_percentile_is_a_measured_value_that_enough_do_not_exceed(values: list[float], percent: float) -> None:
    found = bench_figures.percentile(values, percent)

    assert found in values
    assert sum(1 for value in values if value <= found) >= percent / 100 * len(values) - 1e-9


def test_nothing_measured_has_no_numbers_and_meets_no_goal() -> None:
    figures = {"outage": bench_figures.figure([], "ms")}
    goals = (Goal(figure="outage", statistic="median", at_most=10), Goal(figure="other", statistic="max", at_least=1))

    assert figures["outage"] == {"median": None, "min": None, "max": None, "p99": None, "n": 0, "unit": "ms"}
    assert bench_figures.judge(goals, figures) == {
        "outage": {"at_most": 10, "met": False},
        "other_max": {"at_least": 1, "met": False},
    }


@pytest.mark.parametrize(("value", "met"), [(9, True), (10, True), (10.01, False)])
def test_a_goal_is_met_up_to_its_bound(value: float, met: bool) -> None:
    figures = {"outage": bench_figures.figure([value], "ms")}

    assert (
        bench_figures.judge((Goal(figure="outage", statistic="max", at_most=10),), figures)["outage_max"]["met"] is met
    )


def a_result(*, outage: float = 1, lost: float = 0, problems: tuple[str, ...] = ()) -> bench.Result:
    goals = (
        Goal(figure="outage", statistic="median", at_most=10),
        Goal(figure="lost", statistic="max", at_most=0, safety=True),
    )
    units = {"outage": "ms", "lost": "writes"}
    return bench.Result({"outage": [outage], "lost": [lost]}, units, goals, [{"run": 1}], list(problems))


PASSES = {
    "all is well": (a_result(), False, True),
    "too slow is reported": (a_result(outage=99), False, True),
    "too slow counts when strict": (a_result(outage=99), True, False),
    "a lost write always counts": (a_result(lost=1), False, False),
    "what did not run counts": (a_result(problems=("run 1: stuck",)), False, False),
}


@pytest.mark.parametrize(("result", "strict", "expected"), PASSES.values(), ids=PASSES.keys())
def test_what_lets_a_bench_pass(result: bench.Result, strict: bool, expected: bool) -> None:
    told = bench.document("any", 1, result, 1.0)

    assert bench.passed(told, result, strict=strict) is expected


def test_a_bench_file_names_what_was_measured_and_where() -> None:
    told = bench.document("any", 3, a_result(), 1.0)

    assert set(told) >= {"name", "commit", "machine", "runs", "figures", "goals"}
    assert set(told["figures"]["lost"]) == {"median", "min", "max", "p99", "n", "unit"}
    assert told["machine"]["cores"] == os.cpu_count()


@pytest.mark.parametrize(("name", "runs"), [("nope", 1), ("failover", 0), ("failover", 10**6)])
def test_a_bench_that_does_not_exist_is_refused_in_words(name: str, runs: int) -> None:
    with pytest.raises(BadInput) as caught:
        bench.bench(name, runs)

    assert caught.value.hint


def test_processor_time_is_read_behind_a_name_with_spaces_and_parentheses() -> None:
    text = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 12345 0 0"

    assert processor_time.ticks_of(text) == 300


def test_our_own_processor_time_is_known_and_a_dead_process_is_an_error() -> None:
    assert processor_time.processor_seconds([os.getpid()]) > 0
    with pytest.raises(OscarHaError, match="has ended"):
        processor_time.processor_seconds([2**22 + 1])


def written(*times_ms: float) -> list[Write]:
    return [
        Write(
            clinic="north", sequence=number, token=str(number), kind="note", table="chartNote", invoked_at=int(time * MS),
            acknowledged_at=int(time * MS), outcome=Outcome.OK, server_id=1, epoch=1,
        )
        for number, time in enumerate(times_ms, 1)
    ]  # fmt: skip


@given(st.lists(st.integers(0, 999), max_size=60).map(sorted))
def test_every_write_within_the_window_is_in_one_bucket(times: list[int]) -> None:
    counts = demo_view.acknowledged_per_bucket(written(*times), 1_000 * MS, 10, 50)

    assert sum(counts) == sum(1 for time in times if time >= 500)


def test_a_gap_is_drawn_between_bars_and_nothing_before_the_first_write() -> None:
    assert demo_view.sparkline([0, 0, 4, 0, 0, 2, 9], 80, 50).plain == "  █··▅█"


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.integers(1, 80))
def test_a_bar_stays_within_its_width(start: float, length: float, width: int) -> None:
    bar = demo_view.bar(start, start + length, max(1.0, start + length), width)

    assert 1 <= len(bar) <= width
    assert "━" in bar


def test_pictures_of_an_unknown_cluster_can_be_drawn() -> None:
    console = Console(file=Path(os.devnull).open("w"), width=100)  # noqa: SIM115 - closed with the console
    with console.file:
        for state in ({}, {"nodes": [{"node": "db-clinic", "reporting": False}]}):
            console.print(demo_view.cluster_table(state))
            console.print(demo_view.databases_line(state))
        console.print(demo_view.timeline({}))
        console.print(demo_view.close_up(written(1, 2, 400), ["north", "south"], 2 * MS, 398))


def test_a_demo_that_reached_nothing_claims_nothing() -> None:
    told = demo.summary(demo.Facts())

    assert told["passed"] is False
    for name in ("outage_ms", "lost", "rejoined", "checksums_equal", "switchover_gap_ms"):
        assert told[name] is None
    assert (told["acknowledged"], told["writers_per_epoch"]) == (0, {})


def test_a_demo_passes_only_when_every_claim_is_kept() -> None:
    facts = demo.Facts(verdicts={"one": Finding(verdict=Verdict.KEPT, why="")})
    assert facts.passed

    facts.verdicts["two"] = Finding(verdict=Verdict.PROVED_NOTHING, why="")
    assert not facts.passed


def test_a_demo_whose_outage_is_not_known_at_one_clinic_names_none() -> None:
    facts = demo.Facts(outage_ms={"north": 12.0, "south": None})

    assert demo.summary(facts)["outage_ms"] is None


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        run_folder.alone(tmp_path, "demo"),
        pytest.raises(BadInput, match="runs in"),
        run_folder.alone(tmp_path, "demo"),
    ):
        pass  # never reached
    with run_folder.alone(tmp_path, "demo"):
        pass  # free again


def test_the_ends_of_logs_are_kept_and_old_ones_go(tmp_path: Path) -> None:
    lab, kept = tmp_path / "lab", tmp_path / "kept"
    (lab / "log").mkdir(parents=True)
    (lab / "log" / "watchdog.log").write_bytes(b"x" * 10 + b"end")
    kept.mkdir()
    (kept / "old.log").touch()

    run_folder.keep_logs(lab, kept)

    assert [(log.name, log.read_bytes()[-3:]) for log in kept.iterdir()] == [("watchdog.log", b"end")]


def test_bench_failover_measures_every_outage_that_has_a_goal(tmp_path: Path) -> None:
    """The cut-off site had a goal, a figure and code that nobody called."""
    found = bench_failover.benches(tmp_path / "failover", root=True)
    kinds = {kind for own, one in found.items() for kind in one(own, print, 1, profile="default").acts()}

    assert {bench_failover.FIGURES[kind] for kind in kinds} == {
        goal.figure for goal in bench_failover.goals("default") if goal.figure.startswith("outage_ms")
    }
    assert len(found) == 2


def test_a_plain_user_measures_what_needs_no_namespaces(tmp_path: Path) -> None:
    assert list(bench_failover.benches(tmp_path, root=False).values()) == [bench_failover.FailoverBench]
