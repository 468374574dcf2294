"""What must be true of the machine before anything is started. Everything missing is named at once.

Nothing here changes anything: a refused `lab up` leaves no trace.
"""

import getpass
import os
import random
import shutil
import socket
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from chaos.lab import identity
from chaos.lab.layout import HOST, Request, port_names
from chaos.lab.render import ZOOKEEPER_JARS, Programs
from cluster.errors import BadInput, OscarHaError

PACKAGES: Mapping[str, str] = {
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "mariadb": "mariadb-client",
    "java": "default-jre-headless",
    "haproxy": "haproxy",
    "prometheus": "prometheus",
}
"""Which Debian package brings which program."""
JAR_PACKAGES: Mapping[Path, str] = dict(zip(ZOOKEEPER_JARS, ("libzookeeper-java", "libslf4j-java"), strict=True))
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")
"""Debian keeps servers here, and a plain user's PATH does not name it."""
PORT_LOWEST, PORT_HIGHEST = 20_000, 31_999
"""Below 32768, where the kernel's range for outgoing connections begins."""
PORT_ATTEMPTS_MAX = 2_000


def programs(search: str | None = None) -> Programs:
    """Return where the programs are. Raises BadInput naming every missing package at once."""
    path = ":".join([search if search is not None else os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS])
    found = {name: shutil.which(name, path=path) for name in PACKAGES}
    ours = Path(sysconfig.get_path("scripts")) / "oscar-ha"
    missing = {PACKAGES[name] for name, place in found.items() if place is None}
    missing |= {package for jar, package in JAR_PACKAGES.items() if not jar.exists()}
    if missing:
        names = " ".join(sorted(missing))
        raise BadInput(f"not installed: {names.replace(' ', ', ')}", hint=f"install with: apt-get install {names}")
    if not ours.exists():
        raise BadInput(f"{ours} does not exist", hint="install oscar-ha into this Python: pip install -e .")
    place = {name: str(value) for name, value in found.items()}
    return Programs(
        mariadbd=place["mariadbd"],
        install_db=place["mariadb-install-db"],
        client=place["mariadb"],
        java=place["java"],
        haproxy=place["haproxy"],
        prometheus=place["prometheus"],
        oscar_ha=str(ours),
    )


def choose_ports(request: Request) -> dict[str, int]:
    """Return a free port for each name. Raises BadInput when a forced one is in use."""
    names = port_names(request)
    if request.base_port is None:
        return _free_ports(names)
    ports = {name: request.base_port + number for number, name in enumerate(names)}
    taken = [f"{port} ({name})" for name, port in ports.items() if not is_free(port)]
    if taken:
        raise BadInput(
            f"port in use: {', '.join(taken)}",
            hint="end what uses it, give another --base-port, or leave --base-port out to get free ones",
        )
    return ports


def is_free(port: int) -> bool:
    """Return whether we could listen on a loopback port now."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def machine() -> None:
    """Raise BadInput when this machine cannot say who a process is: in a bare chroot nothing could be ended safely."""
    if not identity.BOOT_ID.exists():
        raise BadInput(f"{identity.BOOT_ID} does not exist", hint="mount it: mount -t proc proc /proc")


def writable_folder(directory: Path) -> None:
    """Raise BadInput unless the folder, or the nearest one above that exists, can be written."""
    nearest = directory
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise BadInput(f"--dir {directory}: {nearest} is not a folder", hint="choose another folder with --dir")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadInput(
            f"--dir {directory}: {nearest} cannot be written by {getpass.getuser()}",
            hint="choose another folder with --dir",
        )


def _free_ports(names: Sequence[str]) -> dict[str, int]:
    candidates = random.sample(range(PORT_LOWEST, PORT_HIGHEST + 1), PORT_ATTEMPTS_MAX)
    free = (port for port in candidates if is_free(port))
    ports = dict(zip(names, free, strict=False))
    if len(ports) < len(names):
        raise OscarHaError(
            f"fewer than {len(names)} free ports among {PORT_ATTEMPTS_MAX} tried between {PORT_LOWEST} and {PORT_HIGHEST}"
        )
    return ports
