"""The coordination layer against a real ZooKeeper that is frozen, killed and raced (TRAPS.md 28 to 31)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

import pytest
from kazoo.client import KazooClient

from chaos.lab.probe import zookeeper_mode
from cluster import clock
from cluster.coordination import Coordination, Create, Delete, Exists, Replace
from cluster.errors import BadInput, Conflict, Unreachable
from cluster.settings import Timing
from cluster.zookeeper import Session
from tests.servers.process import free_port
from tests.servers.proxy import Proxy
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers

TIMING = Timing(session_ttl_ms=2_000, lease_margin_ms=400, renew_interval_ms=100, call_deadline_ms=500)
WIDE = Timing(session_ttl_ms=6_000, lease_margin_ms=1_000, renew_interval_ms=100, call_deadline_ms=1_000)
"""Wide enough to elect another leader within."""
WIDE_LEASE_MS = WIDE.session_ttl_ms - WIDE.lease_margin_ms
LEASE_MS = TIMING.session_ttl_ms - TIMING.lease_margin_ms
START_DEADLINE_MS = 10_000
WAIT_DEADLINE_MS = 15_000
SLACK_MS = 1_000
"""How late a busy machine may be."""
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A record for tests."""

    text: str


class OfTheLoop(Coordination):
    """Over a session of the event loop, which is only its own here."""

    def __init__(self, hosts: Sequence[str], root: str, timing: Timing) -> None:
        self._own = Session(hosts, timing.session_ttl_ms)
        super().__init__(hosts, root, timing, self._own)

    async def start(self, *, deadline_ms: float) -> None:
        try:
            await super().start(deadline_ms=deadline_ms)
        except BaseException:
            await self._own.stop()
            raise

    async def stop(self) -> None:
        await super().stop()
        await self._own.stop()


KIND: ContextVar[type[Coordination]] = ContextVar("KIND")


@pytest.fixture(params=[Coordination, OfTheLoop], ids=["kazoo", "loop"], autouse=True)
def kind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to talk to ZooKeeper keep the same promises: every test is of both."""
    token = KIND.set(request.param)
    yield
    KIND.reset(token)


def made(hosts: Sequence[str], root: str, timing: Timing) -> Coordination:
    return KIND.get()(hosts, root, timing)


@asynccontextmanager
async def a_session(server: ZooKeeperServer, root: str, timing: Timing = TIMING) -> AsyncIterator[Coordination]:
    coordination = made([server.address], root, timing)
    await coordination.start(deadline_ms=START_DEADLINE_MS)
    try:
        yield coordination
    finally:
        await coordination.stop()


async def until(condition: Callable[[], bool], what: str, deadline_ms: float = WAIT_DEADLINE_MS) -> None:
    deadline = clock.after(clock.now(), deadline_ms)
    while not condition():
        assert clock.seconds_left(deadline) > 0, f"not within {deadline_ms} ms: {what}"
        await asyncio.sleep(POLL_SECONDS)


async def until_answered(coordination: Coordination) -> None:
    """Wait until ZooKeeper answers this session again."""
    deadline = clock.after(clock.now(), WAIT_DEADLINE_MS)
    while True:
        try:
            await coordination.get("")
            return
        except Unreachable:
            assert clock.seconds_left(deadline) > 0, "ZooKeeper does not answer again"
            await asyncio.sleep(POLL_SECONDS)


async def text_of(coordination: Coordination, path: str) -> str | None:
    found = await coordination.read(Note, path)
    return found[0].text if found else None


# -- compare-and-set ----------------------------------------------------------------------------------------------------


async def test_compare_and_set_holds_at_version_zero(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    """`version or -1` would switch it off exactly here (TRAPS.md 30)."""
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.create("epoch", Note(text="one"))
        await coordination.replace("epoch", Note(text="two"), 0)

        with pytest.raises(Conflict):
            await coordination.replace("epoch", Note(text="stale"), 0)
        assert await coordination.read(Note, "epoch") == (Note(text="two"), 1)


async def test_a_record_that_exists_is_not_created_again(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.create("plan", Note(text="first"))

        with pytest.raises(Conflict):
            await coordination.create("plan", Note(text="second"))
        assert await text_of(coordination, "plan") == "first"


async def test_replacing_what_is_gone_is_a_conflict(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        with pytest.raises(Conflict):
            await coordination.replace("plan", Note(text="x"), 0)


async def test_deleting_needs_the_version_and_forgives_absence(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.create("pause", Note(text="a"))
        await coordination.replace("pause", Note(text="b"), 0)

        with pytest.raises(Conflict):
            await coordination.delete("pause", 0)
        await coordination.delete("pause", 1)
        await coordination.delete("pause")
        assert await coordination.get("pause") is None


async def test_history_is_numbered_by_zookeeper(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        first = await coordination.create("history/", Note(text="one"), sequence=True)
        second = await coordination.create("history/", Note(text="two"), sequence=True)

        assert first < second
        assert len(await coordination.children("history")) == 2


async def test_a_record_that_does_not_fit_names_path_and_field(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    @dataclass(frozen=True)
    class Other:
        number: int

    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.create("epoch", Other(number=1))

        with pytest.raises(BadInput, match=f"{zookeeper_root}/epoch is not a Note: text: Field required"):
            await coordination.read(Note, "epoch")


# -- transactions -------------------------------------------------------------------------------------------------------


async def test_a_transaction_does_all_or_nothing(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.create("epoch", Note(text="one"))
        await coordination.create("plan", Note(text="plan"))

        with pytest.raises(Conflict, match="epoch: BadVersionError"):
            await coordination.transact(
                [Delete("plan", 0), Replace("epoch", Note(text="two"), 7), Create("other", Note(text="o"))]
            )
        assert await text_of(coordination, "plan") == "plan"
        assert await text_of(coordination, "epoch") == "one"
        assert await coordination.get("other") is None

        await coordination.transact(
            [Exists("plan"), Delete("plan", 0), Replace("epoch", Note(text="two"), 0), Create("new", Note(text="n"))]
        )
        assert await coordination.get("plan") is None
        assert await text_of(coordination, "epoch") == "two"
        assert await text_of(coordination, "new") == "n"


async def test_a_leader_that_was_deposed_writes_nothing(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    """Every effect carries the proof that its leader still leads (DESIGN.md invariant 4)."""
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.create("epoch", Note(text="one"))

        with pytest.raises(Conflict, match="election"):
            await coordination.transact(
                [Exists(f"{zookeeper_root}/election/gone"), Replace("epoch", Note(text="two"), 0)]
            )
        assert await text_of(coordination, "epoch") == "one"


# -- publishing and the lease -------------------------------------------------------------------------------------------


async def test_publishing_renews_the_lease_and_reading_does_not(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        assert coordination.lease_until is None
        await coordination.get("nodes/a")
        assert not coordination.lease_valid(clock.now())

        before = clock.now()
        await coordination.publish("nodes/a", Note(text="here"))
        assert coordination.lease_valid(clock.now())
        assert coordination.lease_until is not None
        assert clock.after(before, LEASE_MS) <= coordination.lease_until <= clock.after(clock.now(), LEASE_MS)

        until = coordination.lease_until
        await coordination.get("nodes/a")
        assert coordination.lease_until == until


async def test_a_record_goes_away_with_its_process(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as watcher:
        async with a_session(zookeeper, zookeeper_root) as coordination:
            await coordination.publish("nodes/a", Note(text="here"))
            assert await text_of(watcher, "nodes/a") == "here"
        assert await watcher.get("nodes/a") is None


@pytest.mark.parametrize("path", ["leader", "nodes/a"])
async def test_a_record_is_never_seen_empty(path: str, zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    """Whoever read `leader` in the moment between found nothing in it, and called that a bad record."""
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.publish(path, Note(text="here"))
        answer = coordination.client.exists_async(coordination.path(path.rpartition("/")[0]))
        folder = await (answer if isinstance(answer, asyncio.Future) else asyncio.to_thread(answer.get))

        assert folder.cversion == 1, "the record was made, and nothing in its place before"


async def test_a_withdrawn_record_is_gone_and_can_come_back(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.publish("nodes/a", Note(text="one"))
        await coordination.withdraw("nodes/a")
        assert await coordination.get("nodes/a") is None

        await coordination.publish("nodes/a", Note(text="two"))
        assert await text_of(coordination, "nodes/a") == "two"


async def test_a_restarted_process_takes_over_its_old_record(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    """The old session lives on until its ttl ends; the new process must not wait for that."""
    async with a_session(zookeeper, zookeeper_root) as old, a_session(zookeeper, zookeeper_root) as new:
        await old.publish("nodes/a", Note(text="old"))
        await new.publish("nodes/a", Note(text="new"))

        assert await text_of(new, "nodes/a") == "new"


@pytest.mark.parametrize(("by_us", "by_them"), [(1, 1), (2, 1), (1, 2), (3, 3)])
async def test_a_foreign_takeover_is_a_conflict(
    zookeeper: ZooKeeperServer, zookeeper_root: str, by_us: int, by_them: int
) -> None:
    """Deleting and recreating starts the versions anew: an equal version does not make the record ours."""
    async with a_session(zookeeper, zookeeper_root) as ours, a_session(zookeeper, zookeeper_root) as theirs:
        for _ in range(by_us):
            await ours.publish("nodes/a", Note(text="ours"))
        for _ in range(by_them):
            await theirs.publish("nodes/a", Note(text="theirs"))
        lease = ours.lease_until

        with pytest.raises(Conflict, match="taken over"):
            await ours.publish("nodes/a", Note(text="ours again"))
        assert ours.lease_until == lease


async def test_two_reports_at_once_are_no_conflict(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.publish("nodes/a", Note(text="one"))
        await asyncio.gather(*(coordination.publish("nodes/a", Note(text=str(number))) for number in range(10)))

        assert coordination.lease_valid(clock.now())


# -- watching -----------------------------------------------------------------------------------------------------------


async def test_a_watch_fires_when_the_record_changes(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.create("epoch", Note(text="one"))
        changed = asyncio.Event()
        await coordination.get("epoch", changed.set)

        await coordination.replace("epoch", Note(text="two"), 0)
        await asyncio.wait_for(changed.wait(), WAIT_DEADLINE_MS / 1000)


async def test_a_watch_fires_when_the_record_appears(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        changed = asyncio.Event()
        assert await coordination.get("epoch", changed.set) is None

        await coordination.create("epoch", Note(text="one"))
        await asyncio.wait_for(changed.wait(), WAIT_DEADLINE_MS / 1000)


async def test_a_watch_fires_when_the_first_child_appears(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        changed = asyncio.Event()
        assert await coordination.children("nodes", changed.set) == ()
        await coordination.publish("nodes/b", Note(text="one"))
        await asyncio.wait_for(changed.wait(), WAIT_DEADLINE_MS / 1000)

        changed.clear()
        assert await coordination.children("nodes", changed.set) == ("b",)
        await coordination.publish("nodes/a", Note(text="two"))
        await asyncio.wait_for(changed.wait(), WAIT_DEADLINE_MS / 1000)
        assert await coordination.children("nodes") == ("a", "b")


# -- silence ------------------------------------------------------------------------------------------------------------


async def test_the_lease_ends_by_our_own_clock_when_zookeeper_is_frozen(
    own_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """Nobody tells a holder that is cut off: kazoo reports a lost session only after reconnecting (TRAPS.md 28)."""
    async with a_session(own_zookeeper, zookeeper_root) as coordination:
        await coordination.publish("nodes/a", Note(text="here"))
        own_zookeeper.freeze()
        frozen = clock.now()
        try:
            while coordination.lease_valid(clock.now()):
                assert clock.ms_between(frozen, clock.now()) < LEASE_MS + SLACK_MS
                with pytest.raises(Unreachable):
                    await coordination.publish("nodes/a", Note(text="still here?"))
                await asyncio.sleep(POLL_SECONDS)

            assert clock.ms_between(frozen, clock.now()) < LEASE_MS + SLACK_MS
        finally:
            own_zookeeper.thaw()
        await until_answered(coordination)
        assert not coordination.lease_valid(clock.now()), "reading gives no lease back"
        await coordination.publish("nodes/a", Note(text="back"))
        assert coordination.lease_valid(clock.now())


async def test_calls_to_a_frozen_zookeeper_end_at_their_deadline(
    own_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_session(own_zookeeper, zookeeper_root) as coordination:
        await coordination.create("epoch", Note(text="one"))
        own_zookeeper.freeze()
        try:
            for call in (
                coordination.get("epoch"),
                coordination.children(""),
                coordination.replace("epoch", Note(text="two"), 0),
                coordination.transact([Replace("epoch", Note(text="three"), 0)]),
            ):
                begun = clock.now()
                with pytest.raises(Unreachable):
                    await call
                assert clock.ms_between(begun, clock.now()) < TIMING.call_deadline_ms + SLACK_MS
        finally:
            own_zookeeper.thaw()
        await until_answered(coordination)

        found = await coordination.get("epoch")
        assert found is not None
        assert found.version <= 1, "an unanswered compare-and-set happens once or never, not twice"


async def test_a_call_while_suspended_is_refused_and_never_done_later(
    own_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """kazoo would queue it and run it minutes later (TRAPS.md 29)."""
    async with a_session(own_zookeeper, zookeeper_root) as coordination:
        own_zookeeper.freeze()
        try:
            await until(lambda: not coordination.connected, "kazoo notices the silence")
            begun = clock.now()
            with pytest.raises(Unreachable, match="not connected"):
                await coordination.create("late", Note(text="must never appear"))
            assert clock.ms_between(begun, clock.now()) < SLACK_MS
        finally:
            own_zookeeper.thaw()
        await until_answered(coordination)

        assert await coordination.get("late") is None


async def test_a_session_survives_a_restart_of_zookeeper(own_zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    news: list[bool] = []
    async with a_session(own_zookeeper, zookeeper_root) as coordination:
        coordination.listen(news.append)
        await coordination.publish("nodes/a", Note(text="here"))
        own_zookeeper.kill()
        await until(lambda: not coordination.connected, "the loss is noticed")
        own_zookeeper.start()
        await until_answered(coordination)
        await coordination.publish("nodes/a", Note(text="still here"))

        assert await text_of(coordination, "nodes/a") == "still here"
        assert news[0] is False
        assert news[-1] is True


async def test_an_expired_session_is_replaced_and_publishes_again(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.publish("nodes/a", Note(text="one"))
        session = coordination.client.client_id
        await asyncio.to_thread(end_session, zookeeper, session)
        await until(lambda: coordination.connected and coordination.client.client_id != session, "another session")
        assert await coordination.get("nodes/a") is None, "the record went away with its session"
        await coordination.publish("nodes/a", Note(text="two"))

        assert await text_of(coordination, "nodes/a") == "two"
        assert coordination.lease_valid(clock.now())


async def test_another_write_renews_no_lease_before_a_lost_record_is_made_anew(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """Others have seen our record vanish: until it is back, no reply may make us believe in our lease."""
    async with a_session(zookeeper, zookeeper_root) as coordination:
        await coordination.create("epoch", Note(text="one"))
        await coordination.publish("nodes/a", Note(text="one"))
        session, lease = coordination.client.client_id, coordination.lease_until
        await asyncio.to_thread(end_session, zookeeper, session)
        await until(lambda: coordination.connected and coordination.client.client_id != session, "another session")
        await coordination.transact([Replace("epoch", Note(text="two"), 0)])

        assert coordination.lease_until == lease


def end_session(server: ZooKeeperServer, identity: object) -> None:
    """End somebody's session, as ZooKeeper does after the ttl: join it from elsewhere and close it."""
    other = KazooClient(hosts=server.address, client_id=identity)
    other.start(START_DEADLINE_MS / 1000)
    other.stop()
    other.close()


async def test_stopping_does_not_wait_for_a_frozen_zookeeper(
    own_zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    coordination = made([own_zookeeper.address], zookeeper_root, TIMING)
    await coordination.start(deadline_ms=START_DEADLINE_MS)
    own_zookeeper.freeze()
    begun = clock.now()
    try:
        await coordination.stop()
        assert clock.ms_between(begun, clock.now()) < TIMING.session_ttl_ms + SLACK_MS
    finally:
        own_zookeeper.thaw()


# -- an ensemble --------------------------------------------------------------------------------------------------------


async def test_losing_one_member_of_three_has_no_effect(
    zookeeper_ensemble: list[ZooKeeperServer], zookeeper_root: str
) -> None:
    """The session, its record and its lease move to another member; nobody is fenced."""
    addresses = [member.address for member in zookeeper_ensemble]
    coordination = made(addresses, zookeeper_root, WIDE)
    await coordination.start(deadline_ms=START_DEADLINE_MS)
    try:
        await publish_until_renewed(coordination)
        session = coordination.client.client_id
        connected_to(coordination, zookeeper_ensemble).kill()
        killed = clock.now()
        await publish_until_renewed(coordination, since=killed)

        assert coordination.client.client_id == session
        assert clock.ms_between(killed, clock.now()) < WIDE.session_ttl_ms - WIDE.lease_margin_ms, "in time"
    finally:
        await coordination.stop()


async def test_a_silent_member_is_left_for_another_before_the_lease_ends(
    zookeeper_ensemble: list[ZooKeeperServer], zookeeper_root: str
) -> None:
    """As when its site is cut off: kazoo takes our questions for its pings, and waits for ever while we ask."""
    follower = next(member for member in zookeeper_ensemble if zookeeper_mode("127.0.0.1", member.port) == "follower")
    others = [member.address for member in zookeeper_ensemble if member is not follower]
    coordination = Coordination([*others, f"localhost:{follower.port}"], zookeeper_root, WIDE, nearest="localhost")
    await coordination.start(deadline_ms=START_DEADLINE_MS)
    try:
        assert connected_to(coordination, zookeeper_ensemble) is follower, "our own host's is asked first"
        await publish_until_renewed(coordination)
        session = coordination.client.client_id
        follower.freeze()
        frozen = clock.now()
        await publish_until_renewed(coordination, since=frozen)

        assert coordination.client.client_id == session
        assert clock.ms_between(frozen, clock.now()) < WIDE_LEASE_MS, "in time"
    finally:
        follower.thaw()
        await coordination.stop()


async def test_a_member_cut_off_from_the_others_renews_no_lease(
    zookeeper_ensemble: list[ZooKeeperServer], zookeeper_root: str
) -> None:
    """A majority elsewhere may have named somebody else: what the lonely member says proves nothing."""
    lonely, *others = zookeeper_ensemble
    coordination = made([lonely.address], zookeeper_root, WIDE)
    await coordination.start(deadline_ms=START_DEADLINE_MS)
    try:
        await publish_until_renewed(coordination)
        for member in others:
            member.freeze()
        frozen = clock.now()
        while coordination.lease_valid(clock.now()):
            assert clock.ms_between(frozen, clock.now()) < WIDE.session_ttl_ms + SLACK_MS
            with suppress(Unreachable):
                await coordination.get("nodes/a")
            with pytest.raises(Unreachable):
                await coordination.publish("nodes/a", Note(text="alone"))
            await asyncio.sleep(POLL_SECONDS)
    finally:
        for member in others:
            member.thaw()
        await coordination.stop()


async def publish_until_renewed(coordination: Coordination, since: clock.Nanos | None = None) -> None:
    """Publish until a write that began after `since` was answered."""
    begun = clock.now() if since is None else since
    ends = clock.after(begun, WAIT_DEADLINE_MS)
    while coordination.lease_until is None or coordination.lease_until < clock.after(begun, WIDE_LEASE_MS):
        assert clock.seconds_left(ends) > 0, "no write is answered"
        with suppress(Unreachable):
            await coordination.publish("nodes/a", Note(text="here"))
        await asyncio.sleep(POLL_SECONDS)


def connected_to(coordination: Coordination, members: list[ZooKeeperServer]) -> ZooKeeperServer:
    client = coordination.client
    port = client.peer[1] if isinstance(client, Session) else client._connection._socket.getpeername()[1]
    return next(member for member in members if member.port == port)


# -- bad input ----------------------------------------------------------------------------------------------------------


async def test_no_zookeeper_is_said_within_the_deadline() -> None:
    address = f"127.0.0.1:{free_port()}"
    coordination = made([address], "/oscar-ha/none", TIMING)
    begun = clock.now()

    with pytest.raises(BadInput, match=f"no ZooKeeper answers at {address} within 300 ms"):
        await coordination.start(deadline_ms=300)
    assert clock.ms_between(begun, clock.now()) < 300 + SLACK_MS


async def test_a_frozen_zookeeper_at_the_start_is_said_in_time(own_zookeeper: ZooKeeperServer) -> None:
    coordination = made([own_zookeeper.address], "/oscar-ha/frozen", TIMING)
    own_zookeeper.freeze()
    begun = clock.now()
    try:
        with pytest.raises(BadInput, match="no ZooKeeper answers"):
            await coordination.start(deadline_ms=300)
        assert clock.ms_between(begun, clock.now()) < TIMING.session_ttl_ms + SLACK_MS
    finally:
        own_zookeeper.thaw()


async def test_a_zookeeper_that_shortens_sessions_is_refused(own_zookeeper: ZooKeeperServer) -> None:
    """A session may last 20 ticks at most. Were ours shorter than we believe, our record would vanish, and somebody
    be promoted, while we still hold the lease."""
    own_zookeeper.kill()
    own_zookeeper.tick_ms = 50
    own_zookeeper.start()
    coordination = made([own_zookeeper.address], "/oscar-ha/short", TIMING)

    with pytest.raises(BadInput, match=r"ends sessions after 1000 ms, timing\.session_ttl_ms is 2000"):
        await coordination.start(deadline_ms=START_DEADLINE_MS)
    assert not coordination.connected


async def test_a_connection_that_breaks_at_the_start_is_made_again(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """A member of an ensemble that has just begun may drop who comes first: that ended the process."""
    pieces = 0

    def cut(_: bytearray) -> bool:
        nonlocal pieces
        pieces += 1
        if pieces == 2:  # the session was granted; its first question is never answered
            raise OSError("cut")
        return pieces > 2

    with Proxy(int(zookeeper.address.rsplit(":", 1)[1])) as proxy:
        proxy.damage_by(cut)
        one = made([f"127.0.0.1:{proxy.port}"], zookeeper_root, Timing())
        try:
            await one.start(deadline_ms=10_000)
            assert await one.get("") is not None
        finally:
            await one.stop()

    assert proxy.connections == 2
