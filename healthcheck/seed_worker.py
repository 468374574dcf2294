"""A process that moves data for a watchdog. It dies with the watchdog, and with everything that it started itself.

The watchdog's own loop never moves a byte: a fence is as fast during a copy as at any other time.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

from cluster.errors import DeadlinePassed, OscarHaError
from healthcheck import seed_orders as orders
from healthcheck.seed_orders import GiveOrder, Line, TakeOrder

SILENCE_SECONDS_MAX = 90.0
END_SECONDS_MAX = 5.0
LINE_BYTES_MAX = 65_536
SERVER_FOLDERS = ("/usr/sbin", "/sbin")
"""Debian keeps servers here, and a plain user's PATH does not name it."""
MODULES: dict[type, str] = {GiveOrder: "healthcheck.seed_giving", TakeOrder: "healthcheck.seed_taking"}


class SeedWorker:
    """One run of a worker."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, order: GiveOrder | TakeOrder) -> "SeedWorker":
        """Start it and hand it its order."""
        process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", sys.executable, "-m", MODULES[type(order)],
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True, limit=LINE_BYTES_MAX,
            env={**os.environ, "PATH": search_path()},
        )  # fmt: skip
        assert process.stdin is not None, "it was asked for"
        with suppress(ConnectionError):  # it ended at once: its lines say why
            process.stdin.write(orders.encode(order))
            await process.stdin.drain()
        return cls(process)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def lines(self) -> AsyncIterator[Line]:
        """Yield what it says, `done` last. Raises the error that it ends with, or what we think of its silence."""
        while not (line := await self.line()).done:
            yield line
        yield line

    async def line(self) -> Line:
        """Return the next thing it says."""
        assert self._process.stdout is not None, "it was asked for"
        try:
            async with asyncio.timeout(SILENCE_SECONDS_MAX):
                text = await self._process.stdout.readline()
        except TimeoutError as error:
            raise DeadlinePassed(f"the process that copies is silent for {SILENCE_SECONDS_MAX:.0f} s") from error
        if not text:
            status = await self._process.wait()
            raise OscarHaError(f"the process that copies ended with {status}", hint="see the watchdog's log")
        return orders.read_line(text)

    def kill(self) -> None:
        """End it and all that it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def ended(self) -> None:
        """Wait until it has ended and tidied up behind itself; kill it when it takes too long, or when we are to end."""
        try:
            async with asyncio.timeout(END_SECONDS_MAX):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        except asyncio.CancelledError:
            self.kill()
            raise


def search_path() -> str:
    """Return where programs are looked for."""
    return ":".join([os.environ.get("PATH", os.defpath), *SERVER_FOLDERS])
