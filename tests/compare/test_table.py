"""A table as SQL and findings as values: what needs no server."""

import pytest

from cluster.errors import Bug
from controller.compare.findings import Report, TableFound, Verdict, lacking, next_rows, rows_differing
from controller.compare.table import Column, IndexPart, Piece, Table, choose_key, definition

NUMBER = Column(name="id", kind="int", nullable=False)
TEXT = Column(name="name", kind="varchar", charset="latin1", nullable=False)
LONG = Column(name="note", kind="longtext", charset="utf8mb3")
COLUMNS = (NUMBER, TEXT, LONG)


def a_part(index: str, column: str, *, unique: bool = True, whole: bool = True) -> IndexPart:
    return IndexPart(index=index, unique=unique, column=column, whole=whole, kind="BTREE")


def a_table(*parts: IndexPart) -> Table:
    return Table(schema="oscar", name="a`b", engine="InnoDB", columns=COLUMNS, key=choose_key(COLUMNS, parts),
                 transactional=True)  # fmt: skip


def test_the_primary_key_is_walked_along_before_any_other() -> None:
    key = choose_key(COLUMNS, [a_part("name", "name"), a_part("PRIMARY", "id")])

    assert key is not None
    assert (key.name, key.unique) == ("PRIMARY", True)


def test_an_index_of_a_columns_first_bytes_or_of_one_that_may_be_null_names_no_row() -> None:
    assert choose_key(COLUMNS, [a_part("first", "name", whole=False)]) is None
    assert choose_key(COLUMNS, [a_part("note", "note")]) is None


def test_the_usable_beginning_of_an_index_cuts_a_table_but_names_no_row() -> None:
    key = choose_key(COLUMNS, [a_part("both", "id"), a_part("both", "note")])

    assert key is not None
    assert ([column.name for column in key.columns], key.unique) == (["id"], False)


def test_a_piece_of_a_composite_key_is_spelled_out_for_the_index() -> None:
    table = a_table(a_part("PRIMARY", "id"), a_part("PRIMARY", "name"))

    assert table.source(Piece((b"5", b"x"), (b"7", b"\xe9"))) == (
        "FROM `oscar`.`a``b` FORCE INDEX (`PRIMARY`)"
        " WHERE ((`id` > 5) OR (`id` = 5 AND `name` > _latin1 x'78'))"
        " AND ((`id` < 7) OR (`id` = 7 AND `name` <= _latin1 x'e9'))"
    )


@pytest.mark.parametrize("value", [b"1; DROP TABLE x", b"x' OR ''='", b"", b"1--"])
def test_a_value_that_is_no_number_never_becomes_a_literal(value: bytes) -> None:
    with pytest.raises(Bug):
        NUMBER.literal(value)


def test_null_is_told_from_empty_and_long_columns_are_hashed_by_themselves() -> None:
    assert LONG.token == "IFNULL(MD5(`note`), 'N')"
    assert TEXT.token == "CONCAT(LENGTH(CAST(`name` AS BINARY)), ':', CAST(`name` AS BINARY))"


def test_a_column_that_is_worked_out_is_compared_if_it_is_stored_and_never_written() -> None:
    columns = (Column(name="a", kind="int"), Column(name="b", kind="int", generated=True),
               Column(name="c", kind="int", generated=True, virtual=True))  # fmt: skip
    table = Table(schema="s", name="t", engine="InnoDB", columns=columns, key=None, transactional=True)

    assert [one.name for one in table.stored] == ["a", "b"]
    assert table.insert(1) == "INSERT INTO `s`.`t` (`a`) VALUES (%s)"
    assert "`b`" not in table.values(Piece())


def test_only_the_next_number_is_left_out_of_a_definition() -> None:
    text = (
        "CREATE TABLE `t` (\n  `a` varchar(99) DEFAULT ') AUTO_INCREMENT=5'\n) ENGINE=InnoDB AUTO_INCREMENT=17 DEFAULT"
    )

    assert definition(text) == text.replace(" AUTO_INCREMENT=17", "")


def test_rows_are_compared_by_their_key() -> None:
    ours = [(b"h1", b"1"), (b"h2", b"2"), (b"h3", b"3")]
    theirs = [(b"h1", b"1"), (b"hx", b"2"), (b"h4", b"4")]

    assert rows_differing(ours, theirs) == [("changed", (b"2",)), ("missing", (b"3",)), ("extra", (b"4",))]


def test_a_row_that_is_there_twice_more_is_found_without_a_key() -> None:
    assert rows_differing([(b"h",), (b"h",)], [(b"h",), (b"h",), (b"h",)]) == [("extra", (b"h",))]


def test_a_table_that_only_one_node_has_is_told_with_the_node() -> None:
    found = lacking({"": frozenset({"a.t", "a.p"}), "two": frozenset({"a.t", "a.s"})}, "")

    assert [(one.table, one.nodes) for one in found] == [("a.p", ("two",)), ("a.s", ("two",))]


@pytest.mark.parametrize(("took_ms", "expected"), [(100.0, 2_000), (400.0, 500), (0.0, 2_000), (1e9, 50)])
def test_a_piece_takes_about_as_long_as_asked_for(took_ms: float, expected: int) -> None:
    assert next_rows(1_000, took_ms, 200.0, least=50, most=50_000) == expected


def test_one_difference_outweighs_what_is_not_decided_and_that_outweighs_equality() -> None:
    def verdict(*verdicts: Verdict, undecided: tuple[str, ...] = ()) -> Verdict:
        tables = tuple(TableFound(table="t", engine="InnoDB", verdict=one) for one in verdicts)
        return Report(cluster="c", epoch=1, primary="p", nodes=("s",), started="", seconds=0.0, halted_ms_max=0.0,
                      moments=1, tables=tables, undecided=undecided).verdict  # fmt: skip

    assert verdict(Verdict.EQUAL, Verdict.UNDECIDED, Verdict.DIFFERENT) is Verdict.DIFFERENT
    assert verdict(Verdict.EQUAL, undecided=("a node is silent",)) is Verdict.UNDECIDED
    assert verdict(Verdict.EQUAL) is Verdict.EQUAL
