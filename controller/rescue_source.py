"""Where rescues are read from: the watchdog of their node, or the folder itself on that host."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from cluster import errors, records
from cluster.errors import BadInput, Unreachable
from cluster.settings import Node
from healthcheck import rescue_folder, rescue_lines
from healthcheck.rescue_api import ranges_of
from healthcheck.rescue_folder import MARKS, Rescue
from healthcheck.rescue_lines import Line
from healthcheck.rescuing import MARKS_MAX, Mark, append_marks, marks_in

SILENCE_SECONDS = 30.0
LINE_BYTES_MAX = 2**30
ANSWER_BYTES_MAX = 64 * 2**20
Ranges = Sequence[tuple[int, int]]


class RescueSource(Protocol):
    """The rescues of a node."""

    def listed(self) -> list[Rescue]: ...
    def lines(self, rescue: str) -> Iterator[Line]: ...
    def done(self, rescue: str) -> Ranges:
        """Return the lines that need nothing more, as ranges of their numbers."""
        ...

    def mark(self, rescue: str, marks: Sequence[Mark]) -> None:
        """Note durably what became of lines."""
        ...


class FolderSource:
    """A folder with rescues, on this host."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def listed(self) -> list[Rescue]:
        if not self._place.is_dir():
            raise BadInput(
                f"{self._place}: there is no such folder", hint="the folder that holds the rescues of a cluster"
            )
        return rescue_folder.rescues_in(self._place)

    def lines(self, rescue: str) -> Iterator[Line]:
        return rescue_folder.lines_of(self._folder(rescue))

    def done(self, rescue: str) -> Ranges:
        marks = marks_in(self._folder(rescue) / MARKS)
        return ranges_of({one.number for one in marks if one.outcome != "conflict"})

    def mark(self, rescue: str, marks: Sequence[Mark]) -> None:
        append_marks(self._folder(rescue), marks)

    def _folder(self, rescue: str) -> Path:
        if "/" in rescue or not (self._place / rescue).is_dir():
            raise BadInput(f"there is no rescue {rescue!r} in {self._place}", hint="see: oscar-ha rescue ls")
        return self._place / rescue


class WatchdogSource:
    """The watchdog beside the node."""

    def __init__(self, node: Node, token: str) -> None:
        self._url, self._token = f"{node.watchdog_url}/v1/rescues", token

    def listed(self) -> list[Rescue]:
        return [records.decode(Rescue, one, where=self._url) for one in self._json("")["rescues"]]

    def done(self, rescue: str) -> Ranges:
        return [(int(first), int(last)) for first, last in self._json(f"/{_quoted(rescue)}/done")["done"]]

    def lines(self, rescue: str) -> Iterator[Line]:
        with self._open(f"/{_quoted(rescue)}/lines") as answer:
            try:
                while data := answer.readline(LINE_BYTES_MAX):
                    yield rescue_lines.decode(data)
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"{self._url}: {error or type(error).__name__}") from error

    def mark(self, rescue: str, marks: Sequence[Mark]) -> None:
        for begin in range(0, len(marks), MARKS_MAX // 2):
            body = {"marks": [asdict(one) for one in marks[begin : begin + MARKS_MAX // 2]]}
            self._json(f"/{_quoted(rescue)}/marks", json.dumps(body).encode())

    def _json(self, path: str, body: bytes | None = None) -> Any:
        with self._open(path, body) as answer:
            try:
                return json.loads(answer.read(ANSWER_BYTES_MAX))
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Unreachable(f"{self._url}{path}: {error}") from error

    def _open(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            self._url + path, data=body, headers={"Authorization": f"Bearer {self._token}"}
        )
        try:
            return urllib.request.urlopen(request, timeout=SILENCE_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                raise _told(error.read(ANSWER_BYTES_MAX), where=self._url + path) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Unreachable(f"{self._url}{path}: {reason}", hint="is its watchdog running?") from error


def _told(body: bytes, *, where: str) -> errors.OscarHaError:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = body[:200].decode(errors="replace")
    return errors.from_record(answer.get("error") if isinstance(answer, dict) else answer, where=where)


def _quoted(rescue: str) -> str:
    return urllib.parse.quote(rescue, safe="")
