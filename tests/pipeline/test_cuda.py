"""On a GPU: what a recipe computes there, and a run from start to probe, against the same on a CPU."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from mpp.claims.subject import Subject, shaken
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.recipe.targets.base import Lent
from tests.pipeline.conftest import ROOT, TINY, environment, free_port, metrics, succeed, tensors
from tests.pipeline.test_compiled import RECIPES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SMALL = sorted(path.stem for path in (ROOT / "configs").glob("cifar_*.yaml"))
STEP, LAST = 4, 8


@pytest.mark.parametrize("recipe", SMALL)
def test_loss_and_gradients_are_those_of_a_cpu(recipe):
    words = ["target.encoder=there"] if recipe == "cifar_salt" else ["target.path=there"] if recipe == "cifar_beit" else []
    subject = Subject(recipe, load(PretrainConfig, ROOT / "configs" / f"{recipe}.yaml", words), "")
    model = shaken(subject.small)

    def passed(device: str) -> dict[str, torch.Tensor]:
        there = model.to(device)
        Lent(there.teacher, getattr(there.target, "codebook", None)).to(torch.device(device))
        there.zero_grad()
        _, loss, *_, own = there(subject.images.to(device), *(part.to(device) for part in subject.few_masks()))
        (loss.mean() + own).backward()
        return {"loss": loss.detach().cpu()} | {
            name: parameter.grad.cpu().clone() for name, parameter in there.named_parameters() if parameter.grad is not None
        }

    expected, found = passed("cpu"), passed("cuda")
    assert expected.keys() == found.keys() and len(expected) > 20
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-3 * value.abs().max() + 1e-7, name


def on_gpu(program: str, *words: str) -> subprocess.CompletedProcess:
    """In a process of its own: one that is forked off cannot use CUDA."""
    variables = {name: value for name, value in environment(0, 1, free_port()).items() if name != "CUDA_VISIBLE_DEVICES"}
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        variables["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    command = [sys.executable, program, *words]
    finished = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-3000:]
    return finished


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_is_that_of_a_cpu_and_goes_on_after_a_kill(recipe, shards, tmp_path):
    words = [*RECIPES[recipe], "model.drop_path=0"]
    plain, there = tmp_path / "plain", tmp_path / "there"
    succeed(plain, shards, *words)
    command = ["mpp/pretrain.py", *TINY, f"data.shards={shards}", f"run_dir={there}", *words]
    on_gpu(*command)
    expected, found = metrics(plain), metrics(there)
    assert expected.keys() == found.keys() and len(expected) >= LAST
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=2e-3, abs=2e-3, nan_ok=True), step
    for folder in (there / "checkpoints").iterdir():
        if int(folder.name) > STEP:
            shutil.rmtree(folder)
    whole, before = tensors(plain, LAST), metrics(there)
    assert f"resumes at step {STEP}" in on_gpu(*command).stdout
    again = metrics(there)
    assert again.keys() == before.keys()
    for step, values in before.items():
        assert again[step] == pytest.approx(values, rel=1e-4, abs=1e-4, nan_ok=True), step
    resumed = tensors(there, LAST)
    for name in whole:
        if name.startswith("weight/"):
            torch.testing.assert_close(resumed[name], whole[name], atol=1e-3, rtol=1e-2, msg=name)


@pytest.mark.parametrize(
    "words",
    [
        ["system.precision=bf16"],
        ["system.images=device"],
        ["system.zero_stage=1"],
        ["system.zero_stage=2", "system.micro_batch_max=4"],
        ["system.compile=true"],
        ["system.cuda_graphs=true"],
        ["system.cuda_graphs=true", "system.micro_batch_max=4"],
    ],
    ids=",".join,
)
def test_knobs_that_a_gpu_has_change_little(words, shards, tmp_path):
    plain, there = tmp_path / "plain", tmp_path / "there"
    succeed(plain, shards, "model.drop_path=0")
    on_gpu("mpp/pretrain.py", *TINY, f"data.shards={shards}", f"run_dir={there}", "model.drop_path=0", *words)
    expected, found = metrics(plain), metrics(there)
    for step, values in expected.items():
        assert found[step]["train/loss"] == pytest.approx(values["train/loss"], rel=2e-2), step


def test_probe_and_fine_tuning_run_there(shards, tmp_path):
    run, data = tmp_path / "run", f"train={shards}"
    on_gpu("mpp/pretrain.py", *TINY, f"data.shards={shards}", f"run_dir={run}")
    probed = on_gpu("mpp/linear_probe.py", f"encoder={run}", data, f"out={tmp_path / 'probe'}", "features.workers=0", "few_shot.shots=[1]")
    assert "random init" in probed.stdout
    assert torch.cuda.get_device_name() in (tmp_path / "probe" / "results.json").read_text()
    words = ["data.global_batch=12", "data.holdout_fraction=0.2", "optim.epochs=2", "system.workers=0"]
    tuned = on_gpu(
        "mpp/finetune.py", "--config", "configs/finetune_cifar.yaml", f"encoder={run}", data, f"run_dir={tmp_path / 'tuned'}", *words
    )
    assert "top-1" in tuned.stdout


STRICT = """
import sys
import torch
import mpp.train.run as run
logged = {1, 4, 8}
class Strict(run.Step):
    def __init__(self, *given):
        super().__init__(*given)
        torch.cuda.set_sync_debug_mode("default" if self.number in logged else "error")
run.Step = Strict
from mpp.base.errors import run_program
from mpp.pretrain import main
run_program(main)
"""


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_step_that_shows_and_commits_nothing_does_not_wait_for_the_device(recipe, workers, shards, tmp_path):
    words = [*TINY, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", *RECIPES[recipe], f"system.workers={workers}"]
    on_gpu("-c", STRICT, *words, "log.every_steps=4", "log.holdout_every_steps=8", "checkpoint.every_samples=96")
