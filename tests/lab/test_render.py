"""What is written for the servers, and how they are called."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, strategies

from chaos.lab import render
from chaos.lab.layout import Layout, Option, Request, kinds, port_names, settings_of
from chaos.lab.names import Kind
from chaos.lab.render import Programs
from cluster import settings
from cluster.dialect import dialect_of

PLACE = Path("/tmp/lab")
REQUEST = Request(directory=PLACE, clinics=2, zookeepers=3)
PORTS = {name: 20_000 + number for number, name in enumerate(port_names(REQUEST))}
SETTINGS = settings.check(settings_of(REQUEST, PORTS))
PROGRAMS = Programs(
    mariadbd="mariadbd",
    install_db="mariadb-install-db",
    client="mariadb",
    java="java",
    haproxy="haproxy",
    prometheus="prometheus",
    oscar_ha="oscar-ha",
)


def options(*asked: Option, name: str = "db-toronto") -> dict[str, str]:
    """Return what MariaDB takes from the option file of a node: the last line wins."""
    node = SETTINGS.node(name)
    required = dialect_of(SETTINGS).server_options(node, SETTINGS)
    text = render.option_file(Layout(PLACE), node, required, asked, PLACE / "config/born-fenced.sql", "somebody")
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "["))]
    return dict(line.partition("=")[::2] for line in lines)


def test_a_server_has_what_the_product_and_oscar_need() -> None:
    found = options()

    assert found["sql_mode"] == ""
    assert found["innodb_strict_mode"] == "OFF"
    assert found["binlog_format"] == "ROW"
    assert found["read_only"] == "ON"
    assert found["init_file"].endswith("born-fenced.sql")
    assert found["max_binlog_size"] == "64M"
    assert int(found["binlog_expire_logs_seconds"]) > 0


def test_no_two_servers_share_a_folder_for_temporary_tables() -> None:
    """One that starts removes those of the others, and they crash (decision 0060)."""
    found = {options(name=node.name)["tmpdir"] for node in SETTINGS.nodes}

    assert len(found) == len(SETTINGS.nodes)


def test_a_persons_option_wins_over_the_labs_but_never_over_who_a_server_is() -> None:
    found = options(
        Option("innodb_page_size", "32K"), Option("default_storage_engine", "Aria"), Option("server_id", "9")
    )

    assert found["innodb_page_size"] == "32K"
    assert found["default_storage_engine"] == "Aria"
    assert found["server_id"] == "2"


def test_a_clinics_haproxy_asks_the_watchdogs_and_is_quick() -> None:
    """`inter 3s fall 3 rise 2` and a check of read_only keep a wrong primary for 15 s (TRAPS.md 36)."""
    text = render.haproxy(Layout(PLACE), SETTINGS.clinics[1], SETTINGS.nodes)

    assert "http-check send meth GET uri /primary" in text
    assert "inter 500ms fastinter 100ms downinter 250ms fall 1 rise 1" in text
    assert "on-marked-down shutdown-sessions" in text
    for node in SETTINGS.nodes:
        assert f"server {node.name} 127.0.0.1:{node.port} port {node.watchdog_port}\n" in text
    assert f"bind 127.0.0.1:{SETTINGS.clinics[1].port}\n" in text
    assert f"stats socket ipv4@127.0.0.1:{SETTINGS.clinics[1].runtime_port} level admin\n" in text


def test_three_zookeepers_know_each_other_and_a_single_one_knows_none() -> None:
    part = kinds(REQUEST.parts, Kind.ZOOKEEPER)[1]

    together = render.zookeeper(Layout(PLACE), part, PORTS, count=3)
    alone = render.zookeeper(Layout(PLACE), part, PORTS, count=1)

    assert together.count("server.") == 3
    assert "server." not in alone
    assert all("admin.enableServer=false" in text and "tickTime=500" in text for text in (together, alone))


def test_prometheus_scrapes_every_process_of_ours() -> None:
    text = render.prometheus(SETTINGS)

    assert text.count("targets:") == 9
    assert "scrape_interval: 5s" in text


@pytest.mark.parametrize("part", REQUEST.parts, ids=lambda part: part.name)
def test_no_command_line_holds_more_than_paths_and_names(part: object) -> None:
    command = render.command(part, Layout(PLACE), PROGRAMS, PORTS)  # type: ignore[arg-type]  # parametrize has no type

    assert all("password" not in word and "token" not in word for word in command)


def test_our_own_processes_are_started_as_a_person_would_start_them() -> None:
    commands = {part.name: render.command(part, Layout(PLACE), PROGRAMS, PORTS) for part in REQUEST.parts}

    shared = ("run", "--settings", "/tmp/lab/cluster.toml")
    assert commands["watchdog-clinic"] == ("oscar-ha", "watchdog", *shared, "--node", "db-clinic")
    assert commands["replicator-toronto"] == ("oscar-ha", "replicator", *shared, "--site", "toronto")
    assert commands["controller-montreal"] == ("oscar-ha", "controller", *shared, "--name", "controller-montreal")


_KEYS = strategies.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
_TEXT = strategies.text(strategies.characters(blacklist_categories=["Cs", "Cc"]), max_size=20)
_PLAIN = strategies.one_of(
    _TEXT, strategies.integers(-(2**40), 2**40), strategies.booleans(), strategies.lists(_TEXT, max_size=3)
)
_TABLE = strategies.dictionaries(_KEYS, _PLAIN, max_size=3)


@given(
    strategies.dictionaries(
        _KEYS, strategies.one_of(_PLAIN, _TABLE, strategies.lists(_TABLE, min_size=1, max_size=3)), max_size=5
    )
)
def test_what_is_written_as_toml_is_read_back_the_same(raw: dict[str, object]) -> None:
    assert tomllib.loads(render.toml(raw)) == raw
