"""What a process list of MariaDB says: how full the server is, and what a write waits for. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cluster.dialect import Load, Wait

ACKNOWLEDGED = "Waiting for semi-sync ACK"
LOCKED = ("Waiting for backup lock", "Waiting for global read lock", "Waiting for table", "Waiting for row lock")
ROWS_LOCKED = frozenset({"Update", "Updating", "Statistics"})
"""A row that another transaction holds shows only so; it ends by itself after innodb_lock_wait_timeout."""
NO_CLIENTS = frozenset({"system user", "event_scheduler"})


def load_of(rows: Sequence[Sequence[Any]], most: int, admin: str, writer: int | None) -> Load:
    """Return the load; `rows` are those of SHOW PROCESSLIST: number, user, host, database, command, time, state, text."""
    clients = [row for row in rows if row[1] not in NO_CLIENTS and row[1] != admin and row[4] != "Binlog Dump"]
    accounts = Counter(f"{row[1]}@{str(row[2]).rpartition(':')[0] or row[2]}" for row in clients)
    account, count = accounts.most_common(1)[0] if accounts else ("", 0)
    states = {int(row[0]): str(row[6] or "") for row in rows}
    return Load(
        connections=len(clients),
        connections_max=most,
        account=account,
        account_connections=count,
        wait=None if writer is None or writer not in states else _wait(states, states[writer]),
    )


def _wait(states: dict[int, str], here: str) -> Wait:
    if any(state.startswith(ACKNOWLEDGED) for state in states.values()):
        return Wait.ACKNOWLEDGEMENT
    if here.startswith(LOCKED) or here in ROWS_LOCKED:
        return Wait.LOCK
    return Wait.OTHER
