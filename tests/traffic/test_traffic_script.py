"""What a clinic writes: repeatable, each write by its own name."""

from collections import Counter

from chaos.traffic import schema
from chaos.traffic_script import CHANGEABLE, NON_TRANSACTIONAL, TABLES, Script, Statement

MANY = 3_000


def written(script: Script, count: int = MANY) -> list[Statement]:
    """Return what the clinic writes when the database acknowledges everything, numbering rows by their write."""
    statements = []
    for _ in range(count):
        statement = script.next()
        script.acknowledged(statement, statement.sequence)
        statements.append(statement)
    return statements


def test_the_same_seed_writes_the_same_things() -> None:
    assert written(Script("north", "run", 7)) == written(Script("north", "run", 7))


def test_another_seed_or_clinic_writes_other_things() -> None:
    first = [statement.arguments for statement in written(Script("north", "run", 7), 100)]

    assert first != [statement.arguments for statement in written(Script("north", "run", 8), 100)]
    assert first != [statement.arguments for statement in written(Script("south", "run", 7), 100)]


def test_every_write_has_its_own_token_and_carries_it_or_its_number() -> None:
    statements = written(Script("north", "run", 7))

    assert len({statement.token for statement in statements}) == MANY
    for statement in statements:
        carried = statement.sequence if statement.changes else statement.token
        assert carried in statement.arguments


def test_every_second_write_is_the_audit_line_of_the_one_before() -> None:
    statements = written(Script("north", "run", 7))

    for action, audit in zip(statements[::2], statements[1::2], strict=True):
        assert action.kind != "audit"
        assert (audit.kind, audit.table) == ("audit", "log")
        assert action.token in audit.arguments


def test_a_day_touches_every_table_and_little_that_is_not_transactional() -> None:
    tables = Counter(statement.table for statement in written(Script("north", "run", 7)))

    assert set(tables) == set(TABLES)
    assert 0 < sum(tables[table] for table in NON_TRANSACTIONAL) < 0.05 * MANY


def test_only_rows_that_were_acknowledged_are_changed() -> None:
    script = Script("north", "run", 7)
    acknowledged: set[str] = set()
    for number in range(MANY):
        statement = script.next()
        if statement.changes is not None:
            assert statement.changes in acknowledged
            assert statement.table in CHANGEABLE
        if number % 3 == 0:
            script.acknowledged(statement, statement.sequence)
            acknowledged.add(statement.token)


def test_the_schema_has_the_habits_of_oscar() -> None:
    made = {statement.split("(")[0].split()[-1]: statement for statement in schema()}

    assert set(made) == set(TABLES)
    assert {table for table, sql in made.items() if "ENGINE=MyISAM" in sql} == NON_TRANSACTIONAL
    assert {table for table, sql in made.items() if "PRIMARY KEY" not in sql} == {"chartNoteIssue", "log"}
    assert {table for table, sql in made.items() if "ha_touched" in sql} == CHANGEABLE
    assert any("LONGTEXT" in sql for sql in made.values())
    assert any("'0000-00-00'" in sql for sql in made.values())
