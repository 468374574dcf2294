"""Blocking calls in a thread of their own, so that the loop never waits for a database.

The threads are daemons: one that hangs on a frozen server never keeps the watchdog from ending.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


class Worker:
    """One thread that runs one call after the other."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._unfinished = 0
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @property
    def busy(self) -> bool:
        """Return whether a call is running or waiting; only the loop may ask."""
        return self._unfinished > 0

    async def run(self, call: Callable[..., Result], *args: Any) -> Result:
        """Run `call(*args)` in the thread and return or raise what it does."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._unfinished += 1

        def done(result: Result | None, error: BaseException | None) -> None:
            self._unfinished -= 1
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # no error, so it is the result

        def job() -> None:
            result, failure = None, None
            try:
                result = call(*args)
            except BaseException as error:  # noqa: BLE001 - whatever the call raised is what the caller awaits
                failure = error
            with suppress(RuntimeError):  # the loop is gone: nobody waits any more
                loop.call_soon_threadsafe(done, result, failure)

        self._jobs.put(job)
        return await future

    def _work(self) -> None:
        while True:
            self._jobs.get()()
