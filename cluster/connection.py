"""PyMySQL with TLS that is not left to the other side: with a context nothing is told to who does not offer it.

The driver's own default falls back to plain text when the greeting offers no TLS, and somebody in between could have
taken the offer out of it (decision 0025).
"""

from pymysql.connections import Connection
from pymysql.constants import CLIENT

from cluster.errors import BadInput


class StrictConnection(Connection):
    """A connection that is TLS and verified if it was given a context as `ssl`. Raises BadInput where none is offered."""

    def _request_authentication(self) -> None:
        if self.ssl and not self.server_capabilities & CLIENT.SSL:  # type: ignore[attr-defined]  # not in the stubs
            raise BadInput(f"the source at {self.host} does not offer TLS, and nothing is sent to it without",
                           hint="give it a certificate, or remove [tls] from the settings")  # fmt: skip
        super()._request_authentication()  # type: ignore[misc]  # not in the stubs
