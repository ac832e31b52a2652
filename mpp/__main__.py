"""The programs by one name: `mpp pretrain ...`, or `python -m mpp pretrain ...`, is `python mpp/pretrain.py ...`.

Launchers (deepspeed, torchrun, srun) start the files themselves, and data_prep's programs are files of the repository alone.
"""

import ast
import difflib
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import mpp
from mpp.base.errors import UserError, run_program
from mpp.base.text import say

PROGRAMS = (
    "doctor",
    "pretrain",
    "linear_probe",
    "finetune",
    "report",
    "results",
    "inside",
    "replay",
    "export",
    "loader_speed",
    "fit_codebook",
    "conformance",
    "plan",
)
SHORT = {"probe": "linear_probe"}


def main() -> None:
    run_program(lambda argv: run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Raises UserError for what is no program; SystemExit as the program does."""
    if words and words[0] in ("-V", "--version"):
        say(f"mpp {mpp.__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        say("usage: mpp PROGRAM [words], such as: mpp pretrain --config configs/mae_b16.yaml data.shards=shards/train run_dir=runs/mae")
        say("       mpp PROGRAM --help, mpp --version")
        say()
        for name in PROGRAMS:
            say(f"  {' or '.join([name.replace('_', '-'), *(short for short, long in SHORT.items() if long == name)]):24}{about(name)}")
        return 0
    asked = SHORT.get(words[0], words[0].replace("-", "_"))
    if asked not in PROGRAMS:
        near = difflib.get_close_matches(asked, [*PROGRAMS, *SHORT], 1)
        closest = f"; the nearest known one is {near[0].replace('_', '-')}" if near else ""
        raise UserError(f"{words[0]} is none of mpp's programs{closest}; mpp --help lists them")
    sys.argv = [f"mpp {words[0]}", *words[1:]]
    runpy.run_module(f"mpp.{asked}", run_name="__main__")
    return 0


def about(name: str) -> str:
    """What a program says of itself first, without importing it."""
    found = importlib.util.find_spec(f"mpp.{name}")
    assert found is not None
    assert found.origin is not None
    return (
        (ast.get_docstring(ast.parse(Path(found.origin).read_text())) or "")
        .split("\n\n")[0]
        .replace("\n", " ")
        .partition(":")[0]
        .rstrip(".")
    )


if __name__ == "__main__":
    main()
