"""A step that shows and commits nothing does not wait for its device: it reads no number from it but what was agreed on a step before."""

import json

import pytest

from tests.forks import Forked
from tests.pipeline.conftest import ROOT, Finished, environment, finish, free_port, succeed
from tests.pipeline.conftest import TINY as PRETRAINING
from tests.pipeline.test_compiled import RECIPES
from tests.pipeline.test_finetune import TINY as FINETUNING

# Every look at a tensor's number is noted with the step in which it is taken and the file that takes it.
NOTING = """
import json, sys, traceback
from pathlib import Path
import torch
import mpp.train.run as run
out, program = sys.argv[1:3]
looks, now = [], [0]
class Noted(run.Step):
    def __init__(self, *given):
        now[0] = given[1] + 1
        super().__init__(*given)
run.Step = Noted
def noting(name, real):
    def noted(self, *given, **named):
        if now[0]:
            files = [frame.filename for frame in traceback.extract_stack()[:-1]]
            near = next((Path(file).name for file in reversed(files) if "/mpp/" in file and "site-packages" not in file), "")
            looks.append([now[0], name, near, Path(files[-1]).name])
        return real(self, *given, **named)
    return noted
for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero"):
    setattr(torch.Tensor, name, noting(name, getattr(torch.Tensor, name)))
from deepspeed.accelerator import get_accelerator
accelerator = get_accelerator()
accelerator.synchronize = noting("synchronize", lambda *_: None).__get__(accelerator)
if program == "pretrain":
    from mpp.pretrain import main
else:
    from mpp.finetune import main
try:
    status = main(sys.argv[3:])
finally:
    Path(out).write_text(json.dumps(looks))
sys.exit(status)
"""
LOGGED = ["log.every_steps=4", "log.holdout_every_steps=8", "checkpoint.every_samples=96"]


def ran(script: str, words: list[str], out, world: int = 1) -> tuple[Finished, list]:
    """How a script of this page ended, and what it wrote of each rank.  words: of its program."""
    port = free_port()
    outs = [out.with_name(f"{out.name}.{rank}.json") for rank in range(world)]
    processes = [
        Forked(["-c", script, str(outs[rank]), *words], cwd=ROOT, env=environment(rank, world, port) | {"PYTHONPATH": str(ROOT)})
        for rank in range(world)
    ]
    return finish(processes), [json.loads(each.read_text()) for each in outs]


def check(looks, logged):
    """logged: the steps that may look at anything."""
    assert {step for step, *_ in looks} >= logged  # it would have been seen
    quiet = [look for look in looks if look[0] not in logged]
    assert [look for look in quiet if look[2] != "shared_sum.py"] == []
    agreed = [step for step, name, near, _ in looks if near == "shared_sum.py" and name == "tolist"]
    assert sorted(agreed) == [1, 3, 4, 4, 6, 7, 8, 8]  # 2 and 5 follow a step that was read at once


@pytest.mark.parametrize(
    "recipe", [name if name in ("MAE", "clusters") else pytest.param(name, marks=pytest.mark.long) for name in RECIPES]
)
def test_pretraining_looks_at_no_number_between_the_steps_that_log(recipe, shards, tmp_path):
    words = [*PRETRAINING, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", *RECIPES[recipe], *LOGGED, "system.micro_batch_max=6"]
    finished, (looks,) = ran(NOTING, ["pretrain", *words], tmp_path / "looks")
    assert finished.status == [0], finished.err[-3000:]
    check(looks, {1, 4, 8})


def test_two_processes_hear_of_each_other_a_step_later(shards, tmp_path):
    words = [*PRETRAINING, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", *LOGGED]
    finished, looks = ran(NOTING, ["pretrain", *words], tmp_path / "looks", world=2)
    assert finished.status == [0, 0], finished.err[-3000:]
    for each in looks:
        check(each, {1, 4, 8})


def test_fine_tuning_does_not_look_either(shards, tmp_path):
    succeed(tmp_path / "encoder", shards, "optim.total_samples=24", "optim.warmup_samples=0", "log.pictures=0")
    words = [
        *FINETUNING,
        f"encoder={tmp_path / 'encoder'}",
        f"train={shards}",
        f"run_dir={tmp_path / 'run'}",
        "checkpoint.every_samples=960",
    ]
    finished, (looks,) = ran(NOTING, ["finetune", *words, "log={every_steps: 4, holdout_every_epochs: 3}"], tmp_path / "looks")
    assert finished.status == [0], finished.err[-3000:]
    quiet = [look for look in looks if look[0] in (2, 3, 5, 6, 7)]
    assert quiet and {look[2] for look in quiet} == {"shared_sum.py"}


# The gradient of step 6, of 8, is made infinite; noted is whether weights and moments are those of the step before, by step.
POISONED = """
import json, sys
from pathlib import Path
import torch
from mpp.base.errors import run_program
from mpp.pretrain import main
from mpp.train.engine import Engine
out, changed, calls, before = sys.argv.pop(1), [], [0], [{}]
backward, update = Engine.backward, Engine.update
def poisoned(self, loss):
    calls[0] += 1
    backward(self, loss * float("inf") if calls[0] == 6 else loss)
def noted(self, *given, **named):
    norm = update(self, *given, **named)
    state = {}
    for name, parameter in self.module.named_parameters():
        state |= {f"{name} {kind}": value.clone() for kind, value in self.state_of(parameter).items()}
        state[name] = self.whole(parameter).detach().clone()
    changed.append(sorted(name for name in state if name not in before[0] or not torch.equal(state[name], before[0][name])))
    before[0] = state
    Path(out).write_text(json.dumps(changed))
    return norm
Engine.backward, Engine.update = poisoned, noted
run_program(main)
"""


@pytest.mark.parametrize(
    ("stage", "logged"),
    [(0, 4), (0, 1), (1, 4), (3, 4), *(pytest.param(*each, marks=pytest.mark.long) for each in [(1, 1), (2, 1), (2, 4), (3, 1)])],
)
def test_a_gradient_that_is_not_finite_changes_nothing_and_stops_the_run_a_step_later_at_most(stage, logged, shards, tmp_path):
    words = [
        *PRETRAINING,
        f"data.shards={shards}",
        f"run_dir={tmp_path / 'run'}",
        "checkpoint.every_samples=48",
        f"log.every_steps={logged}",
    ]
    finished, (changed,) = ran(
        POISONED,
        [*words, "log.pictures=0", "log.holdout_every_steps=4", f"system.zero_stage={stage}", "system.max_skipped_steps=0"],
        tmp_path / "state",
    )
    assert finished.status == [2], finished.err[-3000:]
    (line,) = finished.error_lines
    assert "the gradient norm of step 6 is not finite (learning rate 0.000" in line
    assert len(changed) == (6 if logged == 1 else 7)  # steps that were taken
    assert all(changed[:5]) and changed[5] == []
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000004"]
