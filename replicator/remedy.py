"""What an error of a source calls for: one table from its number and words to who must do what. No IO.

Databases answer nearly everything with error 1236; only the words tell a file that was purged from a history that is
another one. What the table does not know is tried again, and said: silence would be worse than a repeated message.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from cluster.binlog.events import NO_CHECKSUMS, NotUnderstood
from cluster.errors import Diverged, MalformedStream, OscarHaError, Refused, Unauthorized, Unreachable


class Remedy(StrEnum):
    """Who can do something about an error."""

    TRANSIENT = "transient"
    """It may go away by itself: try again."""
    OTHER_SOURCE = "needs another source"
    """This one no longer has what we need next; somebody else may."""
    RESEED = "needs a reseed"
    """Two histories are not one, or the source lost a part of its own: nobody's binlog mends that."""
    PERSON = "needs a person"
    """Something is configured wrongly, or is not allowed."""


class NotThere(Diverged):
    """The source does not have what we need next; another one may."""


class SameServerId(Refused):
    """Another replica connected with our server id, and the source ended our stream."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table: `words` is searched for in the text, whatever the case; empty fits every text."""

    kind: type[OscarHaError]
    codes: frozenset[int]
    words: str
    hint: str


BINLOG_ERROR, SAME_SERVER_ID, UNKNOWN_ERROR = 1236, 4052, 1105
ACCESS_DENIED = frozenset({1044, 1045, 1130, 1227, 1698, 3118, 3159, 4151})
_BINLOG = frozenset({BINLOG_ERROR})
_TWINS = "another replica uses our server_id: end one of the two, or give it another"
_PURGED = "what we ask for was purged, cut or reset there; another replicator may have it"
_READ = "the source cannot read its own binlog: look into its error log and at its disk"
RULES: tuple[Rule, ...] = (
    Rule(Unauthorized, ACCESS_DENIED, "",
         "mend accounts.replication_user and its password file, the grant, or the [tls] section"),
    Rule(SameServerId, frozenset({SAME_SERVER_ID}), "", _TWINS),
    Rule(SameServerId, _BINLOG, r"same server_(uuid|id)", _TWINS),
    Rule(Refused, _BINLOG, r"replicator of cluster", "the settings name an address where another cluster's replicator is"),
    Rule(Diverged, _BINLOG, r"diverged|extra erroneous|more GTIDs than the (master|source)|histories are not one",
         "one of the two has transactions the other never had: rescue them, then seed that one anew"),
    Rule(Diverged, _BINLOG, r"not in the (master|source)'s binlog|is missing the GTID|GTID state not found",
         "the source never had, or has lost, what is archived here: compare the two before anything is thrown away"),
    Rule(Diverged, _BINLOG | {1590}, r"incident|lost events", "the source lost transactions of its own: seed anew"),
    Rule(NotThere, _BINLOG, r"purged|could not find first log|could not find next log|impossible position|"
         r"incorrect position|is not a boundary|not in this archive|archive begins after|lies in a gap", _PURGED),
    Rule(Unreachable, _BINLOG, r"memory allocation|out of memory|the archive ends at|the archive is empty",
         "it may be there soon"),
    Rule(Refused, _BINLOG | {1153, 2020}, r"max_allowed_packet|packet bigger",
         "set max_allowed_packet=1G on the source"),
    Rule(Refused, _BINLOG, r"server id was not set|not open|not enabled|not configured",
         "set server_id and log_bin on the source, and restart it"),
    Rule(Refused, _BINLOG, r"can ?not handle replication events with the checksum", NO_CHECKSUMS),
    Rule(Refused, _BINLOG, r"decrypt|encryption", "its binlog is encrypted: check its key, or unset encrypt_binlog"),
    Rule(NotThere, frozenset({UNKNOWN_ERROR}), r"is damaged at offset",
         "its archive is being mended; another replicator may have it"),
    Rule(NotThere, _BINLOG, r"checksum|crc|corrupt|bogus|truncated|I/O error|failed to open|failed to read|"
         r"could not read|damaged|too long event", _READ),
    Rule(NotThere, _BINLOG | {1220, 1373}, "", "what we ask for is not in its binlog; another replicator may have it"),
)  # fmt: skip
"""The first line that fits counts."""


def rule_for(code: int, text: str) -> Rule | None:
    """Return the line of the table for what a source said, None when it has none."""
    fits = (rule for rule in RULES if code in rule.codes and re.search(rule.words, text, re.IGNORECASE))
    return next(fits, None)


def error_for(code: int, text: str) -> OscarHaError:
    """Return the error that stands for what a source said."""
    rule, said = rule_for(code, text), f"the source answers {code}: {text}"
    return Unreachable(said) if rule is None else rule.kind(said, hint=rule.hint)


def remedy_of(error: BaseException) -> Remedy:
    """Return what an error of a stream calls for, whoever raised it."""
    match error:
        case NotThere():
            return Remedy.OTHER_SOURCE
        case Diverged():
            return Remedy.RESEED
        case NotUnderstood():
            return Remedy.PERSON
        case MalformedStream():
            return Remedy.TRANSIENT  # damaged on the way: the same bytes come whole the next time
        case OscarHaError():
            return Remedy.TRANSIENT if error.retryable else Remedy.PERSON
        case _:
            return Remedy.TRANSIENT if isinstance(error, OSError) else Remedy.PERSON


def lacking(error: Diverged, silent: Collection[str]) -> str:
    """Return in words that a source lacks what we need next and nobody gave it; `silent` are sites that did not answer."""
    if silent:
        return f"{remedy_of(error)}: {error}; no answer yet from {' and '.join(sorted(silent))}"
    return (f"{Remedy.PERSON}: {error.message}, and no other replicator has what comes next: either give the primary its"
            " binlog files back, or 'oscar-ha failover': what only the old primary has is rescued then")  # fmt: skip


def named(error: BaseException) -> str:
    """Return an error of a stream in words, with who must act unless it may go away by itself."""
    remedy = remedy_of(error)
    return str(error) if remedy is Remedy.TRANSIENT else f"{remedy}: {error}"
