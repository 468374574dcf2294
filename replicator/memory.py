"""How the C library keeps the memory of this process: little of what was freed.

Left alone, glibc gives each thread an arena, and takes every block that was once freed as a reason never to ask the
kernel for one of that size again: what ten readers needed at some moment is then held for ever (mallopt(3)).
"""

import ctypes

from cluster.binlog.framing import KIB, MIB

ARENAS_MAX = 2
"""The interpreter lets one thread at a time allocate, and system calls do not: more would only be more rests."""
OWN_MAPPING_BYTES = 512 * KIB
"""A block of this size is given back when it is freed. The usual read and send is half of that, and is kept: to map each
anew doubled the processor time of serving."""
UNUSED_BYTES_MAX = 2 * MIB
"""More than that at the end of the heap is given back."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def hold_little() -> bool:
    """Set the limits, before threads are started. Return whether the C library took them; musl has none."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    limits = ((_M_ARENA_MAX, ARENAS_MAX), (_M_MMAP_THRESHOLD, OWN_MAPPING_BYTES), (_M_TRIM_THRESHOLD, UNUSED_BYTES_MAX))
    return all(mallopt(option, value) == 1 for option, value in limits)
