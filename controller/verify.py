"""Write through a clinic's own HAProxy and see who took it: the only proof that a clinic can work again."""

import secrets
from functools import partial

import pymysql
from pymysql.constants import ER

from cluster.connection import QuickConnection
from cluster.errors import BadInput, Refused, Unreachable
from cluster.settings import Clinic, Settings
from controller.apart import apart

CONNECT_SECONDS = 2
STATEMENT = (
    "INSERT INTO oscar_ha.verify (clinic, epoch, token, written_at) VALUES (%s, %s, %s, UTC_TIMESTAMP(6))"
    " ON DUPLICATE KEY UPDATE epoch = VALUES(epoch), token = VALUES(token), written_at = VALUES(written_at)"
)


async def verify(settings: Settings, password: str, clinic: Clinic, server_id: int, epoch: int) -> None:
    """Write one row as the verify account. Raises Unreachable (retry) or Refused (another server took it)."""
    work = partial(_verify, settings, password, clinic, server_id, epoch)
    await apart(work, f"verify {clinic.name}")


def _verify(settings: Settings, password: str, clinic: Clinic, server_id: int, epoch: int) -> None:
    where = f"{clinic.name} at {clinic.host}:{clinic.port}"
    try:
        connection = QuickConnection(
            host=clinic.host,
            port=clinic.port,
            user=settings.accounts.verify_user,
            password=password,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            read_timeout=settings.timing.call_deadline_ms / 1000,
            write_timeout=settings.timing.call_deadline_ms / 1000,
        )
    except pymysql.err.OperationalError as error:
        if error.args[0] == ER.ACCESS_DENIED_ERROR:
            raise BadInput(f"{where}: the verify account is refused", hint="check accounts.verify_*") from error
        raise Unreachable(f"{where}: {error.args[-1]}") from error
    with connection:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT @@server_id")
                (found,) = cursor.fetchone() or (None,)
                if found != server_id:
                    raise Refused(f"{where} leads to server {found}, not {server_id}")
                cursor.execute(STATEMENT, (clinic.name, epoch, secrets.token_hex(8)))
        except pymysql.err.MySQLError as error:
            raise Unreachable(f"{where}: {error.args[-1] if error.args else error!r}") from error
