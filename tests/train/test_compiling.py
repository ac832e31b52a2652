"""When the step is compiled, what of it, and that a run goes on where it cannot be."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from mpp.claims.subject import Subject, shaken
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.config.sections import SystemConfig
from mpp.train import compiling
from mpp.train.compiling import COMPILED_STEPS, CompiledStep, pays

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[2] / "configs"
OF_EACH_KIND = (
    "cifar_mpp",
    "cifar_mae",
    "cifar_crossmae",
    "cifar_maskfeat",
    "cifar_beit",
    "cifar_capi_clusters",
    "cifar_ijepa",
    "cifar_rotation",
)
SMALL = sorted(path.stem for path in CONFIGS.glob("cifar_*.yaml"))


@pytest.fixture(autouse=True)
def forgotten():
    yield
    torch.compiler.reset()


def test_long_runs_are_compiled_and_whoever_says_has_the_last_word():
    assert pays(SystemConfig(), COMPILED_STEPS) and not pays(SystemConfig(), COMPILED_STEPS - 1)
    assert pays(SystemConfig(zero_stage=2), COMPILED_STEPS) and not pays(SystemConfig(zero_stage=3), COMPILED_STEPS)
    assert pays(SystemConfig(cuda_graphs=True), 1)
    assert pays(SystemConfig(compile=True, zero_stage=3), 1) and not pays(SystemConfig(compile=False), 10**9)


class Seen:
    """A backend of torch.compile that computes what is asked, and counts."""

    def __init__(self, fails: bool = False):
        self.fails, self.graphs, self.calls = fails, 0, 0

    def __call__(self, graph, _):
        if self.fails:
            raise RuntimeError("no such instruction\nand much more")
        self.graphs += 1

        def counted(*inputs):
            self.calls += 1
            return graph(*inputs)

        return counted

    def take_the_place_of_inductor(self, monkeypatch) -> "Seen":
        def compile(module, dynamic, options):
            self.options = options
            module._compiled_call_impl = torch.compile(module._call_impl, backend=self, dynamic=dynamic)

        monkeypatch.setattr(nn.Module, "compile", compile)
        monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "none is called")
        return self


def test_training_batches_of_one_size_are_compiled_and_all_else_runs_as_it_is_written(monkeypatch):
    seen, model = Seen().take_the_place_of_inductor(monkeypatch), nn.Linear(3, 2)
    step = CompiledStep(model, CPU, batch=4, tells=False, graphs=False)
    for batch, training in [(1, True), (4, False), (4, True), (3, True), (4, True), (4, False)]:
        images = torch.randn(batch, 3)
        expected = torch.nn.functional.linear(images, model.weight, model.bias)
        assert torch.equal(step(lambda images=images: model(images), training, batch), expected)
    assert (seen.graphs, seen.calls) == (1, 2)


class Replayed(Seen):
    """Gives its results in the same memory every time, as a CUDA graph does."""

    def __call__(self, graph, _):
        memory: list[torch.Tensor] = []

        def replayed(*inputs):
            found = graph(*inputs)
            memory[:] = memory or [torch.empty_like(each) for each in found]
            for mine, each in zip(memory, found, strict=True):
                mine.copy_(each)
            return memory

        return replayed


@torch.no_grad()
def test_what_a_pass_has_given_outlives_the_next_replay_of_a_cuda_graph(monkeypatch, capsys):
    replayed, model = Replayed().take_the_place_of_inductor(monkeypatch), nn.Linear(3, 2)
    step = CompiledStep(model, CPU, batch=4, tells=True, graphs=True)
    assert replayed.options == {"triton.cudagraphs": True} and "changes nothing without a GPU" in capsys.readouterr().out
    batches = [torch.randn(4, 3) for _ in range(3)]
    given = [step(lambda images=images: model(images), True, 4) for images in batches]
    assert all(
        torch.equal(found, torch.nn.functional.linear(images, model.weight, model.bias))
        for found, images in zip(given, batches, strict=True)
    )


def test_what_cannot_be_compiled_runs_as_it_is_written_and_it_is_said_once(monkeypatch, capsys):
    Seen(fails=True).take_the_place_of_inductor(monkeypatch)
    model, images = nn.Linear(3, 2), torch.randn(4, 3)
    step = CompiledStep(model, CPU, batch=4, tells=True, graphs=True)
    assert step.replays  # as far as is known
    for _ in range(3):
        assert torch.equal(step(lambda: model(images), True, 4), torch.nn.functional.linear(images, model.weight, model.bias))
    (_, note) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note"))  # the first: that there is no GPU
    assert not step.replays
    assert "cannot be compiled (" in note and "no such instruction" in note and "training goes on as it is written" in note


def test_without_a_compiler_nothing_is_compiled_and_it_is_said_what_is_missing(monkeypatch, capsys):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    seen = Seen().take_the_place_of_inductor(monkeypatch)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    model, images = nn.Linear(3, 2), torch.randn(4, 3)
    step = CompiledStep(model, CPU, batch=4, tells=True, graphs=True)
    assert not step.replays
    assert torch.equal(step(lambda: model(images), True, 4), torch.nn.functional.linear(images, model.weight, model.bias))
    assert seen.graphs == 0 and "not compiled: that needs a C++ compiler" in capsys.readouterr().out
    assert compiling.missing(CPU)


@pytest.mark.parametrize("recipe", [name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.long) for name in SMALL])
def test_every_recipe_is_one_graph_without_a_break(recipe):
    words = ["target.encoder=there"] if recipe == "cifar_salt" else ["target.path=there"] if recipe == "cifar_beit" else []
    subject = Subject(recipe, load(PretrainConfig, CONFIGS / f"{recipe}.yaml", words), "")
    model = shaken(subject.small).train()
    counters.clear()
    torch.compiler.reset()
    model.compile(backend="eager", dynamic=False)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            _, loss, *_, own = model(subject.images, *subject.few_masks())
        (loss.mean() + own).backward()
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1
