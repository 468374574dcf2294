"""Style is a test (docs/style.md): layers, the purity of the core, limits, clocks, secrets and words."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from cluster.records import Durability, Role

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "cluster": {"cluster"},
    "replicator": {"cluster", "replicator"},
    "healthcheck": {"cluster", "healthcheck"},
    "controller": {"cluster", "replicator", "healthcheck", "controller"},
    "chaos": {"cluster", "replicator", "healthcheck", "controller", "chaos"},
}
"""What each package may import: an import runs down the layers, never up or sideways."""

PURE = {
    "chaos/attack/catalogue.py",
    "chaos/attack/verdicts.py",
    "chaos/bench_figures.py",
    "chaos/history.py",
    "chaos/lab/names.py",
    "cluster/errors.py",
    "cluster/lineage.py",
    "cluster/mariadb_load.py",
    "cluster/position.py",
    "controller/accepted.py",
    "controller/ackers.py",
    "controller/advance.py",
    "controller/choose.py",
    "controller/compare/definitions.py",
    "controller/compare/findings.py",
    "controller/compare/table.py",
    "controller/decide.py",
    "controller/hooks.py",
    "controller/estimate.py",
    "controller/invariants.py",
    "controller/isolation.py",
    "controller/loss.py",
    "controller/model.py",
    "controller/orders.py",
    "controller/plan.py",
    "controller/proof.py",
    "controller/readiness.py",
    "controller/rehearse.py",
    "controller/rejoin.py",
    "controller/story.py",
    "controller/replaying.py",
    "controller/seed.py",
    "controller/seen.py",
    "healthcheck/grey.py",
    "healthcheck/judge.py",
    "healthcheck/obey.py",
    "healthcheck/roles.py",
    "healthcheck/seed_framing.py",
    "replicator/changes.py",
    "replicator/admission.py",
    "cluster/binlog/events.py",
    "replicator/follow.py",
    "cluster/binlog/framing.py",
    "replicator/receiving.py",
    "cluster/binlog/rows.py",
    "cluster/binlog/sql_words.py",
    "cluster/binlog/statements.py",
    "replicator/remedy.py",
    "replicator/retention.py",
}
"""Decisions and framing: values in, values out."""
PURE_MAY_IMPORT = {
    "bisect", "collections", "collections.abc", "dataclasses", "enum", "fnmatch", "functools", "itertools", "json", "math",
    "operator", "re", "statistics", "struct", "types", "typing", "zlib",
    "cluster.clock", "cluster.dialect", "cluster.orders", "cluster.records", "cluster.rules", "cluster.settings",
}  # fmt: skip
PURE_MAY_NOT_USE = {
    "cluster.clock": {"now", "seconds_left", "utc_now"},
    "cluster.settings": {"load", "read_secret", "read_secrets"},
}
"""These modules lend their types and arithmetic to the core; what reads a clock or a file stays outside."""

FUNCTION_LINES_MAX = 40
CLOCK_MODULE = "cluster/clock.py"
READS_A_CLOCK = re.compile(r"^(time(_ns)?|monotonic(_ns)?|perf_counter(_ns)?|clock_gettime(_ns)?|process_time(_ns)?)$")
READS_WALL_TIME = {"now", "utcnow", "today"}
SECRET_ARGUMENT = re.compile(r"--password(?!-file)|^-p\{|MYSQL_PWD")
EXCEPTION_WITHOUT_REASON = re.compile(r"#\s*(noqa(: *[A-Z0-9, ]+)?|type: ignore(\[[^\]]*\])?)\s*(#\s*)?$")
WORDS_NOT_USED = {"master": "primary", "slave": "standby", "replica": "standby", "data centre": "site"}
POSSESSIVE = re.compile(r"[*+?}]\+|\(\?>")
CODE_IN_MARKDOWN = re.compile(r"```.*?```|`[^`]*`|<!--.*?-->|\]\([^)]*\)", re.DOTALL)


def product_files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for package in LAYERS for path in (ROOT / package).rglob("*.py"))


def files_of_tests() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py"))


def documents() -> list[str]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def tree_of(path: str) -> ast.Module:
    return ast.parse(text_of(path), path)


def nodes(paths: Iterable[str]) -> Iterator[tuple[str, ast.AST]]:
    """Yield (path, node) for everything that these files hold."""
    return ((path, node) for path in paths for node in ast.walk(tree_of(path)))


def imports(path: str) -> Iterator[tuple[str, str | None, int]]:
    """Yield (module, imported name or None, line); `from package import module` is seen as that module."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides its layer"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if (ROOT / whole.replace(".", "/")).with_suffix(".py").exists():
                    yield whole, None, node.lineno
                else:
                    yield str(node.module), alias.name, node.lineno


def test_a_package_imports_only_from_its_layer_or_below() -> None:
    wrong = [
        f"{path}:{line}: {ours} may not import {module}"
        for path in product_files()
        for ours in (path.split("/")[0],)
        for module, _, line in imports(path)
        if module.split(".")[0] in {*LAYERS, "tests"} - LAYERS[ours]
    ]
    assert not wrong


def test_the_core_imports_nothing_that_can_wait() -> None:
    pure_modules = {name.removesuffix(".py").replace("/", ".") for name in PURE}

    wrong = [
        f"{path}:{line}: {module} is not pure"
        for path in sorted(PURE)
        for module, _, line in imports(path)
        if module not in PURE_MAY_IMPORT | pure_modules
    ]
    assert not wrong


def test_the_core_reads_no_clock_and_no_file() -> None:
    wrong = [
        f"{path}:{line}: {module}.{name}"
        for path in sorted(PURE)
        for module, name, line in imports(path)
        if name in PURE_MAY_NOT_USE.get(module, set())
    ]
    for path, node in nodes(sorted(PURE)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in PURE_MAY_NOT_USE.get(f"cluster.{node.value.id}", set()):
                wrong.append(f"{path}:{node.lineno}: {node.value.id}.{node.attr}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"open", "print"}:
            wrong.append(f"{path}:{node.lineno}: {node.func.id}()")
    assert not wrong


def test_no_function_outgrows_a_screen() -> None:
    wrong = [
        f"{path}:{node.lineno}: {node.name} has {length} lines"
        for path, node in nodes([*product_files(), *files_of_tests()])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not wrong


def test_every_module_says_its_rule() -> None:
    trees = {path: tree_of(path) for path in [*product_files(), *files_of_tests()]}

    assert not [f"{path} has no docstring" for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)]


def test_time_is_read_in_one_place() -> None:
    """Two clocks in one program are how a lease outlives itself (TRAPS.md 38, 44)."""
    paths = [path for path in product_files() if path != CLOCK_MODULE]
    wrong = [f"{path}:{line}: from time import {name}" for path in paths for module, name, line in imports(path)
             if module == "time" and name is not None and READS_A_CLOCK.match(name)]  # fmt: skip
    for path, node in nodes(paths):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = (node.value.id, node.attr)
            if called[0] == "time" and READS_A_CLOCK.match(called[1]):
                wrong.append(f"{path}:{node.lineno}: time.{node.attr}")
            if called[0] in {"datetime", "date"} and called[1] in READS_WALL_TIME:
                wrong.append(f"{path}:{node.lineno}: {called[0]}.{node.attr}")
    assert not wrong


def test_no_secret_is_put_on_a_command_line() -> None:
    """Everybody on the machine reads command lines."""
    wrong = [
        f"{path}:{node.lineno}: {node.value!r}"
        for path, node in nodes(product_files())
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SECRET_ARGUMENT.search(node.value)
    ]
    assert not wrong


def test_no_pattern_is_possessive() -> None:
    """Debian's Python 3.11.2 matches the wrong thing (CPython's gh-106052), and raises no error."""
    wrong = [
        f"{path}:{part.lineno}: {part.value!r}"
        for path, node in nodes(product_files())
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re.")
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and POSSESSIVE.search(part.value)
    ]
    assert not wrong


def test_names_are_whole_words() -> None:
    wrong = [
        f"{path}:{line}: {name}"
        for path, node in nodes(product_files())
        for name, line in names_made_by(node)
        if len(name) == 1 and name != "_"
    ]
    assert not wrong


def names_made_by(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the variable or argument that `node` makes."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id, node.lineno
    elif isinstance(node, ast.arg):
        yield node.arg, node.lineno
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name, node.lineno


def test_every_exception_to_a_rule_says_why() -> None:
    wrong = [
        f"{path}:{number}"
        for path in product_files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if EXCEPTION_WITHOUT_REASON.search(line)
    ]
    assert not wrong


def test_documents_use_our_words() -> None:
    wrong = [
        f"{path}: {word}: say {ours}"
        for path in documents()
        for prose in (CODE_IN_MARKDOWN.sub(" ", text_of(path)).lower(),)
        for word, ours in WORDS_NOT_USED.items()
        if re.search(rf"\b{word}s?\b", prose)
    ]
    assert not wrong


def test_every_role_is_a_word() -> None:
    words = text_of("docs/words.md")

    assert not [role.value for role in Role if f"`{role.value}`" not in words]
    assert {durability.value for durability in Durability} == {"sync", "degraded"}


def test_links_between_documents_lead_somewhere() -> None:
    missing = [
        f"{path}: {target}"
        for path in documents()
        for link in re.findall(r"\]\(([^)]+)\)", text_of(path))
        if "://" not in link
        for target in (link.split("#")[0],)
        if target and not ((ROOT / path).parent / target).exists()
    ]
    assert not missing


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_pins_and_hashes_everything_and_names_no_place(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    pinned = re.findall(r"^([a-z0-9._-]+)==", text, re.MULTILINE | re.IGNORECASE)

    assert len(pinned) == len(re.findall(r"^[^\s#]", text, re.MULTILINE))
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=\S)", text.strip()))
    assert "://" not in text
    wanted = {re.split(r"[><=~! \[]", item)[0].lower() for item in project()["dependencies"]}
    assert wanted <= {pin.lower() for pin in pinned}, "run script/lock"


def project() -> dict[str, list[str]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        table: dict[str, list[str]] = tomllib.load(file)["project"]
    return table
