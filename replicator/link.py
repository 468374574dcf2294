"""The socket of a stream once it is asked for: plain or TLS, it never blocks, and `poll` tells the whole truth of it."""

import socket
import ssl

RECORD_BYTES_MAX = 16 * 1024
"""The largest piece that TLS hands out at once."""


class Link:
    """Reads like a plain non-blocking socket.

    A TLS record is always taken whole, so that nothing decrypted stays behind where `poll` does not see it; and many
    records are taken in one call, so that what is received together is written and acknowledged together.
    """

    def __init__(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        self._raw = raw
        self._tls = isinstance(raw, ssl.SSLSocket)

    def fileno(self) -> int:
        """Return the handle, for `poll`."""
        return self._raw.fileno()

    def recv_into(self, space: memoryview) -> int:
        """Fill `space`, which holds a record at least; 0 at the end. Raises BlockingIOError when nothing is there."""
        return self._records_into(space) if self._tls else self._raw.recv_into(space)

    def sendall(self, data: bytes) -> None:
        """Send a little: an acknowledgement. Raises OSError when even that does not fit."""
        self._raw.sendall(data)

    def _records_into(self, space: memoryview) -> int:
        filled = 0
        while len(space) - filled >= RECORD_BYTES_MAX:
            try:
                count = self._raw.recv_into(space[filled:])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if filled == 0:
                    raise BlockingIOError from None
                break
            except OSError:
                if filled == 0:
                    raise
                break  # what came before is whole; the next call raises again
            if count == 0:
                break
            filled += count
        return filled
