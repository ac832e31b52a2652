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
    Row(
        "how a wrong name begins does not count", "mpp/model/architecture.py", "(-begins(known), -ratio", "(-ratio",
        "tests/model/test_encoder_kinds.py::test_a_name_that_is_misspelt_brings_the_nearest_ones",
    ),
    Row(
        "a run is trained in a set of shards", "mpp/disk/files.py", 'if (path / "manifest.json").is_file():', "if False:",
        "tests/disk/test_files.py::test_nothing_is_written_into_a_set_of_shards",
    ),
    Row(
        "a count of images to keep apart is called a share", "data_prep/make_shards.py", "is neither a share below 1 nor a count of images", "is not a share from 0 to 1",
        "tests/prep/test_make_shards.py::test_bad_input_is_told_with_what_to_do",
    ),
]  # fmt: skip
