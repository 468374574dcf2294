"""A comparison logs in as the administrator, and a repair carries rows of patients: with [tls] to nobody but our nodes."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster import settings
from cluster.certificates import make_authority
from cluster.errors import BadInput, Unreachable
from cluster.settings import Tls
from controller.compare.server import Server
from tests.healthcheck.site import make_settings
from tests.replicator.serving import a_log, an_archive, serving
from tests.replicator.test_tls import files_of


def connect(directory: Path, port: int, files: Tls) -> None:
    """Connect to a port as to a node of a cluster with TLS."""
    loaded, _ = make_settings(directory, "127.0.0.1:1", "compared")
    secrets = settings.read_secrets(loaded)
    node = replace(loaded.nodes[0], port=port, admin_port=None)
    Server(node, replace(loaded, tls=files), secrets, statement_seconds=5).close()


def test_nobody_logs_in_without_tls_when_tls_is_set(tmp_path: Path) -> None:
    """Somebody in between could have taken the offer out of the greeting."""
    archive = an_archive(tmp_path / "archive", a_log().data)
    with serving(archive) as server, pytest.raises(BadInput, match="does not offer TLS"):
        connect(tmp_path, server.port, files_of(tmp_path))


@pytest.mark.parametrize(
    ("more", "words"),
    [({"authority": make_authority("other")}, "CERTIFICATE_VERIFY_FAILED"), ({"host": "else.example"}, "not believed")],
    ids=["of another authority", "of another host"],
)
def test_a_node_with_a_wrong_certificate_is_not_believed(tmp_path: Path, more: dict[str, object], words: str) -> None:
    archive = an_archive(tmp_path / "archive", a_log().data)
    files = files_of(tmp_path, **more)  # type: ignore[arg-type]  # mixed
    with serving(archive, files=files) as server, pytest.raises(Unreachable, match=words):
        connect(tmp_path, server.port, files)
