"""Settings: what is wrong is named with its consequence, all at once; secrets never show."""

from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from cluster import settings
from cluster.errors import BadInput
from cluster.settings import PROFILES, Timing

SITES = ("clinic", "toronto", "montreal")


def raw() -> dict[str, Any]:
    """Return good settings as TOML gives them: three sites, every address of its own."""
    return {
        "name": "demo",
        "zookeeper": ["127.0.0.1:2181"],
        "initial_primary": "clinic-db",
        "sites": list(SITES),
        "token_file": "/secrets/token",
        "accounts": {
            "admin_password_file": "/secrets/admin",
            "replication_password_file": "/secrets/replication",
            "verify_password_file": "/secrets/verify",
        },
        "nodes": [
            {"name": f"{site}-db", "site": site, "server_id": 1 + number, "port": 3301 + number,
             "admin_port": 3311 + number, "pid_file": f"/run/{site}.pid", "watchdog_port": 8001 + number}
            for number, site in enumerate(SITES)
        ],
        "replicators": [
            {"site": site, "server_id": 101 + number, "port": 4001 + number, "http_port": 4011 + number,
             "archive": f"/archive/{site}"}
            for number, site in enumerate(SITES)
        ],
        "controllers": [{"name": f"{site}-controller", "site": site, "port": 9001 + number}
                        for number, site in enumerate(SITES)],
        "clinics": [{"name": "one", "port": 5001, "runtime_port": 5002}],
    }  # fmt: skip


def changed(path: str, value: object) -> dict[str, Any]:
    """Return good settings with one field changed: `nodes.1.port`, or `timing.session_ttl_ms`."""
    whole = deepcopy(raw())
    *way, last = path.split(".")
    inner: Any = whole
    for part in way:
        inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
    inner[int(last) if isinstance(inner, list) else last] = value
    return whole


def test_good_settings_are_taken() -> None:
    cluster = settings.check(raw())

    assert cluster.root == "/oscar-ha/demo"
    assert cluster.node("toronto-db").watchdog_url == "http://127.0.0.1:8002"
    assert cluster.replicator("montreal").url == "http://127.0.0.1:4013"
    assert cluster.controller("clinic-controller").url == "http://127.0.0.1:9001"
    assert cluster.timing == Timing()
    assert cluster.archive.key_file is None


@pytest.mark.parametrize("profile", PROFILES)
def test_no_profile_contradicts_itself(profile: str) -> None:
    timing = settings.check(changed("profile", profile)).timing

    assert timing == replace(Timing(), **PROFILES[profile])


def test_a_deadline_that_is_given_stands_above_the_profile() -> None:
    whole = changed("timing.session_ttl_ms", 2_500)
    whole["profile"] = "fast"

    assert settings.check(whole).timing == replace(Timing(), **{**PROFILES["fast"], "session_ttl_ms": 2_500})


def test_what_contradicts_a_profile_is_refused_like_any_other() -> None:
    whole = changed("timing.lease_margin_ms", 700)
    assert settings.check(whole).timing.lease_margin_ms == 700

    with pytest.raises(BadInput, match="the primary never holds its lease"):
        settings.check({**whole, "profile": "fast"})


def test_settings_do_not_change_once_read() -> None:
    with pytest.raises(AttributeError):
        settings.check(raw()).name = "other"


@pytest.mark.parametrize("timing", [Timing()])
def test_every_duration_says_its_unit(timing: Timing) -> None:
    assert all(field.name.endswith("_ms") for field in fields(timing))


CONTRADICTIONS: dict[str, tuple[str, object, str]] = {
    "a margin that eats the lease": ("timing.lease_margin_ms", 3_000, "the primary never holds its lease"),
    "a renewal that comes too late": ("timing.renew_interval_ms", 4_000, "one lost reply fences the primary"),
    "a call longer than the session": ("timing.call_deadline_ms", 6_000, "one slow call outlives the lease"),
    "a heartbeat slower than its deadline": ("timing.heartbeat_interval_ms", 3_000, "an idle stream looks dead"),
    "fencing longer than the session": ("timing.fence_deadline_ms", 6_000, "two primaries overlap"),
    "a degradation that is never used": ("acks_all_degrade_after_ms", 5_000, "it would never be used"),
    "a primary that is no node": ("initial_primary", "nobody", "initial_primary 'nobody' is not the name of a node"),
    "one port for two purposes": ("nodes.0.admin_port", 3301, "admin_port must differ from its port"),
    "a site listed twice": ("sites", ["clinic", "toronto", "montreal", "toronto"], "site 'toronto' is used 2 times"),
    "a node name used twice": ("nodes.1.name", "clinic-db", "node name 'clinic-db' is used 2 times"),
    "two nodes in one site": ("nodes.1.site", "clinic", "site of a node 'clinic' is used 2 times"),
    "two replicators in one site": ("replicators.1.site", "clinic", "site of a replicator 'clinic' is used 2 times"),
    "a controller name used twice": ("controllers.1.name", "clinic-controller", "is used 2 times"),
    "a server id of two nodes": ("nodes.1.server_id", 1, "two with one id disconnect each other for ever"),
    "a server id of node and replicator": ("replicators.0.server_id", 1, "server_id 1 is used 2 times"),
    "an address used twice": ("replicators.0.port", 3301, "address '127.0.0.1:3301' is used 2 times"),
    "an address of a controller and a clinic": ("clinics.0.port", 9001, "address '127.0.0.1:9001' is used 2 times"),
    "a node outside the sites": ("nodes.2.site", "calgary", "nodes: site 'calgary' is not in sites"),
    "a replicator outside the sites": ("replicators.2.site", "calgary", "replicators: site 'calgary' is not in sites"),
    "a controller outside the sites": ("controllers.2.site", "calgary", "controllers: site 'calgary' is not in sites"),
    "a node with nothing to replicate from": ("replicators.2.site", "toronto", "node 'montreal-db' has no replicator"),
}


@pytest.mark.parametrize(("path", "value", "sentence"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_contradiction_names_its_consequence(path: str, value: object, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        settings.check(changed(path, value))
    assert sentence in caught.value.message
    assert caught.value.exit_code == 2


BAD_FIELDS: dict[str, tuple[str, object, str]] = {
    "a port out of range": ("nodes.0.port", 70_000, "nodes.0.port: Input should be less than or equal to 65535"),
    "a port that is text": ("clinics.0.port", "mysql", "clinics.0.port: Input should be a valid integer"),
    "a server id of zero": ("nodes.0.server_id", 0, "nodes.0.server_id: Input should be greater than or equal to 1"),
    "acks that are neither": ("acks", "two", "acks: Input should be 'one' or 'all'"),
    "a name with a space": ("name", "my cluster", "name: String should match pattern"),
    "a profile that does not exist": ("profile", "quick", "profile: Input should be 'default' or 'fast'"),
    "deadlines that are none": ("timing", "quick", "timing"),
    "no duration at all": ("timing.session_ttl_ms", 0, "timing.session_ttl_ms: Input should be greater than"),
    "an unknown setting": ("timing.sesion_ttl_ms", 5, "timing.sesion_ttl_ms: Unexpected keyword argument"),
    "another engine": ("engine", "postgres", "engine: Input should be 'mariadb'"),
    "no ZooKeeper": ("zookeeper", [], "zookeeper: Tuple should have at least 1 item"),
    "a ZooKeeper without a port": ("zookeeper", ["127.0.0.1"], "zookeeper.0: String should match pattern"),
    "one site alone": ("sites", ["clinic"], "sites: Tuple should have at least 2 items"),
    "a node that is no table": ("nodes", ["clinic"], "nodes.0"),
}


def test_a_degradation_sooner_than_a_slow_call_is_refused() -> None:
    whole = {**raw(), "acks": "all", "acks_all_degrade_after_ms": 1_999}

    with pytest.raises(BadInput, match="one slow second leaves a site out"):
        settings.check(whole)
    assert settings.check({**whole, "acks_all_degrade_after_ms": 2_000}).acks_all_degrade_after_ms == 2_000


@pytest.mark.parametrize(("path", "value", "sentence"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_a_bad_field_is_named_with_its_value(path: str, value: object, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        settings.check(changed(path, value))
    assert sentence in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", sorted(set(raw()) - {"clinics"}))
def test_a_missing_setting_is_named(name: str) -> None:
    whole = raw()
    del whole[name]

    with pytest.raises(BadInput, match=f"{name}: Field required"):
        settings.check(whole)


def test_everything_wrong_is_said_at_once() -> None:
    whole = changed("timing.lease_margin_ms", 3_000)
    whole["initial_primary"] = "nobody"

    with pytest.raises(BadInput) as caught:
        settings.check(whole)
    assert "lease_margin_ms" in caught.value.message
    assert "nobody" in caught.value.message


@pytest.mark.parametrize("name", ["", "Clinic-DB", "nobody"])
def test_asking_for_what_is_not_there_lists_what_is(name: str) -> None:
    with pytest.raises(BadInput, match="there is no node") as caught:
        settings.check(raw()).node(name)
    assert caught.value.hint == "one of: clinic-db, montreal-db, toronto-db"


def test_a_settings_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('name = "demo"\n[timing]\nlease_margin_ms = 500\n', encoding="utf-8")

    with pytest.raises(BadInput, match="nodes: Field required") as caught:
        settings.load(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(("content", "sentence"), [(b"name = ", "is not TOML"), (b"\xff\xfe", "cannot be read")])
def test_a_settings_file_that_is_no_toml_is_said(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_bytes(content)

    with pytest.raises(BadInput, match=sentence):
        settings.load(path)


def test_a_settings_file_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read") as caught:
        settings.load(tmp_path / "none.toml")
    assert caught.value.hint


# -- secrets ------------------------------------------------------------------------------------------------------------


def with_secrets(directory: Path) -> settings.Settings:
    """Return settings whose secret files are in `directory`."""
    whole = raw()
    names = {"admin_password_file": "admin", "replication_password_file": "repl", "verify_password_file": "verify"}
    whole["accounts"] = {field: str(directory / name) for field, name in names.items()}
    whole["token_file"] = str(directory / "token")
    for name in (*names.values(), "token"):
        (directory / name).write_text(f"secret-{name}\nsecond line\n", encoding="utf-8")
        (directory / name).chmod(0o600)
    return settings.check(whole)


def test_a_secret_is_the_first_line_and_never_shows(tmp_path: Path) -> None:
    secrets = settings.read_secrets(with_secrets(tmp_path))

    assert (secrets.admin, secrets.token) == ("secret-admin", "secret-token")
    assert "secret-" not in repr(secrets)
    assert "secret-" not in str(secrets)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    cluster = with_secrets(tmp_path)
    (tmp_path / "repl").chmod(mode)

    with pytest.raises(BadInput, match=r"accounts\.replication_password_file: others can read") as caught:
        settings.read_secrets(cluster)
    assert "chmod 600" in caught.value.hint
    assert "secret-" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n", "   \nsecond"])
def test_an_empty_secret_is_refused(tmp_path: Path, content: str) -> None:
    cluster = with_secrets(tmp_path)
    (tmp_path / "token").write_text(content, encoding="utf-8")

    with pytest.raises(BadInput, match=r"token_file: .* is empty"):
        settings.read_secrets(cluster)


def test_a_missing_secret_names_its_setting(tmp_path: Path) -> None:
    cluster = with_secrets(tmp_path)
    (tmp_path / "admin").unlink()

    with pytest.raises(BadInput, match=r"accounts\.admin_password_file"):
        settings.read_secrets(cluster)


def test_a_path_that_cannot_be_is_bad_input() -> None:
    with pytest.raises(BadInput, match="token_file"):
        settings.read_secret(Path("a\0b"), "token_file")
