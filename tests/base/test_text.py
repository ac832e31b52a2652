"""What a person is shown: nothing from outside reaches a terminal, a table or a picture as anything but letters."""

import ast
import io
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from mpp.base.text import Cleaned, counted, printable, say, say_json, sized
from mpp.transfer.plots import confusion
from mpp.transfer.table import aligned

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "ca\x1b[31mt",
    "cat\nerror: the disk is broken",
    "cat\rerror: forged",
    "cat\x9b2J",
    "cat\x07\x08\x7f",
    "cat\u202etxt",
    "c\u200bat\ufeff",
    "cat\u2028error",
    "cat\udc80",
    "\x00",
]
KEPT = ["cat", "Größe 5 µm", "猫 3", "кошка", "été \u3000", "emoji 🐈", r"back\slash", "a\xa0b"]


def is_harmless(text: str) -> bool:
    return all(unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in text)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_terminal_obeys_is_written_out(text, capsys):
    assert is_harmless(printable(text))
    assert printable(text) != text
    say(f"class {text}")
    say(f"class {text}", error=True)
    shown = capsys.readouterr()
    for stream in (shown.out, shown.err):
        assert stream.endswith("\n")
        assert is_harmless(stream[:-1])


@pytest.mark.parametrize("text", KEPT)
def test_letters_of_every_language_stay_as_they_are(text):
    assert printable(text) == text


@given(st.text(st.characters(codec=None)))
def test_any_text_is_one_harmless_line_and_says_what_it_was(text):
    shown = printable(text)
    assert is_harmless(shown)
    if "\\" not in text:
        assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


@pytest.mark.parametrize("text", HOSTILE)
def test_json_stays_json(text, capsys):
    say_json({text: [text]})
    shown = capsys.readouterr().out
    assert is_harmless(shown[:-1])
    assert json.loads(shown) == {text: [text]}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_stream_that_libraries_write_to_lets_no_control_character_through_but_bars_move(text):
    stream = io.StringIO()
    cleaned = Cleaned(stream)
    print(f"words of a library: {text.replace(chr(10), '')}", file=cleaned)
    assert all(unicodedata.category(letter) != "Cc" for letter in stream.getvalue()[:-1])
    for _ in tqdm(range(3), desc=printable(text), file=cleaned, ascii=True, mininterval=0):
        pass
    bar = stream.getvalue()
    assert bar.count("\r") >= 3
    assert "100%" in bar
    assert not {*bar} & {"\x1b", "\x9b", "\x07", "\x08", "\u202e"}


def test_a_table_is_one_line_a_row_whatever_the_names_are():
    table = aligned([["name", "top-1"], *[[text, "1.00"] for text in HOSTILE]])
    assert len(table.split("\n")) == 1 + len(HOSTILE)
    assert all(is_harmless(line) for line in table.split("\n"))
    assert len({len(line) for line in table.split("\n")}) == 1


def test_a_picture_takes_any_name_as_letters(recwarn):
    names = [*HOSTILE, "猫", "a$b$c", "$\\frac{$", "$", "_hidden"]
    assert confusion(np.eye(len(names), dtype=np.int64), names, "classes of $x$ and \x1b").startswith(b"\x89PNG")
    assert not [str(warning.message) for warning in recwarn.list if "Glyph" in str(warning.message)]


def programs() -> list[Path]:
    return [
        path
        for folder in ("mpp", "data_prep")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != ROOT / "mpp" / "base" / "text.py"
    ]


def test_no_program_prints_but_by_say():
    """A new print would let a name through to the terminal: mpp/base/text.py is the one place."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in programs()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert len(programs()) > 100
    assert found == []


PROGRAM = """
import sys
from mpp.base.errors import UserError, run_program
def main(argv):
    sys.stdout.write("a library's \\x1b[31m words\\n")
    raise {error}
run_program(main)
"""


@pytest.mark.parametrize(
    ("error", "status"), [("UserError('no class ca\\x1b[31mt\\nerror: forged')", 2), ("ValueError('ca\\x1b[31mt')", 1)]
)
def test_errors_and_tracebacks_of_programs_are_cleaned(error, status):
    finished = subprocess.run([sys.executable, "-c", PROGRAM.format(error=error)], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert finished.returncode == status
    assert "\x1b" not in finished.stdout + finished.stderr
    assert "\\x1b[31m words" in finished.stdout
    assert "ca\\x1b[31mt" in finished.stderr
    assert not [line for line in finished.stderr.splitlines() if line.startswith("error: forged")]


def test_one_is_one_and_all_else_are_many():
    assert [counted(n, "shard") for n in (0, 1, 2, 1234)] == ["0 shards", "1 shard", "2 shards", "1,234 shards"]
    assert [counted(n, "process", "processes") for n in (1, 8)] == ["1 process", "8 processes"]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (492_400, "492 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1_234_567, "1.23 MB"),
        (3.5e9, "3.5 GB"),
        (99.96e9, "100 GB"),
        (12_345e12, "12,345 TB"),
    ],
)
def test_sizes_have_three_digits_and_the_unit_that_fits(count, words):
    assert sized(count) == words
