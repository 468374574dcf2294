"""One run of a hook: a process of its own group, with a deadline, little output kept, and nothing of ours in its environment."""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress

from cluster import clock
from cluster.rules import Hook, HookEvent
from controller.hooks import DONE
from controller.model import HookRun

OUTPUT_BYTES_MAX = 2_000
"""The last of what it printed."""
READ_BYTES = 65_536
REAP_SECONDS = 1.0


async def run(hook: Hook, event: HookEvent, environment: Mapping[str, str]) -> HookRun:
    """Run it to its end or its deadline. Never raises for what the hook does; cancelled, it is killed too."""
    began, output = clock.now(), _Output()
    try:
        outcome = await _run(hook, environment, output)
    except OSError as error:
        outcome = f"failed: it cannot be started: {error.strerror or error}"
    finally:
        text = output.close()
    took_ms = round(clock.ms_between(began, clock.now()), 1)
    return HookRun(event=event.value, name=hook.name, outcome=outcome, took_ms=took_ms, output=text)


async def _run(hook: Hook, environment: Mapping[str, str], output: "_Output") -> str:
    process = await asyncio.create_subprocess_exec(
        *hook.command, env=dict(environment), cwd="/", start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL, stdout=output.inlet, stderr=output.inlet,
    )  # fmt: skip
    try:
        async with asyncio.timeout(hook.timeout_seconds):
            code = await process.wait()
    except TimeoutError:
        await _kill(process)
        return f"failed: killed after {hook.timeout_seconds:g} s"
    except BaseException:
        await _kill(process)
        raise
    return DONE if code == 0 else f"failed: it ended with {code}"


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End the process and everything of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(REAP_SECONDS):
            await process.wait()


class _Output:
    """A pipe that is emptied all the time: whatever keeps the other end open keeps nobody waiting."""

    def __init__(self) -> None:
        self._outlet, self.inlet = os.pipe()
        os.set_blocking(self._outlet, False)
        self._kept = b""
        asyncio.get_running_loop().add_reader(self._outlet, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._outlet, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._outlet)
        self._kept = (self._kept + data)[-OUTPUT_BYTES_MAX:]

    def close(self) -> str:
        """Return the last of what came."""
        asyncio.get_running_loop().remove_reader(self._outlet)
        os.close(self.inlet)
        self._read()
        os.close(self._outlet)
        return self._kept.decode(errors="replace").replace("\0", "")
