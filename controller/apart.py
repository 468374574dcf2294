"""Work that blocks, beside the event loop: in a daemon thread of its own, so that nobody else ever waits for it.

The threads that asyncio lends are few and common: six clinics that do not answer would hold all of them, and a file
on a storage that hangs would hold one for ever, and keep the process from ending.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


def apart(work: Callable[[], Result], name: str) -> "asyncio.Future[Result]":
    """Begin `work` in a thread; the future brings what it returns or raises. Cancelling does not end the thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not future.done():
            set_it()

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - whatever it raised is what the caller awaits
            failure = error
            tell(lambda: future.set_exception(failure))
        else:
            tell(lambda: future.set_result(result))

    def tell(set_it: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(settle, set_it)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
