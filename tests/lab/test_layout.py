"""What a request may say, and the settings it becomes."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, strategies

from chaos.lab import render
from chaos.lab.layout import Layout, Option, Request, check, parse_option, port_names, settings_of
from cluster import settings
from cluster.errors import BadInput
from cluster.records import Acks

PLACE = Path("/tmp/lab")


def ports_of(request: Request) -> dict[str, int]:
    return {name: 20_000 + number for number, name in enumerate(port_names(request))}


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("innodb_page_size=32K", Option("innodb_page_size", "32K")),
        ("innodb-page-size=32K", Option("innodb_page_size", "32K")),
        ("--Default-Storage-Engine=Aria", Option("default_storage_engine", "Aria")),
        ("skip_innodb_doublewrite", Option("skip_innodb_doublewrite", None)),
        ("sql_mode=", Option("sql_mode", "")),
        ("binlog_format=row", Option("binlog_format", "row")),
        ("init_connect=SET @a=1", Option("init_connect", "SET @a=1")),
    ],
)
def test_an_option_is_read_as_a_person_writes_it(text: str, option: Option) -> None:
    assert parse_option(text) == option


@pytest.mark.parametrize(
    "text",
    [
        "", "=", "=1", "a b=1", "innodb_page_size=1\n[mysqld]", "[mariadbd]", "!include=/etc/passwd",
        "server_id=4", "server-id=4", "datadir=/x", "port=1", "init-file=/x", "user=x",
        "binlog_format=MIXED", "binlog_format=STATEMENT", "binlog-format", "skip-log-bin", "disable-log-bin",
        "log_bin=0", "log-bin=OFF", "gtid_strict_mode=OFF", "gtid-strict-mode=0", "skip-gtid-strict-mode",
        "log_slave_updates=0", "skip_log_slave_updates",
    ],
)  # fmt: skip
def test_an_option_that_contradicts_the_product_is_refused_before_anything_starts(text: str) -> None:
    with pytest.raises(BadInput) as raised:
        parse_option(text)

    assert raised.value.exit_code == 2
    assert raised.value.hint


@given(strategies.text(max_size=60))
def test_any_text_is_one_line_of_an_option_file_or_refused(text: str) -> None:
    try:
        option = parse_option(text)
    except BadInput:
        return

    assert len(f"{option.name}={option.value}".split("\n")) == 1
    assert option.name[0].isalpha()


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (Request(directory=PLACE, clinics=0), "--clinics 0"),
        (Request(directory=PLACE, clinics=21), "--clinics 21"),
        (Request(directory=PLACE, zookeepers=2), "--zookeepers 2"),
        (Request(directory=PLACE, profile="quick"), "--profile quick: choose one of default, fast"),
        (Request(directory=PLACE, load=(Path("/nowhere.sql"),)), "--load /nowhere.sql"),
        (Request(directory=PLACE, base_port=65_530), "--base-port 65530"),
        (Request(directory=PLACE, base_port=80), "--base-port 80"),
        (Request(directory=Path("/tmp/a b")), "--dir"),
        (Request(directory=Path("/tmp") / ("x" * 90)), "socket"),
    ],
)
def test_a_wrong_request_is_refused_by_name(request_: Request, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        check(request_)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(BadInput, match=r"--clinics 0.*--zookeepers 2"):
        check(Request(directory=PLACE, clinics=0, zookeepers=2))


@pytest.mark.parametrize("clinics", [1, 20])
@pytest.mark.parametrize("zookeepers", [1, 3])
def test_the_settings_of_every_lab_are_accepted_by_their_reader(clinics: int, zookeepers: int) -> None:
    acks = Acks.ALL if zookeepers == 3 else Acks.ONE
    request = Request(directory=PLACE, clinics=clinics, zookeepers=zookeepers, acks=acks)
    check(request)

    loaded = settings.check(tomllib.loads(render.toml(settings_of(request, ports_of(request)))))

    assert loaded.acks is acks
    assert loaded.initial_primary == "db-clinic"
    assert [node.server_id for node in loaded.nodes] == [1, 2, 3]
    assert [one.server_id for one in loaded.replicators] == [101, 102, 103]
    assert len(loaded.clinics) == clinics
    assert len(loaded.zookeeper) == zookeepers
    assert loaded.node("db-toronto").pid_file == Layout(PLACE).pid_file("db-toronto")


def test_every_port_has_one_name() -> None:
    names = port_names(Request(directory=PLACE, clinics=20, zookeepers=3))

    assert len(set(names)) == len(names)
