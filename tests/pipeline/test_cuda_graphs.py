"""What CUDA graphs ask of a run, without a GPU: a backend of torch.compile that gives all results in the same memory, as a replayed graph does, and
spoils it when the next step's begins.  On a GPU: test_cuda.py."""

import pytest
import torch

from mpp.base.errors import ConfigError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from tests.pipeline.conftest import TINY, finish, metrics, start, tensors
from tests.pipeline.test_compiled import RECIPES

COMPILED = """
import math
from pathlib import Path
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import cpp_builder

memory = []  # what all graphs have given, in place

def replayed(graph, _):
    given = []
    def run(*inputs):
        found = graph(*inputs)
        if not given:
            given.extend(torch.empty_like(each) if isinstance(each, Tensor) else each for each in found)
            memory.extend(each for each in given if isinstance(each, Tensor) and each.is_floating_point())
        for mine, each in zip(given, found, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(each)
        return [mine.detach() if isinstance(mine, Tensor) else each for mine, each in zip(given, found, strict=True)]
    return make_boxed_func(run)

def spoiled():
    with Path({passes!r}).open("a") as file:
        file.write("1")
    for each in memory:
        each.fill_(math.nan)

overwrites = {overwrites}
backend = aot_autograd(fw_compiler=replayed, bw_compiler=replayed) if overwrites else "aot_eager"
def compile(module, dynamic, options):
    assert bool(options) == overwrites
    module._compiled_call_impl = torch.compile(module._call_impl, backend=backend, dynamic=dynamic)
nn.Module.compile = compile
cpp_builder.get_cpp_compiler = lambda: "none is called"
torch.compiler.cudagraph_mark_step_begin = spoiled
from mpp.pretrain import main
from mpp.base.errors import run_program
run_program(main)
"""


@pytest.mark.parametrize(
    "recipe", [pytest.param("mean colour", id="colour"), *(pytest.param(name, marks=pytest.mark.long) for name in ("data2vec", "clusters"))]
)
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.long)])
def test_memory_that_every_pass_overwrites_changes_no_bit_of_a_run(recipe, world, shards, tmp_path):
    def ran(name: str, *words: str) -> int:
        """How many passes have begun in all."""
        passes = tmp_path / f"passes of {name}"
        passes.touch()
        program = ["-c", COMPILED.format(overwrites=name == "replayed", passes=str(passes))]
        given = [*TINY, f"data.shards={shards}", f"run_dir={tmp_path / name}", *RECIPES[recipe], "system.micro_batch_max=3", *words]
        done = finish(start(given, world, program))
        assert done.status == [0] * world, done.err[-3000:]
        return len(passes.read_text())

    assert ran("plain", "system.compile=true") == 0
    assert (
        ran("replayed", "system.compile=null", "system.cuda_graphs=true") == 8 * 4
    )  # micro-batches of all steps and processes, and no hold-out
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "replayed")
    expected, found = tensors(tmp_path / "plain", 8), tensors(tmp_path / "replayed", 8)
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["system.cuda_graphs=true", "system.compile=false"], "cuda_graphs=true is of a compiled step, and compile=false"),
        (["system.cuda_graphs=true", "system.zero_stage=2"], "zero_stage=2 moves them; set zero_stage=0"),
    ],
)
def test_what_does_not_go_with_them_is_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        load(PretrainConfig, None, words)


NOT_COMPILED = """
import torch
from torch import nn
from mpp.train import compiling, engine
{planted}
class Noted(engine.FixedGradients):
    def __init__(self, parameters):
        print("gradients of their own")
        super().__init__(parameters)
    def clear(self):
        print("cleared")
        super().clear()
engine.FixedGradients = Noted
from mpp.pretrain import main
from mpp.base.errors import run_program
run_program(main)
"""
NO_COMPILER = 'compiling.missing = lambda device: "a compiler"'
FAILS = """
compiling.missing = lambda device: ""  # nothing here comes to a compiler
def refuses(graph, _):
    raise RuntimeError("no such instruction")
nn.Module.compile = lambda module, **_: setattr(module, "_compiled_call_impl", torch.compile(module._call_impl, backend=refuses))
"""


def test_a_step_that_is_not_compiled_keeps_no_memory_for_the_gradients_of_cuda_graphs(shards, tmp_path):
    given = [*TINY, f"data.shards={shards}"]
    assert finish(start([*given, f"run_dir={tmp_path / 'plain'}"], 1)).status == [0]
    for name, planted, made in [("missing", NO_COMPILER, 0), ("refused", FAILS, 1)]:
        program = ["-c", NOT_COMPILED.format(planted=planted)]
        done = finish(start([*given, f"run_dir={tmp_path / name}", "system.compile=null", "system.cuda_graphs=true"], 1, program))
        assert done.status == [0], done.err[-3000:]
        assert (done.out.count("gradients of their own"), done.out.count("cleared")) == (made, made), name
        assert metrics(tmp_path / name) == metrics(tmp_path / "plain")
