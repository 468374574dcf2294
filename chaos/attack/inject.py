"""Doing a fault to a running lab, and undoing it. What undoes it is written down first (`chaos/lab/faults.py`).

A fault that is no longer possible (what it hits has just died of another) is told as such and is no error: the plan was made
before anybody knew.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pymysql

from chaos import archives
from chaos.attack.catalogue import Act, Fault, Hit, Kind, Parts, resolve
from chaos.lab import control, cuts, cutting, disks, faults, ledger, probe
from chaos.lab.cuts import Only
from chaos.lab.faults import Byte, Undo, Verb
from chaos.lab.layout import Layout
from chaos.lab.names import node_name, select
from chaos.lab_remote import RemoteLab
from chaos.traffic import describe, open_connection
from cluster import clock, settings
from cluster.clock import Nanos
from cluster.errors import BadInput, OscarHaError, Refused

NODE_TIMEOUT_S = 3
FLIPPED_BITS = 0xFF
CLOSED_FILE_DEADLINE_MS = 5_000.0
POLL_S = 0.1


@dataclass(slots=True)
class Injected:
    """One fault as it was done: what it hit, when, and what came of it."""

    fault: Fault
    hit: Hit
    began: Nanos
    healed: Nanos | None = None
    undos: tuple[Undo, ...] = ()
    did_not: str = ""
    """Why it did not happen."""
    told: str = ""
    """What became of it: for a switchover its answer."""
    asking: threading.Thread | None = field(default=None, repr=False)

    @property
    def happened(self) -> bool:
        return not self.did_not

    @property
    def text(self) -> str:
        """Return it as one half of a line of the story."""
        lasts = f" for {self.fault.lasts_ms / 1_000:.1f} s" if self.fault.lasts_ms else ""
        times = f", {self.fault.times} times" if self.fault.times > 1 else ""
        failed = f" (did not happen: {self.did_not})" if self.did_not else ""
        told = f" ({self.told})" if self.told else ""
        return f"{self.fault.kind.value}: {self.hit.text}{lasts}{times}{failed}{told}"


class Injector:
    """All faults of one lab."""

    def __init__(self, lab: RemoteLab) -> None:
        self._lab, self._directory = lab, lab.directory

    def begin(self, fault: Fault, parts: Parts) -> Injected:
        """Do it. What has become impossible is told in what is returned."""
        one = Injected(fault, resolve(fault, parts), clock.now())
        try:
            match one.hit.act:
                case Act.KILL:
                    self._kill(one)
                case Act.FREEZE:
                    self._freeze(one)
                case Act.CUT:
                    self._cut(one)
                case Act.FLIP:
                    self._flip(one, parts)
                case Act.FILL:
                    self._fill(one)
                case Act.ASK:
                    self._ask(one)
        except OscarHaError as error:
            one.did_not = error.message
        return one

    def again(self, one: Injected) -> None:
        """Do the next time of what is done several times: it was started, and is killed once more."""
        if one.happened:
            self._kill(one)

    def end(self, one: Injected) -> None:
        """Heal it. Raises OscarHaError when it cannot be healed. A flipped byte is the archive's own to mend."""
        if one.hit.act is not Act.FLIP:
            for undo in reversed(one.undos):
                faults.undo(self._directory, undo)
        one.healed = clock.now()

    def unmended(self, one: Injected) -> str:
        """Return what of a flipped byte is still false, nothing once the archive has mended it; then it is forgotten."""
        for undo in one.undos if one.hit.act is Act.FLIP else ():
            byte = undo.byte
            if byte is not None and _byte_at(byte) == byte.became:
                return f"the damaged byte of {one.hit.text} is not mended: {Path(byte.path).name}"
            faults.undo(self._directory, undo)
        if one.hit.act is Act.FLIP:
            one.undos = ()
        return ""

    def answered(self, one: Injected) -> str:
        """Return what a switchover still waits for; nothing when it has its answer."""
        waits = one.asking is not None and one.asking.is_alive()
        return f"the switchover to {one.hit.text} has no answer" if waits else ""

    def unserved(self, one: Injected) -> str:
        """Return which of the killed processes does not serve again: its report may be one of before it died."""
        lab = ledger.require(Layout(self._directory))
        names = {undo.what for undo in one.undos if undo.verb is Verb.START}
        wanted = [part for part in lab.parts if part.name in names]
        found = settings.load(Layout(self._directory).settings) if wanted else None
        for part in wanted:
            assert found is not None, "read for them"
            if reason := probe.part_missing(part, found, lab.ports):
                return f"{part.name}: {reason}"
        return ""

    def heal_all(self) -> tuple[str, ...]:
        """Undo everything that is written down."""
        return faults.heal(self._directory)

    # -- the acts ----------------------------------------------------------------------------------------------------

    def _kill(self, one: Injected) -> None:
        names = self._processes(one.hit.names)
        if not one.undos:
            one.undos = tuple(Undo(verb=Verb.START, what=name) for name in names)
            faults.note(self._directory, *one.undos)
        done: list[control.Done] = []
        faults.patiently(lambda: done.extend(control.kill(self._directory, *names)))
        one.began = clock.now() if one.fault.times == 1 else one.began
        if all(each.what != "killed" for each in done):
            one.told = "had ended already"
        if one.fault.kind is Kind.RESTARTS:
            for undo in one.undos:
                faults.patiently(partial(control.start, self._directory, undo.what, wait=False))

    def _freeze(self, one: Injected) -> None:
        one.undos = tuple(Undo(verb=Verb.THAW, what=name) for name in one.hit.names)
        faults.note(self._directory, *one.undos)
        done: list[control.Done] = []
        for name in one.hit.names:
            faults.patiently(partial(_freeze, self._directory, name, done))
        if not done:
            raise Refused(f"{one.hit.text} has ended")

    def _cut(self, one: Injected) -> None:
        (what,) = one.hit.names
        options = _options(one.hit.options)
        cut = cuts.parse(what, self._places(), **options)  # type: ignore[arg-type]  # the catalogue's own words
        one.undos = (Undo(verb=Verb.MEND, what=cut.sentence, cut=cut),)
        faults.note(self._directory, *one.undos)
        cutting.cut(self._directory, what, **options)  # type: ignore[arg-type]  # as above

    def _flip(self, one: Injected, parts: Parts) -> None:
        """Change a byte in the middle of a closed file of the archive; one is closed first where there is none."""
        (site,) = one.hit.names
        file = self._closed_file(site, one.fault.which)
        if file is None:
            self._rotate(node_name(parts.primary))
            deadline, pause = clock.after(clock.now(), CLOSED_FILE_DEADLINE_MS), threading.Event()
            while file is None and clock.now() < deadline:
                pause.wait(POLL_S)
                file = self._closed_file(site, one.fault.which)
        if file is None:
            raise Refused(f"the archive of {site} has no closed file")
        offset = file.stat().st_size // 2
        with file.open("rb") as opened:
            opened.seek(offset)
            was = opened.read(1)[0]
        byte = Byte(path=str(file), offset=offset, was=was, became=was ^ FLIPPED_BITS)
        one.undos = (Undo(verb=Verb.RESTORE, what=f"a byte of {file.name}", byte=byte),)
        faults.note(self._directory, *one.undos)
        with file.open("r+b") as opened:
            opened.seek(offset)
            opened.write(bytes([byte.became]))

    def _fill(self, one: Injected) -> None:
        (site,) = one.hit.names
        place = Layout(self._directory).archive(site)
        if not disks.is_own(place):
            raise Refused(f"the archive of {site} has no disk of its own")
        one.undos = (Undo(verb=Verb.EMPTY, what=str(place)),)
        faults.note(self._directory, *one.undos)
        disks.fill(place)

    def _ask(self, one: Injected) -> None:
        (to,) = one.hit.names

        def ask() -> None:
            try:
                record = self._lab.switchover(to)
                one.told = f"{record.get('outcome', 'answered')}"
            except OscarHaError as error:
                one.told = f"refused: {error.message}"

        one.asking = threading.Thread(target=ask, daemon=True, name="switchover")
        one.asking.start()

    # -- below -------------------------------------------------------------------------------------------------------

    def _processes(self, names: Sequence[str]) -> tuple[str, ...]:
        known = ledger.require(Layout(self._directory)).parts
        return tuple(part.name for name in names for part in select(name, known))

    def _places(self) -> tuple[str, ...]:
        network = ledger.require(Layout(self._directory)).network
        if network is None:
            raise BadInput("this lab is all on loopback: nothing can be cut", hint=cutting.NO_NETWORK_HINT)
        return network.topology.places

    def _closed_file(self, site: str, which: int) -> Path | None:
        """Return a file that is not the newest of its archive; the newest one is being written."""
        files = archives.files_of(Layout(self._directory).archive(site))
        closed = sorted(files, key=lambda key: (key.epoch, key.file))[:-1]
        if not closed:
            return None
        stored = files[closed[-1 - which % len(closed)]]
        return stored if isinstance(stored, Path) else stored.path

    def _rotate(self, node: str) -> None:
        one = self._lab.file.node(node)
        try:
            connection = open_connection(
                host=one.host, port=one.admin_port or one.port, user=one.admin_user, password=one.admin_password,
                read_timeout=NODE_TIMEOUT_S,
            )  # fmt: skip
            with closing(connection), connection.cursor() as cursor:
                cursor.execute("FLUSH BINARY LOGS")
        except (pymysql.Error, OSError) as error:
            raise Refused(f"{node} begins no new binlog file: {describe(error)}") from error


def _freeze(directory: Path, name: str, done: list[control.Done]) -> None:
    done += control.freeze(directory, name, living=True)


def _options(options: Mapping[str, object]) -> dict[str, object]:
    found = dict(options)
    if "only" in found:
        found["only"] = Only(str(found["only"]))
    return found


def _byte_at(byte: Byte) -> int | None:
    try:
        with Path(byte.path).open("rb") as file:
            file.seek(byte.offset)
            read = file.read(1)
    except OSError:
        return None
    return read[0] if read else None
