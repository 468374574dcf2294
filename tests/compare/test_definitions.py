"""What differs besides rows, decided from what each node said."""

from controller.compare.definitions import Definition, differing, seen_again, told

TRIGGER = Definition(kind="trigger", schema="oscar", name="acts", table="log")
VIEW = Definition(kind="view", schema="oscar", name="seen")


def test_what_one_node_lacks_or_has_otherwise_or_alone_is_told_with_the_node() -> None:
    nodes = {"": {TRIGGER: "1", VIEW: "2"}, "a": {VIEW: "2"}, "b": {TRIGGER: "1", VIEW: "3"}}
    said = [(one.table, one.nodes, one.why) for one in told(differing(nodes), nodes)]

    assert said == [
        ("trigger oscar.acts", ("a",), "a has no such trigger"),
        ("view oscar.seen", ("b",), "it is another one on b: compare SHOW CREATE VIEW"),
    ]
    assert told(differing({"": {}, "a": {VIEW: "2"}}), {"": {}, "a": {VIEW: "2"}})[0].why == (
        "the primary has no such view, a has"
    )


def test_what_arrived_between_two_looks_is_no_difference() -> None:
    late, still = {TRIGGER: frozenset({"a"}), VIEW: frozenset({"a", "b"})}, {VIEW: frozenset({"b"})}

    assert seen_again(late, still) == {VIEW: frozenset({"b"})}
