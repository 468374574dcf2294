"""Where a server is in the history: a MariaDB GTID position, one last transaction per domain.

Source: MariaDB Knowledge Base, "Global Transaction ID". An empty position is a fact ("nothing yet");
an unknown one is `None` and never appears here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

from cluster.errors import BadInput

PARSED_MAX = 256
"""So many texts are remembered with what they say: each round of a controller compares the same few positions."""
_GTID = re.compile(r"(\d{1,10})-(\d{1,10})-(\d{1,20})", re.ASCII)
U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True, order=True)
class Gtid:
    """One transaction: replication domain, the server that first committed it, its sequence number."""

    domain: int
    server: int
    sequence: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `domain-server-sequence`. Raises BadInput."""
        match = _GTID.fullmatch(text.strip())
        if match is None:
            raise BadInput(f"GTID {text!r} is not of the form domain-server-sequence", hint="for example 0-1-100")
        gtid = cls(*(int(part) for part in match.groups()))
        if gtid.domain > U32_MAX or gtid.server > U32_MAX or gtid.sequence > U64_MAX:
            raise BadInput(f"GTID {text!r} has a number that is too large", hint="32, 32 and 64 bits")
        return gtid

    def __str__(self) -> str:
        return f"{self.domain}-{self.server}-{self.sequence}"


@dataclass(frozen=True, slots=True)
class Position:
    """The last transaction of every domain. Iterate it, compare it with `covers`, grow it with `with_gtid`."""

    last: Mapping[int, Gtid] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `0-1-100,1-2-5`; empty text is the empty position. Raises BadInput."""
        return cls(_parsed(text))

    @classmethod
    def of(cls, gtids: Iterable[Gtid]) -> Self:
        """Return the position after all of `gtids`, the newest of each domain counting."""
        last: dict[int, Gtid] = {}
        for gtid in gtids:
            if gtid.domain not in last or last[gtid.domain].sequence < gtid.sequence:
                last[gtid.domain] = gtid
        return cls(last)

    def __str__(self) -> str:
        return ",".join(str(self.last[domain]) for domain in sorted(self.last))

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.last.items())))

    def sequence(self, domain: int) -> int:
        """Return the last sequence number of `domain`, 0 when there is none."""
        gtid = self.last.get(domain)
        return gtid.sequence if gtid else 0

    def with_gtid(self, gtid: Gtid) -> Self:
        """Return this position moved on to `gtid` in its domain."""
        return type(self)({**self.last, gtid.domain: gtid})

    def covers(self, other: Self) -> bool:
        """Return whether every domain of `other` is reached here, by sequence number alone.

        Sequence numbers rise across servers under `gtid_strict_mode`; whether the transaction with that number is
        the *same* one is a question for `cluster.lineage`.
        """
        return all(self.sequence(gtid.domain) >= gtid.sequence for gtid in other.last.values())

    def distance(self, other: Self) -> int:
        """Return how many transactions `other` has that this position has not, by sequence number."""
        return sum(max(0, gtid.sequence - self.sequence(gtid.domain)) for gtid in other.last.values())


@lru_cache(maxsize=PARSED_MAX)
def _parsed(text: str) -> Mapping[int, Gtid]:
    gtids = [Gtid.parse(part) for part in text.split(",")] if text.strip() else []
    if len({gtid.domain for gtid in gtids}) != len(gtids):
        raise BadInput(f"position {text!r} names a domain twice", hint="one GTID for each domain")
    return {gtid.domain: gtid for gtid in gtids}
