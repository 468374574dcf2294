"""Events of a binlog into packets of the client-server protocol: the loop that serving the archive costs.

It is there twice: in C (`_packets.c`), and in Python where nothing was compiled. A property test demands the same of both.
"""

from collections.abc import Callable
from itertools import cycle, islice
from struct import Struct

from cluster.binlog.framing import EVENT_BYTES_MIN, EVENT_SIZE, HEADER_BYTES, PART_BYTES_MAX

try:
    from replicator import _packets
except ImportError:  # made where there was no compiler
    COMPILED = False
else:
    COMPILED = True
_NUMBERS = tuple(number << 24 for number in range(256))
"""The sequence numbers of packets where they stand: behind three bytes of length."""
_HEADS: dict[bytes, Struct] = {}


def framed_in_python(data: bytes, lead: bytes, sequence: int) -> tuple[bytes, int, int]:
    """Return the whole events at the beginning of `data` as packets, how many bytes of `data` they are, and how many they are.

    It ends before what is no event, or would fill more than one packet. `lead` stands before each event; the first
    packet has the number `sequence`, they are counted modulo 256.
    """
    head = _HEADS.setdefault(lead, Struct(f"<I{len(lead)}s")).pack
    parts, done = list[bytes](), 0
    append, unpack = parts.append, EVENT_SIZE.unpack_from
    extra, end = len(lead), len(data)
    last = end - HEADER_BYTES
    for number in islice(cycle(_NUMBERS), sequence, None):
        if done > last:
            break
        (size,) = unpack(data, done)
        behind = done + size
        if behind > end or size < EVENT_BYTES_MIN or size + extra >= PART_BYTES_MAX:
            break
        # The bytes are copied, which costs less than a view of so few; and no object of ours is made for an event.
        append(head(size + extra | number, lead))
        append(data[done:behind])
        done = behind
    return b"".join(parts), done, len(parts) // 2


framed: Callable[[bytes, bytes, int], tuple[bytes, int, int]] = _packets.framed if COMPILED else framed_in_python
"""As `framed_in_python` says, the fast way if there is one."""
