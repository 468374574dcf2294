"""Word from the pulling thread to the event loop: soon, never lost, and not for every commit."""

import asyncio
import threading

from replicator.pace import Pace

PAUSE_MS = 20
DEADLINE_SECONDS = 5


def test_what_is_rung_after_a_silence_is_told_at_once_and_what_comes_meanwhile_is_told_together() -> None:
    async def told() -> list[int]:
        counts, rung, enough = list[int](), 0, asyncio.Event()

        def what() -> None:
            counts.append(rung)
            if rung == 3:
                enough.set()

        pace = Pace(asyncio.get_running_loop(), what, pause_ms=PAUSE_MS)
        for rung in (1, 2, 3):
            pace.ring()
            if rung == 1:
                await asyncio.sleep(0)
        await asyncio.wait_for(enough.wait(), DEADLINE_SECONDS)
        return counts

    assert asyncio.run(told()) == [1, 3]


def test_what_cannot_wait_is_told_in_the_midst_of_a_pause() -> None:
    async def told() -> list[str]:
        words, now = list[str](), ["first"]
        pace = Pace(asyncio.get_running_loop(), lambda: words.append(now[0]), pause_ms=DEADLINE_SECONDS * 1000)
        pace.ring()
        await asyncio.sleep(0)
        now[0] = "second"
        pace.hurry()
        await asyncio.sleep(0)
        return words

    assert asyncio.run(told()) == ["first", "second"]


def test_the_last_ring_of_a_thread_is_always_told() -> None:
    """However it falls between the end of a pause and the look for more."""

    async def last() -> int:
        rung, seen, all_seen = 0, 0, asyncio.Event()

        def what() -> None:
            nonlocal seen
            seen = rung
            if seen == 2_000:
                all_seen.set()

        pace = Pace(asyncio.get_running_loop(), what, pause_ms=0)

        def ring() -> None:
            nonlocal rung
            for _ in range(2_000):
                rung += 1
                pace.ring()

        thread = threading.Thread(target=ring)
        thread.start()
        await asyncio.wait_for(all_seen.wait(), DEADLINE_SECONDS)
        thread.join(DEADLINE_SECONDS)
        return seen

    assert asyncio.run(last()) == 2_000
