"""For each promise, the plausible bug that must make a test fail.

A row (tests/mutations/) names a file, the text to find in it (exactly once, or the row is out of date), what a slip of the hand would
have made of it, and the tests that must then fail.  All rows run in one copy of the repository; a process that has imported torch and the like, but nothing of
mpp, forks for each of them, so a row costs a second and not five.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.mutations import loading, shards, training

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
ROWS = [*training.ROWS, *loading.ROWS, *shards.ROWS]

SERVER = """
import importlib, json, os, sys
for name in ("torch", "torch.utils.data", "torch.utils.tensorboard", "torchvision.transforms", "timm", "numpy", "PIL.Image", "yaml", "pydantic",
             "safetensors.torch", "hypothesis", "transformers.models.vit_mae.modeling_vit_mae",
             "tensorboard.backend.event_processing.event_accumulator", "pytest", "torchvision.datasets", "pyarrow.parquet", "scipy.io",
             "webdataset", "fsspec", "requests", "tqdm"):
    importlib.import_module(name)
assert not any(name.split(".")[0] == "mpp" for name in sys.modules)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        request = json.loads(line)
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        import mpp
        import pytest
        if not mpp.__file__.startswith(os.getcwd() + os.sep):
            os._exit(97)
        code = pytest.main(request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutations") / "repository"
    for part in ("mpp", "data_prep", "configs", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture(scope="module")
def run(copy: Path) -> Iterator[Callable[[list[str]], SimpleNamespace]]:
    """run(tests): pytest's exit code and output in the copy."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=copy, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin
    assert server.stdout
    assert server.stdout.readline() == "ready\n"
    output = copy.parent / "output.txt"

    def request(tests: list[str]) -> SimpleNamespace:
        arguments = [
            "-x",
            "-q",
            "-n0",
            "--tb=short",
            "--hypothesis-profile=mpp-first-failure",
            f"--rootdir={copy}",
            f"--basetemp={copy.parent / 'tmp'}",
            *tests,
        ]
        server.stdin.write(json.dumps({"output": str(output), "arguments": arguments}) + "\n")
        server.stdin.flush()
        return SimpleNamespace(code=int(server.stdout.readline()), output=output.read_text())

    yield request
    server.stdin.close()
    server.wait(timeout=60)


def test_without_a_mutation_the_copy_passes(run):
    """One test of each file: all of them run outside of the copy anyhow."""
    of_each_file = {test.partition("::")[0]: test for row in reversed(ROWS) for test in row.tests.split()}
    found = run(sorted(of_each_file.values()))
    assert found.code == 0, found.output


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.bug.replace(" ", "_"))
def test_a_plausible_bug_makes_a_test_fail(copy, run, row):
    path = copy / row.file
    text = path.read_text()
    assert text.count(row.old) == 1, f"{row.file} has moved on: bring this row up to date"
    path.write_text(text.replace(row.old, row.new))
    try:
        found = run(row.tests.split())
    finally:
        path.write_text(text)
    assert found.code == 1, found.output  # tests failed: not a collection error, a crash or a pass
    assert not re.search(r"^E +(NameError|AttributeError|ImportError|SyntaxError|UnboundLocalError)", found.output, re.MULTILINE), (
        found.output
    )
