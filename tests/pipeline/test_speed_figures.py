"""What a run says of its speed: a share of the machine's limit, and where the time of a step goes.  And nothing is paid for processes that are not there."""

import json
import shutil

import pytest
import torch

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.mains.pretrain import flop_of
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from tests.pipeline.conftest import finish, pretrain, start, succeed
from tests.pipeline.test_finetune import TINY

LONG = ["optim.total_samples=1200", "optim.warmup_samples=0", "log.every_steps=50", "log.pictures=0", "system.matrix_tflops=0.25"]
COUNTED = """
from deepspeed.runtime.engine import DeepSpeedEngine
from mpp.base.errors import run_program
from mpp.pretrain import main
from mpp.train.gradient_exchange import GradientExchange
def counted(owner, name):
    real = getattr(owner, name)
    def call(*given, **named):
        print("SUMMED", flush=True)
        return real(*given, **named)
    setattr(owner, name, call)
counted(GradientExchange, "finish")
counted(DeepSpeedEngine, "allreduce_gradients")
run_program(main)
"""


def speeds(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "speed/samples_per_second" in row]


def model_of(run_dir):
    config = load(PretrainConfig, str(run_dir / "config.yaml"), [])
    masking = Masking(config.model.grid, config.mask, config.corruption)
    return flop_of(build_model(config), config, masking, torch.device("cpu"))


@pytest.mark.parametrize("world", [1, 2])
def test_images_a_second_are_held_against_the_matrix_products_of_all_processes(shards, tmp_path, world):
    finished = succeed(tmp_path / "run", shards, *LONG, world=world)
    flop = model_of(tmp_path / "run")
    for row in speeds(tmp_path / "run"):
        assert row["speed/tflops"] == pytest.approx(flop * row["speed/samples_per_second"] / 1e12)
        assert row["speed/mfu"] == pytest.approx(row["speed/tflops"] / (0.25 * world))
        phases = {name: value for name, value in row.items() if name.endswith("_ms")}
        assert set(phases) == {
            f"speed/{name}_ms" for name in ("forward", "backward", "optimiser", "data", "rest", *["reduce"] * (world > 1))
        }
        assert sum(phases.values()) == pytest.approx(12_000 / row["speed/samples_per_second"]) and min(phases.values()) >= 0
    (line,) = (line for line in finished.out.splitlines() if line.startswith("step 100/100 "))
    assert f"img/s  mfu {row['speed/mfu']:.0%}  wait" in line and f"peak {row['speed/peak_gb']:.2g} GB  eta" in line
    (first,) = (line for line in finished.out.splitlines() if line.startswith("run "))
    assert (
        f"{world} process{'es' if world > 1 else ''} on cpu, 1 thread each (" in first
    )  # how the cores are shared out: environment() asks for one
    assert 0.2 < row["speed/peak_gb"] < 5  # Python with torch alone is more than the one, and nothing here is large


def test_a_short_run_is_not_held_against_anything(shards, tmp_path):
    finished = succeed(tmp_path / "run", shards, "log.pictures=0")
    assert "mfu" not in finished.out and not any("speed/mfu" in row for row in speeds(tmp_path / "run"))


def test_a_resumed_run_does_not_count_the_step_that_creates_its_optimisers_state(shards, tmp_path):
    succeed(tmp_path / "run", shards, "log.pictures=0")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000000008")
    assert "resumes at step 6" in succeed(tmp_path / "run", shards, "log.pictures=0").out
    first = speeds(tmp_path / "run")[6]
    phases = [value for name, value in first.items() if name.endswith("_ms")]
    assert first["step"] == 7 and sum(phases) == pytest.approx(12_000 / first["speed/samples_per_second"])


def test_fine_tuning_is_held_against_the_same(shards, tmp_path):
    succeed(tmp_path / "pretrained", shards, "optim.total_samples=24", "optim.warmup_samples=0", "log.pictures=0")
    words = [f"encoder={tmp_path / 'pretrained'}", f"train={shards}", f"run_dir={tmp_path / 'run'}", "optim.steps=100"]
    finished = finish(start([], 1, ["mpp/finetune.py", *TINY, *words, "system.matrix_tflops=0.25"]))
    assert finished.status == [0], finished.err
    assert all(row["speed/mfu"] == pytest.approx(row["speed/tflops"] / 0.25) for row in speeds(tmp_path / "run"))


@pytest.mark.parametrize("world", [1, 2])
def test_gradients_are_gathered_once_a_step_and_of_one_process_never(shards, tmp_path, world):
    finished = pretrain(tmp_path / "run", shards, "system.micro_batch_max=3", "log.pictures=0", world=world, program=["-c", COUNTED])
    assert finished.status == [0] * world, finished.err
    assert finished.out.count("SUMMED") == (0 if world == 1 else world * 8)


COUNTING = """
import itertools
from pathlib import Path
import mpp.monitor.energy as energy
from mpp.base.errors import run_program
from mpp.pretrain import main
folder = Path({folder!r})
energy.POWERCAP = folder
read, ticks = energy._microjoules, itertools.count()
energy._microjoules = lambda file: 7.0 * next(ticks) if file.name == "energy_uj" else read(file)  # seven joules a look
run_program(main)
"""


def test_a_run_writes_down_what_each_row_took(shards, tmp_path):
    (tmp_path / "cap" / "intel-rapl:0").mkdir(parents=True)
    (tmp_path / "cap" / "intel-rapl:0" / "max_energy_range_uj").write_text("1000000000000")
    program = ["-c", COUNTING.format(folder=str(tmp_path / "cap"))]
    found = pretrain(tmp_path / "run", shards, "log={every_steps: 2, pictures: 0}", program=program)
    assert found.status == [0], found.err[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["speed/energy_joules"] for row in rows if "train/loss" in row] == [7.0] * 4


PHASES = """
from mpp.base.errors import run_program
from mpp.monitor.phases import Phases
from mpp.pretrain import main
real = Phases.__call__
def told(self, phase):
    print("PHASE", phase, flush=True)
    return real(self, phase)
Phases.__call__ = told
run_program(main)
"""


def test_what_is_measured_between_steps_is_no_part_of_their_forward_passes(shards, tmp_path):
    finished = pretrain(tmp_path / "run", shards, program=["-c", PHASES])
    assert finished.status == [0], finished.err
    assert finished.out.count("PHASE forward\n") == finished.out.count("PHASE optimiser\n") == 8  # steps of one micro-batch
    assert finished.out.count("PHASE measuring\n") == 4  # two looks at a hold-out of one batch, and as many pictures
