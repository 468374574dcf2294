"""Repoint a clinic's HAProxy through its runtime API (HAProxy 2.6 Management Guide, section 9.3).

This only speeds up what HAProxy's own checks of `GET /primary` do within a second: `health up` and `health down` set
the state that the next checks confirm or correct, so a controller that is wrong here is overruled by the watchdogs.
While no server is up, HAProxy itself lets a clinic's new connection wait for a moment (`hold.lua`).
"""

import asyncio

from cluster.errors import Refused, Unreachable
from cluster.settings import Clinic

ANSWER_BYTES_MAX = 65_536


async def repoint(clinic: Clinic, primary: str, others: list[str], *, deadline_ms: float) -> None:
    """Mark `primary` up and `others` down, and close the sessions that still lead to the others."""
    backend = clinic.backend
    commands = [f"set server {backend}/{name} health down" for name in others]
    commands += [f"shutdown sessions server {backend}/{name}" for name in others]
    commands.append(f"set server {backend}/{primary} health up")
    answer = await command(clinic, "; ".join(commands), deadline_ms=deadline_ms)
    if answer.strip():
        raise Refused(f"HAProxy of {clinic.name} answers: {answer.strip()}", hint="its backend must name the nodes")


async def announce_closing(clinic: Clinic, primary: str, *, deadline_ms: float) -> None:
    """Send no new connection to `primary`; those that it has stay. The next check of `/primary` confirms or corrects it."""
    answer = await command(clinic, f"set server {clinic.backend}/{primary} health stopping", deadline_ms=deadline_ms)
    if answer.strip():
        raise Refused(f"HAProxy of {clinic.name} answers: {answer.strip()}", hint="its backend must name the nodes")


async def command(clinic: Clinic, text: str, *, deadline_ms: float) -> str:
    """Send one line to the runtime API and return the answer. Raises Unreachable."""
    try:
        async with asyncio.timeout(deadline_ms / 1000):
            reader, writer = await asyncio.open_connection(clinic.host, clinic.runtime_port)
            try:
                writer.write(f"{text}\n".encode())
                await writer.drain()
                return (await reader.read(ANSWER_BYTES_MAX)).decode(errors="replace")
            finally:
                writer.close()
    except (TimeoutError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(f"HAProxy of {clinic.name} at {clinic.host}:{clinic.runtime_port}: {reason}") from error
