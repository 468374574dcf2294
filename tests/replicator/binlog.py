"""Binlog files made by hand, event by event, for tests without a server."""

from struct import Struct

from cluster.binlog.events import Kind
from cluster.binlog.framing import MAGIC, an_event
from cluster.position import Gtid, Position

GTID_STANDALONE = 1
GTID_TRANSACTIONAL = 4


class Binlog:
    """Grows a binlog file; `groups` notes where each transaction ends."""

    def __init__(self, position: str = "", *, server_id: int = 1) -> None:
        self.server_id = server_id
        self.data = MAGIC
        self.events: list[bytes] = []
        self.boundaries: list[tuple[int, str]] = []
        self.position = Position.parse(position)
        self.add(Kind.FORMAT_DESCRIPTION, bytes(2 + 50 + 4 + 1 + 171) + b"\x01")
        gtids = sorted(self.position.last.values())
        entries = b"".join(Struct("<IIQ").pack(gtid.domain, gtid.server, gtid.sequence) for gtid in gtids)
        self.add(Kind.GTID_LIST, Struct("<I").pack(len(gtids)) + entries)
        self.note()

    def add(self, kind: int, body: bytes = b"", *, flags: int = 0) -> bytes:
        size = 19 + len(body) + 4
        event = an_event(kind, body, server_id=self.server_id, end_position=len(self.data) + size, flags=flags)
        self.data += event
        self.events.append(event)
        return event

    def note(self) -> None:
        self.boundaries.append((len(self.data), str(self.position)))

    def gtid(self, text: str, *, standalone: bool = False) -> None:
        gtid = Gtid.parse(text)
        self.server_id = gtid.server
        flags = GTID_STANDALONE if standalone else GTID_TRANSACTIONAL
        self.add(Kind.GTID, Struct("<QIB").pack(gtid.sequence, gtid.domain, flags) + bytes(6))
        self.position = self.position.with_gtid(gtid)

    def transaction(self, text: str, *, rows: int = 1, row_bytes: int = 50) -> None:
        self.gtid(text)
        self.add(Kind.TABLE_MAP, bytes(30))
        for _ in range(rows):
            self.add(Kind.WRITE_ROWS_V1, bytes(row_bytes))
        self.add(Kind.XID, bytes(8))
        self.note()

    def query(self, text: str) -> None:
        self.add(Kind.QUERY, Struct("<IIBHH").pack(1, 0, 1, 0, 3) + b"abc" + b"d\0" + text.encode())

    def ddl(self, text: str, statement: str = "CREATE TABLE t (a INT)") -> None:
        self.gtid(text, standalone=True)
        self.query(statement)
        self.note()

    def rotate(self, file: str) -> None:
        self.add(Kind.ROTATE, Struct("<Q").pack(4) + file.encode())
        self.note()
