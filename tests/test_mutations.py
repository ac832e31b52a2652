"""For each promise, the plausible bug that must make a test fail.

A row (tests/mutations/) names what is replaced (a function or attribute, or where no name stands for it a text that a file holds exactly once),
what a slip of the hand would have made of it, and the tests that must then fail.  All rows run in one copy of the repository, each in a
process forked off (tests/forks.py), so a row costs a second and not five.  Those whose tests run whole programs are proofs of make test-all; that each
row still finds what it replaces, and its tests, is looked at in every run.
"""

import builtins
import compileall
import dis
import importlib
import operator
import os
import pkgutil
import re
import shutil
import subprocess
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from py_compile import PycInvalidationMode
from types import SimpleNamespace

import pytest

import tests.mutations
from tests.forks import SERVER, run_forked, server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
MODULES = [importlib.import_module(f"tests.mutations.{found.name}") for found in pkgutil.iter_modules(tests.mutations.__path__)]
ROWS = [row for module in MODULES for row in module.ROWS]

WHOLE_PROGRAMS = (  # and other tests that take long, whose bugs `make test-all` plants
    "tests/pipeline/",
    "tests/train/test_copies.py",
    "tests/transfer/test_every_key.py",
    "tests/prep/test_links.py",
    "tests/test_inside.py",
    "tests/test_api.py",
    "tests/test_job_scripts.py",
    "tests/disk/test_locks.py",
    "tests/checks/",
    "tests/processes/test_peers.py",
    "tests/transfer/test_divided.py",
    "tests/data/test_large_sets.py",
    "tests/data/test_loader_processes.py",
    "tests/data/test_shard_cache.py",
    "tests/data/test_streams.py",
    "tests/data/test_mixed_order.py",
    "tests/data/test_joined_shards.py",
    "tests/prep/test_index_stores.py",
    "tests/prep/test_verify_stores.py",
    "tests/remote/",
    "tests/test_conformance.py",
    "tests/processes/test_watchman.py",
    "tests/transfer/test_probe_places.py",
    "tests/transfer/test_online.py",
    "tests/model/test_encoder_kinds.py",
    "tests/recipe/test_decoders_cross_attention.py",
    "tests/recipe/test_pretexts.py",
    "tests/prep/test_remote.py",
    "tests/prep/test_verify_shards.py",
    "tests/data/test_labelled_crops.py",
    "tests/interop/test_foreign_encoder.py",
    "tests/base/test_progress.py",
    "tests/train/test_classify.py",
    "tests/transfer/test_metrics.py",
    "tests/transfer/test_results.py",
    "tests/test_fit_codebook.py",
    "tests/transfer/test_logistic.py",
    "tests/transfer/test_overlap.py",
    "tests/interop/test_certificate.py",
    "tests/transfer/test_linear_probe.py",
    "tests/monitor/test_rank.py",
    "tests/test_plan.py",
    "tests/config/test_finetune.py",
    "tests/transfer/test_plots.py",
    "tests/transfer/test_probe_rows.py",
    "tests/data/test_bad_samples.py::test_what_is_measured_has_no_stand_ins",  # and others with their bugs in it: ten seconds and five
    "tests/data/test_order.py::test_more_processes_than_a_batch_has_streams_by_itself_are_told_what_to_ask_for",
)
LONG = [row for row in ROWS if any(test.startswith(WHOLE_PROGRAMS) for test in row.tests.split())]

PLUGINS = ("xdist.plugin", "pytest_timeout", "_hypothesis_pytestplugin")
PROGRAM = """
import os, sys
import mpp
import pytest
if not mpp.__file__.startswith(os.getcwd() + os.sep):
    sys.exit(97)
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutations") / "repository"
    for part in ("mpp", "data_prep", "configs", "jobs", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for part in ("mpp", "data_prep", "tests"):  # by content: a bug may be as long as what it replaces, and no second younger
        compileall.compile_dir(folder / part, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return folder


@pytest.fixture(scope="module")
def run(copy: Path) -> Callable[[list[str]], SimpleNamespace]:
    """run(tests): pytest's exit code and output in the copy."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", SERVER: server()}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # of those installed, only what the tests need

    def request(tests: list[str]) -> SimpleNamespace:
        arguments = [
            "-x",
            "-q",
            *(word for plugin in PLUGINS for word in ("-p", plugin)),
            "-n0",
            "--tb=short",
            "--assert=plain",
            "--hypothesis-profile=mpp-first-failure",
            f"--rootdir={copy}",
            f"--basetemp={copy.parent / 'tmp'}",
            *tests,
        ]
        try:
            finished = run_forked(["-c", PROGRAM, *arguments], cwd=copy, env=environment, timeout=300)
        except subprocess.TimeoutExpired as late:  # a machine that stalls is no answer; a bug that never ends does so again
            warnings.warn("\n".join([f"once more: {' '.join(tests)}: {late}", *late.__notes__]), stacklevel=2)
            finished = run_forked(["-c", PROGRAM, *arguments], cwd=copy, env=environment, timeout=300)
        return SimpleNamespace(code=finished.returncode, output=finished.stdout + finished.stderr)

    return request


def global_names(code: types.CodeType) -> set[str]:
    """That it reads, in what it defines, too."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(global_names(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def test_every_row_finds_what_it_replaces_and_its_tests():
    sources = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for row in ROWS:
        row.sown((ROOT / row.file).read_text())
        if isinstance(row, tests.mutations.Plant):
            module, _, attribute = row.name.partition(":")
            there = importlib.import_module(module)
            assert operator.attrgetter(attribute)(there) is not None, row.bug
            unknown = {name for name in global_names(compile(f"lambda real: {row.code}", row.bug, "eval")) if not hasattr(there, name)}
            assert unknown <= vars(builtins).keys(), f"{row.bug}: {module} knows no {unknown}, and a test would fail of that alone"
        for test in row.tests.split():
            file, _, name = test.partition("::")
            assert not name or f"def {name.partition('[')[0]}(" in sources[ROOT / file], f"{row.bug}: there is no {test}"


@pytest.mark.parametrize(
    "rows", [pytest.param(LONG, marks=pytest.mark.long, id="long"), pytest.param([row for row in ROWS if row not in LONG], id="short")]
)
def test_without_a_mutation_the_copy_passes(run, rows):
    """One test of each file, of the short ones of each folder: all of them run outside of the copy anyhow."""
    each = (lambda test: test.partition("::")[0]) if rows is LONG else lambda test: test.rpartition("/")[0]
    chosen = {each(test): test for row in reversed(rows) for test in row.tests.split()}
    found = run(sorted(chosen.values()))
    assert found.code == 0, found.output


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.bug.replace(" ", "_"), marks=pytest.mark.long if row in LONG else ()) for row in ROWS]
)
def test_a_plausible_bug_makes_a_test_fail(copy, run, row):
    if row.in_libjpeg and not list((ROOT / "mpp" / "data").glob("_jpeg.*.so")):
        pytest.skip("mpp was set up without libjpeg-turbo's headers (apt-get install libjpeg-dev)")
    path = copy / row.file
    text = path.read_text()
    path.write_text(row.sown(text))
    try:
        found = run(row.tests.split())
    finally:
        path.write_text(text)
    assert found.code == 1, found.output  # tests failed: not a collection error, a crash or a pass
    assert not re.search(r"^E +(NameError|AttributeError|ImportError|SyntaxError|UnboundLocalError)", found.output, re.MULTILINE), (
        found.output
    )
