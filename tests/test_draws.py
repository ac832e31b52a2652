"""A green run means the same everywhere: what hypothesis draws depends on the test alone, and what a module sets up is set up once."""

import importlib.util
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.internal.constants_ast import is_local_module_file

NUMBERS = [7_000_003 + 1_009 * number for number in range(400)]


def draws() -> list[int]:
    drawn: list[int] = []

    @settings(max_examples=60)
    @given(st.integers(0, 2**40))
    def note(number):
        drawn.append(number)

    note()
    return drawn


def test_examples_do_not_depend_on_which_modules_are_loaded(tmp_path):
    before = draws()
    path = tmp_path / "source" / "constants.py"
    path.parent.mkdir()
    path.write_text(f"NUMBERS = {NUMBERS}\n")
    assert is_local_module_file(str(path)), "hypothesis would not look into it anyhow"
    spec = importlib.util.spec_from_file_location("constants_of_a_module", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        after = draws()
    finally:
        del sys.modules[spec.name]
    assert after == before
    assert len(before) == 60
    assert not {*NUMBERS} & {*before}


def test_with_several_test_processes_a_modules_tests_share_one(request):
    """Else each of them would set up what the module shares, such as a SLURM, and take it down under the other."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("one test process")
    assert request.node.nodeid.endswith(f"@{request.path}")
