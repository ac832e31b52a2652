"""Bugs in what --help says, which the tests must find."""

from tests.mutations import Row

PROGRAMS = "tests/test_programs.py"

ROWS = [
    Row(
        "a comment behind a grid that the formatter leaves alone is not shown", "mpp/config/help.py",
        'words.removeprefix("fmt: skip").removeprefix("  # ")', '"" if words.startswith("fmt:") else words',
        f"{PROGRAMS}::test_help_says_something_of_every_key",
    ),
    Row(
        "only the name of a program's file is told", "mpp/base/errors.py", "started.parts[-2:]", "started.parts[-1:]",
        f"{PROGRAMS}::test_help_and_config_are_shown_without_importing_what_is_slow",
    ),
    Row(
        "options that are off have a default", "mpp/prep/options.py", "not in (None, False, argparse.SUPPRESS)", "is not argparse.SUPPRESS",
        f"{PROGRAMS}::test_help_and_config_are_shown_without_importing_what_is_slow",
    ),
    Row(
        "a key with dashes is told as it was typed", "mpp/config/help.py", 'found[1].replace("-", "_")', "found[1]",
        f"{PROGRAMS}::test_a_key_with_dashes_before_it_is_told_from_an_option",
    ),
]  # fmt: skip
