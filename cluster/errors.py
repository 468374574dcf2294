"""One error tree, split by what the caller should do: retry, stop, or show a person what to mend."""

from typing import Any, ClassVar


class OscarHaError(Exception):
    """Every error that oscar-ha raises on purpose.

    `retryable` says whether the same call may succeed later; `hint` is what a person does next;
    `exit_code` is what a command ends with. `said` is the message as the one said it who raised it first, without the
    addresses that an answer passed on its way.
    """

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "", said: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.said = said or message

    def __str__(self) -> str:
        return f"{self.message} — {self.hint}" if self.hint else self.message

    def as_record(self) -> dict[str, Any]:
        """Return what an HTTP answer or a history record says of this error."""
        record = {"code": self.code, "message": self.message, "hint": self.hint, "retryable": self.retryable}
        return record if self.said == self.message else record | {"said": self.said}


class BadInput(OscarHaError):
    """A setting, an argument, a record or a request is wrong. Names the field, the value and the mend."""

    exit_code = 2
    code = "bad_input"


class Unreachable(OscarHaError):
    """Somebody did not answer in time. It may still have done what we asked."""

    retryable = True
    code = "unreachable"


class DeadlinePassed(OscarHaError):
    """What was waited for did not happen within its deadline."""

    retryable = True
    code = "deadline_passed"


class Conflict(OscarHaError):
    """A compare-and-set found another version: somebody else was first. Observe again."""

    retryable = True
    code = "conflict"


class FencedOut(OscarHaError):
    """A newer epoch exists. We are the past: stop, do not retry."""

    code = "fenced_out"


class Refused(OscarHaError):
    """The answer is no, for the reason given: the state does not allow it."""

    code = "refused"


class CannotWrite(Refused):
    """The server itself can write nothing: its disk is full or broken, or it is read-only."""


class Unauthorized(OscarHaError):
    """No token, or the wrong one."""

    code = "unauthorized"


class MalformedStream(OscarHaError):
    """Bytes from the wire or the archive are not what the protocol says. Nothing of them was believed."""

    code = "malformed_stream"


class Diverged(OscarHaError):
    """Two histories are not one: a person or a reseed decides, never a rewind by ourselves."""

    code = "diverged"


class Bug(OscarHaError):
    """An invariant of our own does not hold. Nothing was done; report it."""

    code = "bug"


ERRORS_BY_CODE: dict[str, type[OscarHaError]] = {
    kind.code: kind
    for kind in (
        BadInput, Unreachable, DeadlinePassed, Conflict, FencedOut, Refused, Unauthorized, MalformedStream, Diverged, Bug,
    )
}  # fmt: skip


def from_record(record: object, *, where: str) -> OscarHaError:
    """Return the error that an HTTP answer describes; anything unknown is a plain `OscarHaError`."""
    if not isinstance(record, dict):
        return OscarHaError(f"{where}: {record!r}")
    kind = ERRORS_BY_CODE.get(str(record.get("code")), OscarHaError)
    message = str(record.get("message", "no message"))
    said = str(record.get("said") or message)
    return kind(f"{where}: {message}", hint=str(record.get("hint", "")), said=said)
