"""Which process is the server beside us."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.settings import Node
from healthcheck import server
from tests.servers.process import free_port

PROGRAM = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, b"mariadbd", 0, 0, 0)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
sys.stdin.read()
"""


def a_node(directory: Path) -> Node:
    return Node(
        name="db-clinic", site="clinic", server_id=1, port=free_port(), pid_file=directory / "pid", watchdog_port=1
    )


def test_a_server_that_listens_is_found_and_a_dead_one_is_not_though_nobody_waited_for_it(tmp_path: Path) -> None:
    """In a container nobody may ever wait for it: it keeps its pid and its name, and hides its files."""
    node = a_node(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(node.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        node.pid_file.write_text(f"{process.pid}\n")
        found = server.find(node)
        assert found is not None
        assert found.pid == process.pid

        found.kill()
        assert process.stdout.read() == b"", "it has ended, and is a zombie until we wait for it"
        found.close()
        assert server.find(node) is None


@pytest.mark.parametrize("content", ["", "none", "-1", "99999999999", "4194304"])
def test_a_pid_file_that_names_nobody_finds_nobody(tmp_path: Path, content: str) -> None:
    node = a_node(tmp_path)
    node.pid_file.write_text(content)

    assert server.find(node) is None


def test_a_pid_file_that_names_another_program_finds_nobody(tmp_path: Path) -> None:
    node = a_node(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        node.pid_file.write_text(str(process.pid))

        assert server.find(node) is None
