"""A wire of a given length: late, whole, in order, and its end passes too."""

import socket
import subprocess
import sys
import threading

from cluster import clock

ONE_WAY_MS = 30.0
PIECES = [bytes([number]) * (1 + number * 997) for number in range(60)]


def echo(server: socket.socket) -> None:
    one, _ = server.accept()
    with one:
        while data := one.recv(65_536):
            one.sendall(data)


def test_a_wire_brings_everything_there_and_back_after_its_length() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        command = [
            sys.executable,
            "-m",
            "chaos.delay",
            "--to",
            str(server.getsockname()[1]),
            "--one-way-ms",
            str(ONE_WAY_MS),
        ]
        wire = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert wire.stdout is not None
            near = socket.create_connection(("127.0.0.1", int(wire.stdout.readline())), timeout=20)
            with near:
                began = clock.now()
                near.sendall(b"?")
                assert near.recv(1) == b"?"
                took_ms = clock.ms_between(began, clock.now())
                for piece in PIECES:
                    near.sendall(piece)
                near.shutdown(socket.SHUT_WR)
                received = b"".join(iter(lambda: near.recv(65_536), b""))
        finally:
            wire.kill()
            wire.communicate()

    assert took_ms >= 2 * ONE_WAY_MS
    assert received == b"".join(PIECES)
