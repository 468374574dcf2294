"""How a thread that must not wait tells the event loop that something is new: at once, but not for every single thing.

A wake of the loop, and all that it sends then, costs the interpreter several times what a commit costs the pulling
thread, and takes it from that thread. So what comes within a pause after a call goes into the next one.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress


class Pace:
    """Has a loop call `what` after a `ring`: immediately when it has been quiet, else when `pause_ms` have passed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, what: Callable[[], None], *, pause_ms: int) -> None:
        self._loop, self._what, self._pause_seconds = loop, what, pause_ms / 1000
        self._lock = threading.Lock()
        self._fresh = self._pausing = self._hurried = False

    def ring(self) -> None:
        """Something is new; any thread may say so."""
        with self._lock:
            self._fresh = True
            if self._pausing:
                return
            self._pausing = True
        self._soon(self._call)

    def hurry(self) -> None:
        """Something is new that cannot wait for the pause to end."""
        with self._lock:
            if self._hurried:
                return
            self._hurried = True
        self._soon(self._call_now)

    # -- below: `_soon` in any thread, the rest in the loop ---------------------------------------------------------

    def _soon(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call)

    def _call(self) -> None:
        with self._lock:
            self._pausing = self._fresh
            if not self._fresh:
                return
            self._fresh = False
        # Looked at again without being woken: under load nobody rings a loop that looks anyhow.
        self._loop.call_later(self._pause_seconds, self._call)
        self._what()

    def _call_now(self) -> None:
        with self._lock:
            self._hurried = self._fresh = False
        self._what()
