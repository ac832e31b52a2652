"""The README says what is there: its commands parse, its files exist, its Makefile targets are real."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from mpp import export, finetune, linear_probe, loader_speed, pretrain, results
from mpp.config.finetune import FinetuneConfig
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CODE = [line.strip() for line in README.splitlines() if line.startswith("    ")] + re.findall(r"`([^`]+)`", README)
COMMENTS = [
    line.lstrip("# ").strip()
    for path in [*ROOT.glob("jobs/**/*"), *ROOT.glob("configs/*.yaml")]
    if path.is_file()
    for line in path.read_text().splitlines()
    if line.startswith("#")
]
LAUNCHERS = ("deepspeed", "python", "torchrun", "sbatch")
# What the README and the heads of jobs and configs tell one to type: the words after a program, whatever launcher stands before it.
NEEDS_WORDS = re.compile("=| --|results.py")  # what else names a program is prose


def commands(program: str) -> list[str]:
    lines = [re.sub(r"^\w+=\$\((.*)\)$", r"\1", re.split(r"\s{2,}#", line)[0]) for line in CODE + COMMENTS]
    return sorted({line for line in lines if program in line.split() and line.split()[0] in LAUNCHERS and NEEDS_WORDS.search(line)})


def words_of(command: str, program: str) -> list[str]:
    words = shlex.split(command.replace(" ...", "").replace(" [key=value", ""))
    return words[words.index(program) + 1 :]


@pytest.mark.parametrize("command", commands("mpp/pretrain.py"))
def test_every_pretraining_command_has_a_config_that_loads(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert pretrain.main([*words_of(command, "mpp/pretrain.py"), "--print-config"]) == 0
    assert "global_batch" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands("mpp/finetune.py"))
def test_every_fine_tuning_command_has_a_config_that_loads_and_all_it_needs(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert finetune.main([*words_of(command, "mpp/finetune.py"), "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["encoder"] and shown["train"]


@pytest.mark.parametrize("command", commands("mpp/linear_probe.py"))
def test_every_probe_command_parses_and_has_all_it_needs(command, capsys):
    assert linear_probe.main([*words_of(command, "mpp/linear_probe.py"), "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["encoder"] and shown["train"]


@pytest.mark.parametrize("command", commands("mpp/loader_speed.py"))
def test_every_loader_speed_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = loader_speed.parse(words_of(command, "mpp/loader_speed.py"))
    assert load(PretrainConfig, arguments.config, arguments.words).data.shards == "shards/train"


@pytest.mark.parametrize("command", commands("mpp/export.py"))
def test_every_export_command_parses(command):
    arguments = export.parse(words_of(command, "mpp/export.py"))
    assert bool(arguments.check) != bool(arguments.out)


@pytest.mark.parametrize("command", commands("mpp/results.py"))
def test_every_results_command_parses(command):
    assert results.parse(words_of(command, "mpp/results.py")).folders


def test_there_are_commands_to_check():
    least = {"pretrain": 5, "linear_probe": 3, "finetune": 5, "loader_speed": 1, "export": 2, "results": 1}
    assert all(len(commands(f"mpp/{program}.py")) >= count for program, count in least.items())
    batches = [
        line for program in ("pretrain", "linear_probe", "finetune") for line in commands(f"mpp/{program}.py") if "run.sbatch" in line
    ]
    assert len(batches) >= 5 and all((ROOT / word).exists() for line in batches for word in line.split() if word.endswith(".sbatch"))


def test_every_override_shown_in_the_text_is_a_known_key(capsys):
    for word in re.findall(r"`((?:optim|mask|data|system|model|log)\.[a-z_]+)`", README):
        section, key = word.split(".")
        sections = [getattr(schema(), section, None) for schema in (PretrainConfig, FinetuneConfig)]
        assert any(key in type(found).model_fields for found in sections if found is not None), word


def test_every_file_and_config_named_exists_and_every_module_is_on_the_map():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
    file_map = README.split("## File map")[1].split("## Developing")[0]
    for path in [*ROOT.glob("mpp/**/*.py"), *ROOT.glob("data_prep/*.py"), *ROOT.glob("benchmarks/*.py")]:
        assert path.name == "__init__.py" or re.search(rf"\b{path.stem}\b", file_map), path
    for config in ROOT.glob("configs/*.yaml"):
        assert config.stem in README, config


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)", README)) <= targets


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z]+@", README)
