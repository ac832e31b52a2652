"""The README says what is there: its commands parse, its files exist, its Makefile targets are real."""

import re
import shlex
from pathlib import Path

import pytest

from mpp import export, linear_probe, loader_speed, pretrain
from mpp.config import PretrainConfig, load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CODE = [line.strip() for line in README.splitlines() if line.startswith("    ")] + re.findall(r"`([^`]+)`", README)
JOBS = "\n".join(path.read_text() for path in sorted(ROOT.glob("jobs/**/*")) if path.is_file())


def commands(program: str) -> list[str]:
    found = [
        line
        for line in CODE + [text.lstrip("# ").strip() for text in JOBS.splitlines()]
        if program in line and ("=" in line or "--config" in line)
    ]
    return sorted({re.split(r"\s{2,}#", line)[0] for line in found if line.split()[0] in ("deepspeed", "python", "torchrun", "sbatch")})


@pytest.mark.parametrize("command", commands("mpp/pretrain.py") + commands("pretrain.sbatch"))
def test_every_pretraining_command_has_a_config_that_loads(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace(" ...", "").replace(" [key=value", ""))
    after = next(i for i, word in enumerate(words) if word.endswith(("pretrain.py", "pretrain.sbatch"))) + 1
    assert pretrain.main([*words[after:], "--print-config"]) == 0
    assert "global_batch" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands("mpp/linear_probe.py"))
def test_every_probe_command_parses(command, capsys):
    words = shlex.split(command)
    assert linear_probe.main([*words[words.index("mpp/linear_probe.py") + 1 :], "--print-config"]) == 0
    assert "encoder:" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands("mpp/loader_speed.py"))
def test_every_loader_speed_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    arguments = loader_speed.parse(words[words.index("mpp/loader_speed.py") + 1 :])
    assert load(PretrainConfig, arguments.config, arguments.words).data.shards == "shards/train"


@pytest.mark.parametrize("command", [line for line in CODE if line.startswith("python mpp/export.py")])
def test_every_export_command_parses(command):
    arguments = export.parse(shlex.split(command)[2:])
    assert bool(arguments.check) != bool(arguments.out)


def test_there_are_commands_to_check():
    assert (
        len(commands("mpp/pretrain.py")) >= 4
        and commands("mpp/linear_probe.py")
        and commands("mpp/loader_speed.py")
        and commands("pretrain.sbatch")
    )


def test_every_override_shown_in_the_text_is_a_known_key(capsys):
    for word in re.findall(r"`((?:optim|mask|data|system|model|log)\.[a-z_]+)`", README):
        section, key = word.split(".")
        assert key in type(getattr(pretrain.PretrainConfig(), section)).model_fields, word


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
