"""What the client said of a file, judged."""

from chaos.lab.load import judge

ABSENT = "ERROR at line 899 in file: '/x/init.sql': Failed to open file 'more.sql', error: 2"
WRONG = "ERROR 1046 (3D000) at line 1 in file: '/x/init.sql': No database selected"


def test_a_file_that_a_script_names_but_was_not_shipped_is_said_and_not_fatal() -> None:
    assert judge(f"{ABSENT}\n") == ("", ("more.sql",))


def test_any_other_error_is_fatal_and_the_first_is_told() -> None:
    assert judge(f"{ABSENT}\n{WRONG}\nERROR 1064 (42000) at line 2: syntax\n") == (WRONG, ("more.sql",))


def test_a_file_without_errors_is_loaded() -> None:
    assert judge("Warning: something\n") == ("", ())
