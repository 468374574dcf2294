"""PyMySQL as far as another side may be trusted: TLS that is not left to it, and without TLS no password it could read.

The driver's own defaults: it falls back to plain text when the greeting offers no TLS, and it says the password in clear,
or encrypted with a key that it was just given, to whoever asks. Somebody in between could have taken the offer out of
the greeting, and could ask (decision 0025).
"""

import ssl
from functools import cache
from typing import Any

from pymysql.connections import Connection
from pymysql.constants import CLIENT

from cluster.errors import BadInput

PROOF = "mysql_native_password"
"""The one method whose answer tells nothing: a hash of the password's hash and of a number that is used once."""


class StrictConnection(Connection):
    """A connection that is TLS and verified if it was given a context as `ssl`. Raises BadInput where none is offered,
    and where without TLS the password is wanted in a form that can be read."""

    def _request_authentication(self) -> None:
        if self.ssl and not self.server_capabilities & CLIENT.SSL:  # type: ignore[attr-defined]  # not in the stubs
            raise BadInput(f"the source at {self.host} does not offer TLS, and nothing is sent to it without",
                           hint="give it a certificate, or remove [tls] from the settings")  # fmt: skip
        if not self.ssl:
            self._auth_plugin_name = PROOF  # what the greeting prefers would be begun without a question
        super()._request_authentication()  # type: ignore[misc]  # not in the stubs

    def _process_auth(self, plugin_name: bytes, *more: Any) -> Any:
        method = plugin_name.decode(errors="replace")
        if not self.ssl and method != PROOF:
            raise BadInput(f"the source at {self.host} wants the password by {method[:40]!r}: it could read it",
                           hint=f"let the account use {PROOF}, or set [tls]; is it our server at all?")  # fmt: skip
        return super()._process_auth(plugin_name, *more)  # type: ignore[misc]  # not in the stubs


class QuickConnection(Connection):
    """A connection as the driver makes one by itself: TLS where it is offered, whoever offers it.

    For each of them the driver reads every certificate that the system believes, and looks at none: 16 ms of a processor,
    while every other thread waits. Here they share what needs none.
    """

    def _create_ssl_ctx(self, options: Any) -> ssl.SSLContext:
        made: ssl.SSLContext = super()._create_ssl_ctx(options) if options else _believing()  # type: ignore[misc]  # not in the stubs
        return made


@cache
def _believing() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
