"""What the README, docs/ and the jobs say of data_prep is so: commands parse, options are named, files are there."""

import re
import shlex
from pathlib import Path

import pytest

from data_prep import index_shards, inspect_shards, make_shards, verify_shards
from mpp.prep.sources import FORMATS

ROOT = Path(__file__).parents[2]
TEXTS = {path: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "Makefile")}
PROGRAMS = {program.__name__.rpartition(".")[2]: program for program in (make_shards, index_shards, verify_shards, inspect_shards)}


def commands() -> list[str]:
    lines = [re.sub(r"\$\(if \$\(\w+\),([^)]*)\)", r"\1", line.strip()) for text in TEXTS.values() for line in text.splitlines()]  # of make
    found = {re.split(r"\s{2,}#", line)[0] for line in lines if re.match(r"(python|\$\(BIN\)/python) data_prep/[a-z]+_shards\.py ", line)}
    jobs = re.findall(r"sbatch --\S.* (jobs/slurm/make_shards\.sbatch [^)\n]+)", "\n".join(lines))
    return sorted(found | set(jobs))


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command):
    words = shlex.split(re.sub(r"\[(--[^\]]+)\]", r"\1", command))
    at = next(place for place, word in enumerate(words) if re.search(r"_shards\.(py|sbatch)$", word))
    program = PROGRAMS[Path(words[at]).stem]
    assert program.parse(words[at + 1 :])


def test_there_are_commands_to_check():
    assert {name for name in PROGRAMS if any(name in command for command in commands())} == set(PROGRAMS)
    assert any("sbatch" in command for command in commands())


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_option_that_is_named_is_there_and_every_option_of_make_shards_is_named(name, capsys):
    with pytest.raises(SystemExit):
        PROGRAMS[name].parse(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    text = TEXTS[ROOT / "docs" / "shards.md"]
    everywhere = set()
    for program in PROGRAMS.values():
        with pytest.raises(SystemExit):
            program.parse(["--help"])
        everywhere |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= everywhere
    if name == "make_shards":
        assert {option for option in options if option not in text} == set()


def test_every_format_is_described():
    text = TEXTS[ROOT / "docs" / "shards.md"].lower()
    for kind in FORMATS:
        assert {"list": "list:", "jsonl": "json lines", "cifar10": "cifar-10", "cifar100": "cifar-100", "folder": "folder tree"}.get(
            kind, kind
        ) in text, kind


def test_every_link_leads_somewhere():
    for path, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("http") or (path.parent / link).exists(), link
