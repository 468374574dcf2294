"""The settings of one cluster: one TOML file, the same on every host; frozen, typed, checked all at once.

Units end the names. Relations between settings are checked here, and the message names the consequence.
Secrets are never in this file: it names files that hold them.
"""

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from cluster.errors import BadInput
from cluster.records import Acks, DurabilityPolicy, Isolation, describe
from cluster.rules import HealthRules, Hook, hook_contradictions

Thing = TypeVar("Thing")
_STRICT = ConfigDict(extra="forbid", frozen=True)
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+:[0-9]{1,5}$|^\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
ServerId = Annotated[int, Field(ge=1, le=2**32 - 1)]
Rows = Annotated[int, Field(ge=1, le=10**12)]


@checked(config=_STRICT, kw_only=True)
class Timing:
    """Every deadline of the cluster. The defaults are safe over a WAN; `profile` names others."""

    session_ttl_ms: Milliseconds = 4_000
    """ZooKeeper session: how long silence lasts before a lease ends. ZooKeeper grants no less than two of its ticks, and
    ends a session at the tick after: with `tickTime` 2000, its default, a second later on average than with 500."""
    lease_margin_ms: Milliseconds = 750
    """A holder stops this much earlier, a waiter waits this much longer."""
    renew_interval_ms: Milliseconds = 1_000
    call_deadline_ms: Milliseconds = 2_000
    """Hard deadline of every single call to ZooKeeper, a database or another process."""
    probe_interval_ms: Milliseconds = 250
    probe_deadline_ms: Milliseconds = 3_000
    """A database that answers nothing for this long is hung."""
    heartbeat_interval_ms: Milliseconds = 1_000
    """Heartbeat row on the primary, and heartbeats of an idle replication stream."""
    stream_deadline_ms: Milliseconds = 3_000
    """A replication stream that is silent for this long is dead."""
    fence_deadline_ms: Milliseconds = 3_000
    """Fencing that has not ended by then stops the server."""
    step_deadline_ms: Milliseconds = 15_000
    """A step of a plan that has not ended by then has failed."""
    watchdog_grace_ms: Milliseconds = 5_000
    """How long a primary whose streams are alive may be without its watchdog before it is replaced."""


PROFILES: Mapping[str, Mapping[str, int]] = {
    "default": {},
    "fast": {
        "session_ttl_ms": 2_000,
        "lease_margin_ms": 400,
        "renew_interval_ms": 400,
        "call_deadline_ms": 1_000,
        "probe_deadline_ms": 1_500,
        "heartbeat_interval_ms": 500,
        "stream_deadline_ms": 1_500,
        "fence_deadline_ms": 1_500,
        "watchdog_grace_ms": 2_500,
    },
}
"""What stands in `timing` unless the settings say otherwise. `fast` is for hosts whose network is never silent for 1.6 s
(decision 0095)."""


@checked(config=_STRICT, kw_only=True)
class Accounts:
    """Database accounts of oscar-ha. Each password is the first line of a file that only its owner can read."""

    admin_user: str = "oscar_ha"
    admin_password_file: Path
    replication_user: str = "oscar_ha_repl"
    replication_password_file: Path
    verify_user: str = "oscar_ha_verify"
    verify_password_file: Path


@checked(config=_STRICT, kw_only=True)
class Tls:
    """TLS of every replication link. The same paths on every host: each has its own certificate there."""

    ca_file: Path
    """The authority that signs for this cluster: what it did not sign is not believed."""
    certificate_file: Path
    """Names this host as the settings name it; PEM, intermediate certificates behind it."""
    private_key_file: Path


@checked(config=_STRICT, kw_only=True)
class Node:
    """One database server and the watchdog beside it."""

    name: Name
    site: Name
    server_id: ServerId
    host: str = "127.0.0.1"
    port: Port
    admin_port: Port | None = None
    """MariaDB's `extra_port`: still answers when `max_connections` is used up."""
    pid_file: Path
    watchdog_port: Port
    no_promotion: bool = False
    """Whether it becomes the primary only where an operator names it: a weak machine, or one that others work on."""
    data_directory: Path | None = None
    """This and the next three are needed to seed the node anew, or to seed another one from it."""
    socket: Path | None = None
    option_file: Path | None = None
    """The server's option file, with everything it is started with."""
    start_command: tuple[str, ...] = ()
    """Starts the server: `systemctl start mariadb`, or the server itself. It is run with a deadline, never by a shell."""
    seed_port: Port | None = None
    """Where the node gives its data away; any free port if not set."""
    rescue_directory: Path | None = None
    """Where transactions are kept that only this node has. Unset: `rescue` beside data_directory, else beside pid_file."""

    @property
    def watchdog_url(self) -> str:
        return f"http://{self.host}:{self.watchdog_port}"

    @property
    def rescues(self) -> Path:
        """Return where this node's rescues lie."""
        if self.rescue_directory is not None:
            return self.rescue_directory
        return (self.data_directory or self.pid_file).parent / "rescue"

    def missing_to_receive(self) -> tuple[str, ...]:
        """Return the settings without which this node cannot be seeded."""
        needed = ("data_directory", "option_file", "start_command")
        return tuple(name for name in needed if not getattr(self, name))

    def missing_to_give(self) -> tuple[str, ...]:
        """Return the settings without which no other node can be seeded from this one."""
        return tuple(name for name in ("data_directory", "socket") if not getattr(self, name))


@checked(config=_STRICT, kw_only=True)
class Seeding:
    """How a node is built from another one."""

    megabytes_per_second_max: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """What the donor sends at most; without it as much as disks and network allow."""
    writes_wait_seconds_max: Annotated[int, Field(ge=1, le=3600)] = 20
    """How long writes of the clinics may wait without a break for a copy that the primary gives, before it is ended."""


@checked(config=_STRICT, kw_only=True)
class Rescue:
    """How rescued transactions may be read."""

    over_network_in_clear: bool = False
    """Whether a watchdog gives rescued rows, which are charts, to another host. Its HTTP is not encrypted: only where the
    network is, a VPN."""


@checked(config=_STRICT, kw_only=True)
class Replicator:
    """The replicator of one site."""

    site: Name
    server_id: ServerId
    host: str = "127.0.0.1"
    port: Port
    """Where it serves the replication protocol."""
    http_port: Port
    archive: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.http_port}"


@checked(config=_STRICT, kw_only=True)
class ArchiveRules:
    """How every replicator keeps its archive."""

    key_file: Path | None = None
    """Keys for AES-256-GCM, made by `oscar-ha archive new-key`. Without it the archive lies in clear."""
    reserve_bytes: Annotated[int, Field(ge=2**20, le=2**50)] = 64 * 2**20
    """Below this much free space nothing is received or acknowledged any more."""
    scrub_bytes_per_second: Annotated[int, Field(ge=2**16, le=2**40)] = 8 * 2**20
    """So fast closed files are read again, to find what the disk has lost."""
    scrub_every_hours: Annotated[float, Field(gt=0, le=8_784)] = 168.0
    """So long after the end of a round through all of them the next one begins."""
    compress: bool = True
    """Whether closed files are compressed, once they are `compress_after_minutes` old."""
    compress_after_minutes: Annotated[int, Field(ge=0, le=1_000_000)] = 60
    keep_days: Annotated[int, Field(ge=1, le=36_500)] = 30
    """A file whose newest commit is older may go, once nobody needs it any more."""
    max_bytes: Annotated[int, Field(ge=2**20, le=2**60)] | None = None
    """All files together, on disk; the oldest go when there is more, once nobody needs them any more."""


@checked(config=_STRICT, kw_only=True)
class Controller:
    """One controller; the cluster needs two or more."""

    name: Name
    site: Name
    host: str = "127.0.0.1"
    port: Port

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@checked(config=_STRICT, kw_only=True)
class Clinic:
    """One user of the database: the address OSCAR connects to, and its HAProxy's runtime socket."""

    name: Name
    host: str = "127.0.0.1"
    port: Port
    runtime_port: Port
    backend: str = "oscar"
    """The HAProxy backend; its servers carry the names of the nodes."""


@checked(config=_STRICT, kw_only=True)
class FailoverRules:
    """When a failover no longer happens by itself: what fails again and again needs a person, not another promotion."""

    automatic_max: int = Field(default=5, ge=1, le=10_000)
    """So many automatic failovers within the time below; the next one waits for an operator's word."""
    within_minutes: int = Field(default=60, ge=1, le=10_080)
    on_isolation: Literal[Isolation.PROMOTE, Isolation.HOLD] = Isolation.PROMOTE
    """What becomes of a primary that is cut off. `promote`: it closes, another one is promoted. `hold`: it goes on serving
    whom it can reach, and another one is promoted only on proof that it is dead, or by an operator's word."""

    @property
    def holds(self) -> bool:
        """Return whether a primary that is cut off goes on."""
        return self.on_isolation is Isolation.HOLD


DEGRADE_AFTER_SECONDS = 30


@checked(config=_STRICT, kw_only=True)
class DurabilityRules:
    """What commits do while no site outside the primary's can acknowledge them."""

    policy: DurabilityPolicy = DurabilityPolicy.STRICT
    """`strict`: they wait until one can. `available`: they wait so long; then it is recorded that they wait no more."""
    degrade_after_seconds: int | None = Field(default=None, ge=1, le=86_400)
    """Only with `available`; unset: 30."""
    failover_while_degraded: Literal["wait", "lose"] = "wait"
    """Whether a primary that died while nobody acknowledged is replaced by itself though what it wrote alone is lost."""

    @property
    def degrade_after_ms(self) -> float | None:
        """Return for how long commits wait for a site; None: for ever."""
        if self.policy is DurabilityPolicy.STRICT:
            return None
        return (self.degrade_after_seconds or DEGRADE_AFTER_SECONDS) * 1000.0


@checked(config=_STRICT, kw_only=True)
class RejoinRules:
    """What a node that came back and cannot follow may have done to it by itself."""

    automatic: bool = True
    """Whether it is built anew from another node once all that only it has is rescued; else a person does it."""
    attempts_max: int = Field(default=3, ge=1, le=10_000)
    """So many attempts on one node, each within the time below of the one before; the next one waits for a person."""
    within_hours: int = Field(default=24, ge=1, le=8_784)
    restart_after_seconds: int = Field(default=300, ge=1, le=86_400)
    """A crashed server that nobody has started for so long is started by its watchdog: systemd comes first."""


@checked(config=_STRICT, kw_only=True)
class TableAlarm:
    """Other limits for the tables that a pattern fits; what is not given is as in `alarm`."""

    tables: str = Field(min_length=1, max_length=200)
    """`database.table`, with `*` and `?`; the first pattern that fits counts."""
    changed_rows_per_minute: Rows | None = None
    inserted_rows_per_minute: Rows | None = None
    drops: bool | None = None


@checked(config=_STRICT, kw_only=True)
class Alarm:
    """When changes are so many that a person must hear of it; counted by every replicator, for each table."""

    changed_rows_per_minute: Rows = 5_000
    """Updates and deletes together. All that a busy clinic writes to one table in an hour is less."""
    inserted_rows_per_minute: Rows = 50_000
    drops: bool = True
    """Whether what takes the rows of a table without deleting them (DROP, TRUNCATE, RENAME, DROP COLUMN ...; decision 0065)
    is an alarm by itself."""
    keep_minutes: int = Field(default=15, ge=1, le=1_440)
    """So long an alarm stands after the last change that belongs to it."""
    tables: tuple[TableAlarm, ...] = Field(default=(), max_length=200)


@checked(config=_STRICT, kw_only=True)
class Settings:
    """One cluster. `sites` is in order of preference: for the next primary and for the acknowledging site."""

    name: Name
    engine: Literal["mariadb"] = "mariadb"
    zookeeper: tuple[Address, ...] = Field(min_length=1)
    """Each member as host:port."""
    initial_primary: Name
    sites: tuple[Name, ...] = Field(min_length=2)
    token_file: Path
    acks: Acks = Acks.ONE
    """Whose disk an acknowledgement means: that of one site in another city, or (`all`) those of all of them."""
    acks_all_degrade_after_ms: Milliseconds | None = None
    """Under `all`: leave a lost site out after so long, once that is recorded; unset: commits wait until it is back."""
    event_scheduler: bool = False
    """Whether a primary runs events; a fenced node and a standby never do."""
    accounts: Accounts
    profile: Literal["default", "fast"] = "default"
    """Which deadlines stand in `timing` where it says nothing: those for a WAN, or those for one place."""
    timing: Timing = Field(default_factory=Timing)
    failover: FailoverRules = Field(default_factory=FailoverRules)
    durability: DurabilityRules = Field(default_factory=DurabilityRules)
    rejoin: RejoinRules = Field(default_factory=RejoinRules)
    health: HealthRules = Field(default_factory=HealthRules)
    hooks: tuple[Hook, ...] = Field(default=(), max_length=20)
    alarm: Alarm = Field(default_factory=Alarm)
    tls: Tls | None = None
    """Without it the replication links carry plain text."""
    archive: ArchiveRules = Field(default_factory=ArchiveRules)
    seeding: Seeding = Field(default_factory=Seeding)
    rescue: Rescue = Field(default_factory=Rescue)
    nodes: tuple[Node, ...] = Field(min_length=2)
    replicators: tuple[Replicator, ...] = Field(min_length=2)
    controllers: tuple[Controller, ...] = Field(min_length=1)
    clinics: tuple[Clinic, ...] = ()

    @property
    def root(self) -> str:
        """Return the cluster's path in ZooKeeper."""
        return f"/oscar-ha/{self.name}"

    def node(self, name: str) -> Node:
        """Return the node called `name`. Raises BadInput."""
        return _by("node", name, {node.name: node for node in self.nodes})

    def replicator(self, site: str) -> Replicator:
        """Return the replicator of `site`. Raises BadInput."""
        return _by("replicator at site", site, {one.site: one for one in self.replicators})

    def controller(self, name: str) -> Controller:
        """Return the controller called `name`. Raises BadInput."""
        return _by("controller", name, {one.name: one for one in self.controllers})


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the secret files hold. Never printed: `repr` shows nothing."""

    admin: str = field(repr=False)
    replication: str = field(repr=False)
    verify: str = field(repr=False)
    token: str = field(repr=False)


_ADAPTER = TypeAdapter(Settings)


def load(path: Path) -> Settings:
    """Read and check a settings file. Raises BadInput that names every wrong field at once."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"settings {path} cannot be read: {error}", hint="give the path of the cluster's TOML file"
        ) from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"settings {path} is not TOML: {error}", hint="mend that line") from error
    return check(raw, where=f"settings {path}")


def check(raw: object, *, where: str = "settings") -> Settings:
    """Return `raw` as Settings. Raises BadInput that names every wrong field and every contradiction at once."""
    try:
        settings = _ADAPTER.validate_python(_with_profile(raw))
    except ValidationError as error:
        raise BadInput(f"{where}: {describe(error)}", hint="mend the named fields") from error
    problems = contradictions(settings)
    if problems:
        raise BadInput(f"{where}: {'; '.join(problems)}", hint="mend the named fields")
    return settings


def _with_profile(raw: object) -> object:
    """Return `raw` with the deadlines of its profile below its own. What is malformed stays as it is, to be told."""
    if not isinstance(raw, Mapping):
        return raw
    given, profile = raw.get("timing", {}), raw.get("profile")
    if not isinstance(given, Mapping) or not isinstance(profile, str):
        return raw
    return {**raw, "timing": {**PROFILES.get(profile, {}), **given}}


def contradictions(settings: Settings) -> list[str]:
    """Return what cannot be true together, one sentence each, naming the consequence."""
    timing = settings.timing
    known = set(settings.sites)
    rules: Iterable[tuple[bool, str]] = (
        (timing.lease_margin_ms * 3 <= timing.session_ttl_ms,
         "timing.lease_margin_ms must be at most a third of session_ttl_ms, or the primary never holds its lease"),
        (timing.renew_interval_ms * 2 <= timing.session_ttl_ms - timing.lease_margin_ms,
         "timing.renew_interval_ms must fit twice into session_ttl_ms - lease_margin_ms, or one lost reply fences the primary"),
        (timing.call_deadline_ms < timing.session_ttl_ms,
         "timing.call_deadline_ms must be below session_ttl_ms, or one slow call outlives the lease"),
        (timing.heartbeat_interval_ms * 2 <= timing.stream_deadline_ms,
         "timing.stream_deadline_ms must be at least twice heartbeat_interval_ms, or an idle stream looks dead"),
        (timing.fence_deadline_ms < timing.session_ttl_ms,
         "timing.fence_deadline_ms must end inside session_ttl_ms, or two primaries overlap"),
        (settings.initial_primary in {node.name for node in settings.nodes},
         f"initial_primary {settings.initial_primary!r} is not the name of a node"),
        (all(node.admin_port != node.port for node in settings.nodes), "a node's admin_port must differ from its port"),
    )  # fmt: skip
    problems = [sentence for holds, sentence in rules if not holds]
    problems += _degradation(settings) + _unhealthy(settings) + hook_contradictions(settings.hooks)
    problems += _repeated("site", settings.sites)
    problems += _repeated("node name", [node.name for node in settings.nodes])
    problems += _repeated("site of a node", [node.site for node in settings.nodes])
    problems += _repeated("site of a replicator", [one.site for one in settings.replicators])
    problems += _repeated("controller name", [one.name for one in settings.controllers])
    problems += _repeated("clinic name", [one.name for one in settings.clinics])
    ids = [node.server_id for node in settings.nodes] + [one.server_id for one in settings.replicators]
    problems += [f"{text}: two with one id disconnect each other for ever" for text in _repeated("server_id", ids)]
    problems += _repeated("address", _addresses(settings))
    problems += _wrong_paths(settings)
    for kind, sites in (
        ("nodes", [node.site for node in settings.nodes]),
        ("replicators", [one.site for one in settings.replicators]),
        ("controllers", [one.site for one in settings.controllers]),
    ):
        problems += [f"{kind}: site {site!r} is not in sites" for site in sites if site not in known]
    without = [node.name for node in settings.nodes if node.site not in {one.site for one in settings.replicators}]
    problems += [f"node {name!r} has no replicator in its site to replicate from" for name in without]
    return problems


def _degradation(settings: Settings) -> list[str]:
    return _patience_under_all(settings) + _without_ackers(settings)


def _without_ackers(settings: Settings) -> list[str]:
    rules, found = settings.durability, []
    if rules.policy is DurabilityPolicy.STRICT:
        if rules.degrade_after_seconds is not None:
            found.append(
                "durability.degrade_after_seconds is set while durability.policy is 'strict': it would never be used"
            )
        if rules.failover_while_degraded == "lose":
            found.append(
                "durability.failover_while_degraded is 'lose' while durability.policy is 'strict': nothing is degraded then"
            )
        if settings.failover.holds:
            found.append(
                "failover.on_isolation is 'hold' while durability.policy is 'strict': a primary that is cut off would keep its "
                "clinics waiting for an acknowledgement that cannot come"
            )
    elif settings.acks is Acks.ALL and settings.acks_all_degrade_after_ms is None:
        found.append(
            "durability.policy 'available' under acks 'all' needs acks_all_degrade_after_ms, or one lost site stops commits for ever"
        )
    after_ms = rules.degrade_after_ms
    if after_ms is not None and after_ms < settings.timing.call_deadline_ms:
        found.append(
            "durability.degrade_after_seconds must be at least timing.call_deadline_ms, or one slow second degrades"
        )
    return found


def _patience_under_all(settings: Settings) -> list[str]:
    after_ms = settings.acks_all_degrade_after_ms
    if after_ms is None:
        return []
    if settings.acks is not Acks.ALL:
        return ["acks_all_degrade_after_ms is set while acks is 'one': it would never be used"]
    if after_ms < settings.timing.call_deadline_ms:
        return [
            "acks_all_degrade_after_ms must be at least timing.call_deadline_ms, or one slow second leaves a site out"
        ]
    return []


def _unhealthy(settings: Settings) -> list[str]:
    health, timing = settings.health, settings.timing
    rules: Iterable[tuple[bool, str]] = (
        (health.late_ms < health.storage_hung_ms,
         "health.late_ms must be below storage_hung_ms, or nobody is warned before a failover"),
        (health.silent_busy_ms >= timing.probe_deadline_ms,
         "health.silent_busy_ms must be at least timing.probe_deadline_ms, or a busy server is hung sooner than an idle one"),
        (health.disk_full_bytes <= health.disk_warning_bytes,
         "health.disk_full_bytes must be at most disk_warning_bytes, or a disk is full before anybody is warned"),
    )  # fmt: skip
    return [sentence for holds, sentence in rules if not holds]


def read_secrets(settings: Settings) -> Secrets:
    """Read every secret file. Raises BadInput naming the file, never the content."""
    accounts = settings.accounts
    return Secrets(
        admin=read_secret(accounts.admin_password_file, "accounts.admin_password_file"),
        replication=read_secret(accounts.replication_password_file, "accounts.replication_password_file"),
        verify=read_secret(accounts.verify_password_file, "accounts.verify_password_file"),
        token=read_secret(settings.token_file, "token_file"),
    )


def read_secret(path: Path, setting: str) -> str:
    """Return the first line of a secret file that nobody else can read. Raises BadInput."""
    lines = read_secret_lines(path, setting)
    if not lines or not lines[0].strip():
        raise BadInput(f"{setting}: {path} is empty", hint="write the secret on its first line")
    return lines[0].strip()


def read_secret_lines(path: Path, setting: str) -> list[str]:
    """Return the lines of a secret file that nobody else can read. Raises BadInput."""
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(f"{setting}: {path} cannot be read: {error}", hint="create it, mode 0600") from error
    if mode & 0o077:
        raise BadInput(f"{setting}: others can read {path} (mode {mode & 0o777:04o})", hint=f"chmod 600 {path}")
    return lines


def _by(what: str, name: str, things: dict[str, Thing]) -> Thing:
    if name not in things:
        raise BadInput(f"there is no {what} {name!r}", hint=f"one of: {', '.join(sorted(things))}")
    return things[name]


def _repeated(what: str, values: Sequence[str | int]) -> list[str]:
    return [f"{what} {value!r} is used {times} times" for value, times in Counter(values).items() if times > 1]


def _addresses(settings: Settings) -> list[str]:
    pairs: list[tuple[str, int | None]] = []
    for node in settings.nodes:
        pairs += [(node.host, node.port), (node.host, node.admin_port), (node.host, node.watchdog_port)]
        pairs += [(node.host, node.seed_port)]
    for one in settings.replicators:
        pairs += [(one.host, one.port), (one.host, one.http_port)]
    pairs += [(one.host, one.port) for one in settings.controllers]
    for clinic in settings.clinics:
        pairs += [(clinic.host, clinic.port), (clinic.host, clinic.runtime_port)]
    return [f"{_canonical(host)}:{port}" for host, port in pairs if port is not None]


def _wrong_paths(settings: Settings) -> list[str]:
    inside = [
        f"rescue_directory of node {node.name!r} must not lie in its data_directory: that is what gets replaced"
        for node in settings.nodes
        if node.data_directory is not None and node.rescues.is_relative_to(node.data_directory)
    ]
    return inside + [
        f"{name} {str(path)!r} of node {node.name!r} must begin with /: a server and its backup look from different places"
        for node in settings.nodes
        for name in ("data_directory", "socket", "option_file", "rescue_directory")
        if (path := getattr(node, name)) is not None and not path.is_absolute()
    ]


def _canonical(host: str) -> str:
    try:
        return str(ip_address(host))
    except ValueError:
        return host.lower()
