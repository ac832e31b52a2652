"""What every program does before its work: help and config within a moment, and a quiet end when it is interrupted."""

import os
import re
from pathlib import Path

import pytest

from mpp.base.errors import UserError
from mpp.config.codebook import CodebookConfig
from mpp.config.finetune import FinetuneConfig
from mpp.config.help import KeysParser, explain, explained
from mpp.config.inside import InsideConfig
from mpp.config.pretrain import PretrainConfig
from mpp.config.probe import ProbeConfig
from mpp.config.replay import ReplayConfig
from mpp.config.schema import known_keys
from tests.forks import run_forked

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("mpp", "data_prep")
    for path in (ROOT / folder).glob("*.py")
    if "run_program(main)" in path.read_text() and path.name != "errors.py"
)
SLOW = ("torch", "deepspeed", "timm", "transformers", "scipy", "pyarrow", "matplotlib")
WITH_TORCH = (
    "mpp/pretrain.py",
    "mpp/loader_speed.py",
    "mpp/linear_probe.py",
    "mpp/fit_codebook.py",
    "mpp/plan.py",
    "mpp/doctor.py",
)  # whose knobs stand with the code that they turn
ALONE = """
import json, runpy, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in {slow}:
            raise RuntimeError(name + " is imported")
sys.meta_path.insert(0, Watch())
for name in {slow}:
    sys.modules.pop(name, None)
sys.argv = {words}
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
WITH_A_CONFIG = [
    program
    for program in PROGRAMS
    if program in ("mpp/pretrain.py", "mpp/finetune.py", "mpp/linear_probe.py", "mpp/fit_codebook.py", "mpp/inside.py")
]


def test_all_programs_are_known():
    assert len(PROGRAMS) == 19


@pytest.mark.parametrize(
    "words", [*([program, "--help"] for program in PROGRAMS), *([p, "--print-config"] for p in WITH_A_CONFIG)], ids=" ".join
)
def test_help_and_config_are_shown_without_importing_what_is_slow(words):
    slow = tuple(name for name in SLOW if name != "torch" or words[0] not in WITH_TORCH)
    shown = run_forked(["-c", ALONE.format(slow=slow, words=words)], cwd=ROOT, env=os.environ)
    assert shown.returncode == 0, shown.stderr
    if "--help" not in words:
        assert "seed: 0" in shown.stdout
        return
    usage, _, rest = shown.stdout.partition("\n\n")
    program, about = words[0], rest.partition("\npositional arguments:")[0]
    assert usage.startswith(f"usage: {program} ")
    assert re.search(rf"^    .*\b{program} ", about, re.MULTILINE), "no command that can be typed"
    assert "imports nothing slow" not in about  # what is for who reads the code
    assert not re.search(r"\(default: (None|False)\)|\) \(default: ", " ".join(shown.stdout.split("\n\nkeys")[0].split()))


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig, ProbeConfig, CodebookConfig, InsideConfig, ReplayConfig])
def test_help_lists_every_key_with_its_default(schema):
    lines = [line.split()[0] for line in explain(schema).splitlines()[1:]]
    assert {line.partition("=")[0] for line in lines} == {
        key for key in known_keys(schema) if not any(k.startswith(key + ".") for k in known_keys(schema))
    }
    for key, default in (("seed", "0"), ("features.crop", "1.0"), ("optim.weight_decay", "0.05"), ("data.holdout_samples", "1024")):
        if key in known_keys(schema):
            assert f"{key}={default}" in lines


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig, ProbeConfig, CodebookConfig, InsideConfig, ReplayConfig])
def test_help_says_something_of_every_key(schema):
    bare = re.compile(r"^\(\S+=\S+\) ?")  # of which choice a key is
    told = [(words, bare.sub("", comment)) for words, comment in explained(schema, "") if ".name=" not in words]
    assert not [words for words, comment in told if not comment]
    assert not [words for words, comment in told if re.search(r"(,|\b(a|and|of|or|the))$", comment)]  # one that goes on in the source


@pytest.mark.parametrize(
    ("word", "told"), [("--budget", "budget=..."), ("--optim.base-lr=1", "optim.base_lr=..."), ("--nothing", "seed=...")]
)
def test_a_key_with_dashes_before_it_is_told_from_an_option(word, told):
    with pytest.raises(UserError, match=rf"unrecognized arguments: {word}; keys have no dashes before them, such as {re.escape(told)};"):
        KeysParser(PretrainConfig).parse_args([word])


def test_help_says_what_stands_behind_a_key():
    text = explain(PretrainConfig)
    assert any("optim.base_lr=0.0002" in line and "ViT B.1.2" in line for line in text.splitlines())
    assert "(target.name=pixels)" in text


INTERRUPTED = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which `make test &` in a script leaves ignored
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
for name in [name for name in sys.modules if name.split(".")[0] == {name!r}]:
    del sys.modules[name]
sys.argv = {words}
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "words, name",
    [
        *(([program, "--help"], "argparse") for program in PROGRAMS),  # the first thing that is imported
        (["mpp/pretrain.py", "run_dir=nowhere"], "mpp.mains.pretrain"),
        (["mpp/linear_probe.py", "encoder=x", "train=x"], "mpp.mains.linear_probe"),
        (["mpp/finetune.py", "encoder=x", "train=x"], "mpp.mains.finetune"),
        (["mpp/inside.py", "encoder=x", "images=x"], "mpp.mains.inside"),
        (["mpp/replay.py", "dump.json"], "mpp.mains.replay"),
        (["mpp/doctor.py", "run_dir=nowhere"], "mpp.mains.doctor"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
def test_an_interrupt_while_importing_is_quiet(words, name):
    done = run_forked(["-c", INTERRUPTED.format(name=name, words=words)], cwd=ROOT, env=os.environ)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


SPINS = """
import os, sys
from mpp.base.interrupts import quiet_until_main
quiet_until_main(sys.argv[1])
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("name", "said", "spins"),
    [("__main__", {}, "1000"), ("__main__", {"GOMP_SPINCOUNT": "7"}, "7"), ("__main__", {"OMP_WAIT_POLICY": "passive"}, "None"), ("mpp.pretrain", {}, "None")],
)  # fmt: skip
def test_threads_that_wait_for_each_other_do_not_spin_for_long_unless_the_user_says_so(name, said, spins):
    there = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = run_forked(["-c", SPINS, name], cwd=ROOT, env=there | said)
    assert shown.stdout == f"{spins}\n"
