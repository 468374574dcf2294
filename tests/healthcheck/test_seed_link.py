"""Who may fetch a copy: only with a certificate of the cluster and the token of this very copy, and only while somebody listens."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.certificates import issue, make_authority
from cluster.errors import BadInput, OscarHaError, Unauthorized, Unreachable
from cluster.settings import Tls
from healthcheck import seed_framing as framing
from healthcheck import seed_link as link
from healthcheck import seed_taking
from healthcheck.seed_framing import Kind, Trailer
from healthcheck.seed_giving import give, new_token
from healthcheck.seed_orders import GiveOrder, TakeOrder, read_line
from tests.conftest import require
from tests.healthcheck.site import eventually
from tests.servers.process import free_port

TOKEN = "ab" * framing.TOKEN_BYTES
DEADLINE_MS = 3_000.0
JOIN_SECONDS = 30.0


def certificates(directory: Path, hosts: tuple[str, ...] = ("127.0.0.1",)) -> Tls:
    """Make an authority and a certificate of it."""
    directory.mkdir()
    authority = make_authority("test")
    authority.write(directory / "ca.pem", directory / "ca-key.pem")
    issue(authority, hosts).write(directory / "own.pem", directory / "own-key.pem")
    return Tls(
        ca_file=directory / "ca.pem", certificate_file=directory / "own.pem", private_key_file=directory / "own-key.pem"
    )


class Donor:
    """`give` in a thread; what it raised is kept."""

    def __init__(self, order: GiveOrder) -> None:
        self.order = order
        self.error: OscarHaError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            give(self.order)
        except OscarHaError as error:
            self.error = error

    def await_listening(self) -> None:
        """Wait until somebody may come."""
        eventually(lambda: listens(self.order.port), what="it never listens")

    def ended(self) -> OscarHaError | None:
        self._thread.join(JOIN_SECONDS)
        assert not self._thread.is_alive(), "it never ends"
        return self.error


def an_order(directory: Path, tls: Tls | None, **changes: Any) -> GiveOrder:
    order = GiveOrder(
        host="127.0.0.1", port=free_port(), token=TOKEN, tls=tls, socket=directory / "no.sock",
        data_directory=directory, user="nobody", password="secret", megabytes_per_second_max=None,
        deadline_ms=DEADLINE_MS,
    )  # fmt: skip
    return replace(order, **changes)


def came(order: GiveOrder, tls: Tls | None, token: str = TOKEN) -> bytes:
    """Come as a receiver would; return what was given first."""
    eventually(lambda: listens(order.port), what="the donor never listens")
    with link.connected(order.host, order.port, tls, DEADLINE_MS) as connection:
        connection.sendall(framing.hello(bytes.fromhex(token)))
        return link.receive(connection)


def listens(port: int) -> bool:
    """Return whether a socket listens there; a connection would be the one that the donor waits for."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in map(str.split, lines))


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return certificates(tmp_path / "ours")


@pytest.fixture
def donor(tmp_path: Path, tls: Tls) -> Iterator[Donor]:
    """A donor that demands certificates; it has no database."""
    with ExitStack() as stack:
        found = Donor(an_order(tmp_path, tls))
        stack.callback(found.ended)
        yield found


def test_a_stranger_with_a_certificate_of_his_own_is_not_spoken_to(donor: Donor, tls: Tls, tmp_path: Path) -> None:
    strange = certificates(tmp_path / "strange")
    believes_ours = strange.__class__(
        ca_file=tls.ca_file, certificate_file=strange.certificate_file, private_key_file=strange.private_key_file
    )
    with pytest.raises(OscarHaError):
        came(donor.order, believes_ours)

    assert isinstance(donor.ended(), Unreachable)


def test_plain_text_is_not_spoken_to(donor: Donor) -> None:
    with pytest.raises(OscarHaError):
        came(donor.order, None)

    assert isinstance(donor.ended(), Unreachable)


def test_a_certificate_without_the_token_of_this_copy_is_refused(donor: Donor, tls: Tls) -> None:
    with pytest.raises(OscarHaError):
        came(donor.order, tls, token=new_token())

    assert isinstance(donor.ended(), Unauthorized)


def test_a_donor_for_another_host_is_not_believed(tmp_path: Path) -> None:
    elsewhere = certificates(tmp_path / "elsewhere", ("10.0.0.1",))
    donor = Donor(an_order(tmp_path, elsewhere))
    with pytest.raises(Unreachable, match="certificate"):
        came(donor.order, elsewhere)

    assert isinstance(donor.ended(), Unreachable)


def test_a_donor_to_which_nobody_comes_ends(tmp_path: Path) -> None:
    assert isinstance(Donor(an_order(tmp_path, None, deadline_ms=50.0)).ended(), Unreachable)


def test_without_certificates_nothing_leaves_this_machine(tmp_path: Path) -> None:
    for host in ("192.0.2.1", "db.example.org", "0.0.0.0"):
        error = Donor(an_order(tmp_path, None, host=host)).ended()
        assert isinstance(error, BadInput)
        assert "[tls]" in error.hint


@pytest.mark.servers
def test_a_backup_that_fails_is_never_taken_for_a_copy(
    tmp_path: Path, tls: Tls, capsys: pytest.CaptureFixture[str]
) -> None:
    """The producer dies, the stream ends orderly all the same: only its trailer tells (TRAPS.md 39, 43)."""
    require("" if shutil.which("mariadb-backup") else "mariadb-backup")
    donor = Donor(an_order(tmp_path, tls))
    order = TakeOrder(
        host="127.0.0.1", port=donor.order.port, token=TOKEN, tls=tls, option_file=tmp_path / "x.cnf",
        data_directory=tmp_path / "data", fresh=tmp_path / "data.seeding", user="u", password="secret",
        deadline_ms=DEADLINE_MS,
    )  # fmt: skip
    donor.await_listening()
    with pytest.raises(OscarHaError, match=r"the donor's backup failed: .*no\.sock"):
        seed_taking.take(order)

    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not any(line.get("done") for line in said)
    assert "secret" not in str(said) + repr(order) + repr(donor.order)
    assert donor.ended() is not None


WHOLE = framing.trailer(Trailer(exit_status=0, bytes=0, sha256="0" * framing.SHA256_CHARACTERS, said=""))
LIES: dict[str, tuple[bytes, str]] = {
    "more than the disk holds": (framing.start(10**15), "needs about"),
    "an end without a trailer": (framing.start(10), "in the middle of the copy"),
    "another checksum": (framing.start(10) + WHOLE, "bytes came"),
    "a frame beyond every limit": (framing.HEADER.pack(b"D", 2**32 - 1), "more than"),
    "no protocol at all": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a frame of kind"),
    "data that is no stream of files": (framing.frame(Kind.DATA, b"x" * 1000) + WHOLE, "mbstream|cannot be written"),
}


@pytest.mark.servers
@pytest.mark.parametrize("lie", LIES)
def test_a_donor_that_lies_or_ends_early_gives_no_copy(lie: str, tmp_path: Path) -> None:
    require("" if shutil.which("mbstream") else "mbstream (package mariadb-backup)")
    said, reason = LIES[lie]
    listening = link.listen("127.0.0.1", 0)
    port = int(listening.getsockname()[1])

    def lies() -> None:
        with link.accepted(listening, None, DEADLINE_MS) as connection, suppress(OSError):
            link.receive_exactly(connection, framing.HELLO_BYTES)
            connection.sendall(said)

    liar = threading.Thread(target=lies)
    liar.start()
    data = tmp_path / "data"
    data.mkdir()
    order = TakeOrder(
        host="127.0.0.1", port=port, token=TOKEN, tls=None, option_file=tmp_path / "x.cnf", data_directory=data,
        fresh=tmp_path / "data.seeding", user="u", password="secret", deadline_ms=DEADLINE_MS,
    )  # fmt: skip
    try:
        with pytest.raises(OscarHaError, match=reason):
            seed_taking.take(order)
    finally:
        liar.join(JOIN_SECONDS)
    assert list(data.iterdir()) == []


def test_what_a_worker_says_comes_back_as_the_same_error() -> None:
    error = Unauthorized("no token", hint="bring it")
    with pytest.raises(Unauthorized, match="no token") as caught:
        read_line(json.dumps({"error": error.as_record()}).encode())

    assert caught.value.hint == "bring it"
