"""TLS on every replication link: with it everything works, and nothing passes to who is not the one we mean."""

import socket
import ssl
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pymysql
import pytest

from cluster import tls
from cluster.binlog.framing import MIB, packet
from cluster.certificates import Issued, issue, make_authority
from cluster.errors import BadInput, Unauthorized
from cluster.settings import Tls
from replicator import wire
from replicator.link import RECORD_BYTES_MAX, Link
from replicator.source import NotTrusted
from tests.replicator.house import House, until
from tests.replicator.serving import a_log, an_archive, read_from, serving
from tests.replicator.test_acknowledging import SEMI_SYNC

AUTHORITY = make_authority("test")


def files_of(directory: Path, *, name: str = "server", authority: Issued = AUTHORITY, host: str = "127.0.0.1",
             days: float = 30.0) -> Tls:  # fmt: skip
    """Write the files of one host."""
    files = Tls(ca_file=directory / "authority.pem", certificate_file=directory / f"{name}.pem",
                private_key_file=directory / f"{name}-key.pem")  # fmt: skip
    files.ca_file.write_bytes(AUTHORITY.certificate_pem)
    issue(authority, (host,), days=days).write(files.certificate_file, files.private_key_file)
    return files


def test_good_files_have_no_problem_and_say_when_they_end(tmp_path: Path) -> None:
    files = files_of(tmp_path)
    tls.require(files)
    tls.require(None)

    end = tls.expires(files)
    assert end is not None
    assert tls.problems(files, end - 1) == []


def test_everything_that_is_wrong_with_the_files_is_named_at_once(tmp_path: Path) -> None:
    files, other = files_of(tmp_path), files_of(tmp_path, name="other")
    files.private_key_file.chmod(0o644)
    files.ca_file.write_text("no certificate")
    end = tls.expires(files)
    assert end is not None
    mixed = replace(files, certificate_file=other.certificate_file)
    found = tls.problems(mixed, end + 60)

    assert [problem.split(":")[0] for problem in found] == [
        "tls.private_key_file", "tls.ca_file", "tls.certificate_file", "tls.private_key_file",
    ]  # fmt: skip
    assert "others can read" in found[0]
    assert "no PEM certificate" in found[1]
    assert "expired at" in found[2]
    assert "is not the key of the certificate" in found[3]
    assert "not valid before" in tls.problems(mixed, 0)[2]


def test_a_missing_file_is_named_and_so_is_a_key_that_is_none(tmp_path: Path) -> None:
    files = files_of(tmp_path)
    files.ca_file.unlink()
    files.private_key_file.write_text("no key")

    with pytest.raises(BadInput, match=r"authority.pem cannot be read: No such file.*holds no PEM private key"):
        tls.require(files)


def test_a_tls_stream_is_read_whole_whatever_pieces_it_comes_in(tmp_path: Path) -> None:
    """Many records a call, none left decrypted where poll does not see it."""
    files = files_of(tmp_path)
    left, right = socket.socketpair()
    data = bytes(range(256)) * 4096
    server, client = tls.server_context(files), tls.client_context(files)
    sides = [(server, left, {"server_side": True}), (client, right, {"server_hostname": "127.0.0.1"})]
    begun = [context.wrap_socket(raw, do_handshake_on_connect=False, **more) for context, raw, more in sides]  # type: ignore[arg-type]  # mixed
    for one in begun:
        one.setblocking(False)
    done = [False, False]
    while not all(done):
        for number, one in enumerate(begun):
            try:
                one.do_handshake()
                done[number] = True
            except ssl.SSLWantReadError:
                pass
    link, space, got = Link(begun[1]), memoryview(bytearray(MIB)), b""
    with begun[0] as sending, begun[1]:
        for begin in range(0, len(data), 50_000):
            sending.send(data[begin : begin + 50_000])
            with suppress(BlockingIOError):
                while count := link.recv_into(space):
                    got += space[:count]
            assert begun[1].pending() == 0

    assert got == data
    assert len(space) > RECORD_BYTES_MAX


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return an_archive(tmp_path / "archive", a_log().data)


REFUSED = {
    "another authority": ({"authority": make_authority("other")}, "unable to get local issuer"),
    "another host": ({"host": "elsewhere.example"}, "mismatch"),
    "an expired certificate": ({"days": -1.0}, "has expired"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_source_with_a_wrong_certificate_is_not_believed(tmp_path: Path, archive: Path, case: str) -> None:
    more, words = REFUSED[case]
    files = files_of(tmp_path, **more)  # type: ignore[arg-type]  # mixed
    if case == "an expired certificate":
        with pytest.raises(BadInput, match="expired"), serving(archive, files=files):
            pass
        return
    with serving(archive, files=files) as server, pytest.raises(NotTrusted, match=words), read_from(server, tls=files):
        pass


def test_a_source_without_tls_is_told_nothing_when_tls_is_set(tmp_path: Path, archive: Path) -> None:
    """Not even our name: somebody in between could have taken the offer away."""
    with serving(archive) as server, pytest.raises(BadInput, match="does not offer TLS"):  # noqa: SIM117 - one thing each
        with read_from(server, tls=files_of(tmp_path)):
            pass


def test_a_plain_text_client_is_refused_by_name(tmp_path: Path, archive: Path) -> None:
    with serving(archive, files=files_of(tmp_path)) as server:
        with pytest.raises(Unauthorized, match="takes only TLS"), read_from(server):
            pass
        with pytest.raises(pymysql.err.OperationalError, match="3159"):
            pymysql.connect(host="127.0.0.1", port=server.port, user="reader", password="x", ssl_disabled=True)
        with read_from(server, tls=files_of(tmp_path, name="again")) as stream:
            assert "oscar-ha" in stream.server_version


def test_a_client_that_sends_its_first_tls_bytes_with_its_wish_is_understood(tmp_path: Path, archive: Path) -> None:
    """As the driver does: both may arrive in one piece."""
    files = files_of(tmp_path)
    with serving(archive, files=files) as server:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        engine = tls.client_context(files).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with pytest.raises(ssl.SSLWantReadError):
            engine.do_handshake()
        wish = packet(wire.CLIENT_SSL.to_bytes(4, "little") + bytes(28), 1)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            raw.recv(4096)
            raw.sendall(wish + outgoing.read())
            until(lambda: finished(engine, incoming, raw), what="the handshake ends")
    assert engine.version() in ("TLSv1.2", "TLSv1.3")


def finished(engine: ssl.SSLObject, incoming: ssl.MemoryBIO, raw: socket.socket) -> bool:
    incoming.write(raw.recv(65536))
    try:
        engine.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


@pytest.mark.servers
def test_every_link_works_in_tls_and_in_tls_only(house: House) -> None:
    """Pulling and acknowledging, filling from another replicator, and an unmodified standby that verifies."""
    house.use_tls()
    primary = house.database("clinic", **SEMI_SYNC)
    primary.run("SET SESSION sql_log_bin=0", "ALTER USER oscar_ha_repl@'%' REQUIRE SSL")
    house.begin_epoch("clinic", ackers=("toronto",))
    house.replicator("toronto")
    standby = house.database("toronto")
    house.follow("toronto", position="")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT)")
    primary.run(*[f"INSERT INTO d.t VALUES ({number}, REPEAT('x', {number * 5000}))" for number in range(100)],
                "FLUSH BINARY LOGS", "INSERT INTO d.t VALUES (1000, REPEAT('y', 20000000))")  # fmt: skip
    wanted = house.position("clinic")
    house.await_health("toronto", lambda report: report.acknowledging, what="acknowledging")
    primary.run("PURGE BINARY LOGS TO 'binlog.000003'")
    house.replicator("montreal")
    house.await_durable("montreal", wanted)
    house.await_applied("toronto", wanted)

    assert standby.value("CHECKSUM TABLE d.t") == primary.value("CHECKSUM TABLE d.t")
    assert house.slave_status("toronto")["Master_SSL_Verify_Server_Cert"] == "Yes"
    for path in (house.archive("toronto") / "epochs" / "0000000001-1").glob("binlog.*[0-9]"):
        assert (house.archive("montreal") / "epochs" / "0000000001-1" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.servers
def test_nothing_passes_between_a_primary_or_a_standby_and_who_cannot_be_believed(house: House) -> None:
    house.use_tls()
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    primary.run("CREATE DATABASE d")
    expired = house.issue("expired", days=-1.0)
    primary.restart(ssl_cert=expired.certificate_file, ssl_key=expired.private_key_file)
    house.replicator("toronto")
    report = house.await_health("toronto", lambda report: "has expired" in report.why, what="not believed")
    archived = list(house.archive("toronto").rglob("binlog.*[0-9]"))
    primary.restart()
    house.await_durable("toronto", house.position("clinic"))

    assert "needs a person" in report.why
    assert archived == []
    refuse_as_standby(house)


def refuse_as_standby(house: House) -> None:
    """A standby believes no replicator with a wrong certificate; the right ones count again without a restart."""
    assert house.tls is not None
    served = house.tls.certificate_file, house.tls.private_key_file
    kept = [path.read_bytes() for path in served]
    standby = house.database("toronto")
    for files in (house.issue("a", authority=make_authority("other")), house.issue("b", host="elsewhere.example")):
        served[0].write_bytes(files.certificate_file.read_bytes())
        served[1].write_bytes(files.private_key_file.read_bytes())
        house.follow("toronto", position="")
        said = str(until(lambda: house.slave_status("toronto")["Last_IO_Error"], what="the standby refuses"))
        assert "certificate" in said.lower() or "SSL" in said
        assert standby.value("SELECT @@gtid_slave_pos") == ""
    for path, data in zip(served, kept, strict=True):
        path.write_bytes(data)
    house.follow("toronto", position="")
    house.await_applied("toronto", house.position("clinic"))
