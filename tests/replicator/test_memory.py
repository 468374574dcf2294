"""What a replicator holds in memory; how much that is, `script/bench memory` measures."""

import platform
import subprocess
import sys

DEADLINE_SECONDS = 30
PROGRAM = "from replicator.memory import hold_little; print(hold_little())"


def test_the_c_library_takes_every_limit() -> None:
    """In a process of its own: it is for the whole of it, for ever."""
    asked = [sys.executable, "-c", PROGRAM]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=DEADLINE_SECONDS).stdout.strip()

    assert said == str(platform.libc_ver()[0] == "glibc")
