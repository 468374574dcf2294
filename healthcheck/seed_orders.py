"""What the watchdog tells the two processes that move data, and what they tell it: one JSON object a line.

Orders carry secrets, so they go through standard input, never through a command line. A worker says something at least
every second; one that is silent is killed. It dies with its watchdog.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from cluster import errors, records
from cluster.errors import BadInput, OscarHaError
from cluster.settings import Tls

ORDER_BYTES_MAX = 65_536
SAID_BYTES, SAID_CHARACTERS_MAX = 8_000, 400
Order = TypeVar("Order")


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveOrder:
    """Give the data of the running server to whoever comes with the token."""

    host: str
    port: int
    token: str
    tls: Tls | None
    socket: Path
    data_directory: Path
    user: str
    password: str
    megabytes_per_second_max: int | None
    deadline_ms: float
    """Silence of the other end for this long is the end."""

    def __repr__(self) -> str:
        return f"GiveOrder({self.host}:{self.port})"  # it holds secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOrder:
    """Take the data of another server into a fresh directory, make it whole and prove it."""

    host: str
    port: int
    token: str
    tls: Tls | None
    option_file: Path
    data_directory: Path
    fresh: Path
    user: str
    password: str
    deadline_ms: float

    def __repr__(self) -> str:
        return f"TakeOrder({self.host}:{self.port})"  # it holds secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a worker says. Everything is optional; `error` is its last word."""

    port: int | None = None
    phase: records.SeedPhase | None = None
    bytes: int | None = None
    bytes_total: int | None = None
    position: str | None = None
    done: bool = False
    error: dict[str, str | bool] | None = None


def encode(order: GiveOrder | TakeOrder) -> bytes:
    """Return an order as the line that a worker reads."""
    return json.dumps(asdict(order), default=str).encode() + b"\n"


def read_order(kind: type[Order]) -> Order:
    """Return the order from standard input. Raises BadInput, which never shows what came: it may hold secrets."""
    line = sys.stdin.buffer.readline(ORDER_BYTES_MAX)
    try:
        return records.decode(kind, line, where="the order")
    except BadInput:
        raise BadInput("the order cannot be read", hint="is one version of oscar-ha installed?") from None


def say(line: Line) -> None:
    """Tell the watchdog."""
    fields = {name: value for name, value in asdict(line).items() if value is not None}
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def say_error(error: OscarHaError) -> None:
    """Tell the watchdog why it ends."""
    say(Line(error=error.as_record()))


def read_line(text: bytes) -> Line:
    """Return what a worker said. Raises the error that it told, or BadInput."""
    line = records.decode(Line, text, where="what a worker said")
    if line.error is not None:
        kind = errors.ERRORS_BY_CODE.get(str(line.error.get("code")), OscarHaError)
        raise kind(str(line.error.get("message", "")), hint=str(line.error.get("hint", "")))
    return line


def last_words(path: Path) -> str:
    """Return the line of a program's output that says best why it ended."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - SAID_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "it said nothing"
    bad = [line for line in lines if "ERROR" in line] or [line for line in lines if "rror" in line]
    return (bad or lines[-1:] or ["it said nothing"])[0][:SAID_CHARACTERS_MAX]
