"""What the lab takes from the database dialect. It adds nothing of its own to what the product demands of a server."""

from dataclasses import replace
from pathlib import Path

from cluster.dialect import dialect_of
from cluster.errors import BadInput
from cluster.settings import Settings, read_secrets

CALL_DEADLINE_MS = 5_000


def require(settings: Settings) -> None:
    """Ask every running server for its options. Raises BadInput naming all that the product cannot work with."""
    secrets, dialect = read_secrets(settings), dialect_of(settings)
    found: dict[str, list[str]] = {}
    for node in settings.nodes:
        with dialect.connect(node, settings, secrets, deadline_ms=CALL_DEADLINE_MS) as session:
            for problem in session.requirements(node):
                found.setdefault(problem, []).append(node.name)
    if found:
        text = "; ".join(f"{', '.join(nodes)}: {problem}" for problem, nodes in found.items())
        raise BadInput(f"the databases cannot be replicated: {text}", hint="mend the --mysqld-option")


def account_statements(settings: Settings, onlooker: str | None = None) -> tuple[str, ...]:
    """Return the SQL that makes the accounts of oscar-ha. `onlooker` is from where a lab in namespaces is looked at."""
    if onlooker is not None:
        # Administrators come from the hosts of nodes; this makes the machine itself one of those.
        settings = replace(settings, nodes=(*settings.nodes, replace(settings.nodes[0], host=onlooker)))
    return dialect_of(settings).account_statements(settings, read_secrets(settings))


def write_init_file(settings: Settings, path: Path) -> None:
    """Write what every server runs before its first client: born fenced."""
    path.write_text(dialect_of(settings).born_fenced_init_file(settings), encoding="utf-8")
