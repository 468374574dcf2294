"""`oscar-ha` as a person types it, without the second that a process of its own takes to start.

What is run is `main`: the arguments, both streams, the exit code and the words for an error are those of the process;
tests/cluster/test_command.py runs that.
"""

import gc
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess

import pytest

from cluster.command import main


def typed(*arguments: str) -> "CompletedProcess[bytes]":
    """Run `oscar-ha` with these arguments; an exception that it lets through is raised here."""
    with pytest.MonkeyPatch.context() as patch, captured() as out, captured() as err:
        patch.setattr(sys, "argv", ["oscar-ha", *arguments])
        patch.setenv("COLUMNS", "200")
        with redirect_stdout(out), redirect_stderr(err):
            code = _exit_code_of_main()
        return CompletedProcess(arguments, code, stdout=_bytes_of(out), stderr=_bytes_of(err))


def captured() -> io.TextIOWrapper:
    """Return a stream that takes text and, in its buffer, bytes."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _bytes_of(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


def _exit_code_of_main() -> int:
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        gc.unfreeze()  # what a command loads lives as long as its process; here much more does
    return 0
