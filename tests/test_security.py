"""SECURITY.md, held beside the code: nothing untrusted is unpickled or run, and nothing is offered to the world."""

import ast
import re
from pathlib import Path

import pytest
import torch

from mpp.base.errors import UserError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.interop.weight_files import read_weights

ROOT = Path(__file__).parents[1]
CODE = sorted(path for folder in ("mpp", "data_prep", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
PROSE = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
# What runs what it reads, or hands it to a shell; as dotted names are written where they are called.
DANGEROUS = {
    "eval", "exec", "compile", "__import__",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "joblib.load", "marshal.load", "marshal.loads", "shelve.open",
    "pandas.read_pickle", "torch.jit.load", "torch.hub.load",
    "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all",
}  # fmt: skip
# Where one of these names stands nevertheless, and why that is all right.
EXCEPTIONS = {
    ("mpp/data/cifar.py", "pickle.Unpickler"): "a subclass that makes arrays of bytes alone, after the checksum",
    ("mpp/data/keeping.py", "pickle.loads"): "a sampler of the job's own process, over a socket in a folder of this user's alone",
    ("benchmarks/reproduce.py", "shell="): "command lines that stand there, with values from outside quoted",
}  # fmt: skip


def dotted(node: ast.AST) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "?", *reversed(parts)])


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((each.value for each in call.keywords if each.arg == name), None)


def faults(source: str) -> list[str]:
    """What in this source may run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            found += [name for name in map(dotted, node.bases) if name in DANGEROUS]
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "os", "subprocess", "torch", "yaml"):
            found += [
                f"{node.module}.{each.name}"
                for each in node.names
                if f"{node.module}.{each.name}" in DANGEROUS | {"torch.load", "yaml.load"}
            ]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        is_true = lambda value: isinstance(value, ast.Constant) and value.value is True
        if name in DANGEROUS:
            found.append(name)
        if name == "torch.load" and not is_true(keyword(node, "weights_only")):
            found.append("torch.load without weights_only=True")
        if name == "yaml.load" and dotted(keyword(node, "Loader") or ast.Constant(None)) not in (
            "_Yaml",
            "yaml.SafeLoader",
            "yaml.CSafeLoader",
        ):
            found.append("yaml.load without a safe loader")
        if keyword(node, "allow_pickle") is not None:
            found.append("allow_pickle")
        if keyword(node, "shell") is not None:
            found.append("shell=")
        if keyword(node, "trust_remote_code") is not None:
            found.append("trust_remote_code")
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_runs_what_it_reads_but_where_it_says_why(path):
    name = str(path.relative_to(ROOT))
    assert [fault for fault in faults(path.read_text()) if (name, fault) not in EXCEPTIONS] == []


def test_every_exception_is_still_one():
    for name, fault in EXCEPTIONS:
        assert fault in faults((ROOT / name).read_text()), name


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=safe)",
        "yaml.load(t)",
        "yaml.load(t, Loader=yaml.Loader)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(c, shell=True)",
        "pickle.loads(b)",
        "class U(pickle.Unpickler): pass",
        "from pickle import loads",
        "from torch import load",
        "eval(t)",
        "os.system(c)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert faults(source)


class Mischief:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_weights_of_others_run_nothing(tmp_path):
    mark = tmp_path / "ran"
    torch.save({"model": Mischief(mark)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_weights(tmp_path / "weights.pth")
    assert not mark.exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert mark.exists()  # it would have


@pytest.mark.parametrize("text", ["!!python/object/apply:pathlib.Path.touch [{mark}]", "{{run_dir: !!python/name:os.system }}"])
def test_a_config_is_data_and_runs_nothing(tmp_path, text):
    mark, file = tmp_path / "ran", tmp_path / "config.yaml"
    file.write_text(text.format(mark=mark))
    with pytest.raises(UserError, match=r"config\.yaml"):
        load(PretrainConfig, str(file), [])
    assert not mark.exists()


def test_nowhere_is_tensorboard_or_a_port_offered_to_the_world():
    for path in [*PROSE, ROOT / "Makefile", *CODE, *(each for each in (ROOT / "jobs").rglob("*") if each.is_file())]:
        for line in path.read_text().splitlines():
            if path.name == "SECURITY.md" and "never" in line:
                continue
            assert not re.search(r"--bind_all|--host[ =]0\.0\.0\.0|jupyter .*--ip", line), (path, line)


def test_what_others_wrote_reaches_a_shell_of_the_job_scripts_only_in_quotes():
    """shellcheck, where it is installed, says so of each line; and no script builds a command as text."""
    scripts = [path for path in (ROOT / "jobs").rglob("*") if path.suffix in (".sh", ".sbatch")]
    assert len(scripts) == 4
    for path in scripts:
        text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
        assert not re.search(r"\beval\b|bash -c \"|sh -c \"|\$\*", text), path
    for path in (ROOT / "jobs/k8s").glob("*.yaml"):
        assert not re.search(r"\$\(\w+\)", path.read_text()), f"{path}: Kubernetes would put the value in as text"


def test_the_page_names_the_code_that_keeps_its_promises():
    text = (ROOT / "SECURITY.md").read_text()
    for name in set(re.findall(r"\b(?:mpp|tests|jobs)/[\w/]+\.\w+", text)):
        assert (ROOT / name).exists(), name
    assert {"unpickled", "weights_only", "TensorBoard", "MASTER_ADDR"} <= set(re.findall(r"\w+", text))
