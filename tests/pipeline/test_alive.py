"""A rank or loader process that is stopped, killed or hangs: the whole job ends by itself, with one line that names it, and nothing is left behind.

Each job gets seconds of patience, and every test would wait for ever (its time limit) if nobody noticed.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mpp.base.errors import AGAIN
from mpp.config.sections import ModelConfig
from mpp.interop.encoder_folder import write_encoder
from mpp.model.encoder import build_encoder
from tests.forks import Forked
from tests.pipeline.conftest import TINY, Finished, finish, start

PATIENCE = 2
ENDLESS = [
    "optim.total_samples=120000000",
    "checkpoint.every_samples=240",
    "log={every_steps: 10, holdout_every_steps: 10000000, pictures_every_steps: 10000000}",
    f"system.patience_seconds={PATIENCE}",
]
HANGING = """
import os, sys, time
from {module} import {name} as owner
before, calls = owner.{method}, []
def hangs(*words, **more):
    calls.append(1)
    while os.environ["RANK"] == "{rank}" and len(calls) > {after}:
        {hang}
    return before(*words, **more)
owner.{method} = hangs
from mpp.{program} import main
from mpp.base.errors import run_program
run_program(main)
"""


def pretraining(run_dir: Path, shards: Path, *words: str, program: list[str] | None = None) -> list[Forked]:
    return start([*TINY, *ENDLESS, f"data.shards={shards}", f"run_dir={run_dir}", *words], 2, program)


def when(true: Callable[[], object], processes: Sequence[Forked]) -> None:
    ends = time.monotonic() + 120
    while not true():
        assert time.monotonic() < ends and all(process.poll() is None for process in processes), finish(list(processes))
        time.sleep(0.05)


def logged(run_dir: Path) -> Callable[[], bool]:
    """Whether the run has trained a few steps and committed."""
    return lambda: (run_dir / "metrics.jsonl").exists() and any((run_dir / "checkpoints").glob("*/COMMIT.json"))


def ended(processes: Sequence[Forked], run_dir: Path) -> Finished:
    """The job's end, in which no process is left and no status is 0."""
    done = finish(list(processes), timeout=100)
    assert all(done.status) and "Traceback" not in done.err, done.err
    assert len(done.error_lines) == 1, done.err
    for process in processes:
        assert not Path(f"/proc/{process.pid}").exists() or "Z" in Path(f"/proc/{process.pid}/stat").read_text()
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(run_dir) in text_of(path) and "watchman" in text_of(path)]
    ends = time.monotonic() + 30
    while left and time.monotonic() < ends:
        left = [path for path in left if text_of(path)]
    assert not left
    return done


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.long)])
def test_a_stopped_rank_is_named_and_ends_the_job(tmp_path, shards, rank):
    run = tmp_path / "run"
    job = pretraining(run, shards)
    when(logged(run), job)
    os.kill(job[rank].pid, signal.SIGSTOP)
    done = ended(job, run)
    (line,) = done.error_lines
    assert f"rank {rank} (host" in line and f"pid {job[rank].pid}" in line and "stopped by a signal" in line and "at step" in line
    assert done.status[rank] == -signal.SIGKILL and done.status[1 - rank] == AGAIN
    waiting = (run / f"stack.rank{1 - rank}.txt").read_text()  # where the other did: for the gradients' average, or in another collective
    assert "gradient_exchange.py" in waiting or "torch/distributed" in waiting


@pytest.mark.parametrize(
    "number, word",
    [(signal.SIGKILL, "SIGKILL"), pytest.param(signal.SIGSEGV, "SIGSEGV", marks=pytest.mark.long), pytest.param(signal.SIGBUS, "SIGBUS", marks=pytest.mark.long)],
)  # fmt: skip
def test_a_killed_rank_is_named_with_the_signal(tmp_path, shards, number, word):
    run = tmp_path / "run"
    job = pretraining(run, shards)
    when(logged(run), job)
    os.kill(job[1].pid, number)
    done = ended(job, run)
    assert f"rank 1 (host {os.uname().nodename}, pid {job[1].pid}) was killed by " in done.error_lines[0]
    told = word in done.error_lines[0]
    assert told or (number == signal.SIGKILL and "SIGKILL most likely" in done.error_lines[0])  # Linux tells from 6.15 on
    assert done.status == [AGAIN, -number]


def hanging(
    method: str, after: int, hang: str, program: str = "pretrain", module: str = "mpp.train.engine", name: str = "Engine"
) -> list[str]:
    return ["-c", HANGING.format(module=module, name=name, method=method, rank=1, after=after, hang=hang, program=program)]


@pytest.mark.parametrize(
    "method, hang",
    [
        ("forward", "time.sleep(0.1)"),
        pytest.param("forward", "pass", marks=pytest.mark.long),  # busy, and for ever
        pytest.param("update", "time.sleep(0.1)", marks=pytest.mark.long),  # all came to the same place, as far as counting tells
    ],
)
def test_a_rank_that_hangs_is_named_with_its_stack(tmp_path, shards, method, hang):
    run = tmp_path / "run"
    job = pretraining(run, shards, program=hanging(method, 20, hang))
    done = ended(job, run)
    assert f"rank 1 (host {os.uname().nodename}, pid {job[1].pid}) has not moved for" in done.error_lines[0]
    assert "in hangs" in (run / "stack.rank1.txt").read_text()


@pytest.mark.long
def test_a_stopped_loader_process_is_named(tmp_path, shards):
    run = tmp_path / "run"
    job = pretraining(run, shards, "system.workers=1")
    when(logged(run), job)
    below = Path(f"/proc/{job[1].pid}/task/{job[1].pid}/children").read_text().split()
    worker = next(pid for pid in below if "watchman" not in text_of(Path(f"/proc/{pid}/cmdline")))
    os.kill(int(worker), signal.SIGSTOP)
    done = ended(job, run)
    assert f"error [rank 1]: loader process {worker} on" in done.error_lines[0] and "stopped by a signal" in done.error_lines[0]
    assert text_of(Path(f"/proc/{worker}/cmdline")) == ""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    model = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=32, depth=2, heads=2)
    write_encoder(folder, build_encoder(model, 5).vit.state_dict(), model, (0.5,) * 3, (0.5,) * 3, "tiny")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_fine_tuning_names_a_stopped_rank(tmp_path, shards, encoder, rank):
    run = tmp_path / "run"
    words = [f"encoder={encoder}", f"train={shards}", f"run_dir={run}", "optim={steps: 10000000, warmup_steps: 1}"]
    words += [
        "data={global_batch: 4, holdout_fraction: 0.2}",
        "log={every_steps: 10, holdout_every_epochs: 100000}",
        "checkpoint.every_samples=40",
    ]
    job = start([*words, f"system={{precision: fp32, workers: 0, patience_seconds: {PATIENCE}}}"], 2, ["mpp/finetune.py"])
    when(logged(run), job)
    os.kill(job[rank].pid, signal.SIGSTOP)
    assert f"rank {rank} (host" in ended(job, run).error_lines[0]


IN_ORDER = """
import importlib, os, sys, time
rank, program, slow = int(os.environ["RANK"]), *sys.argv[1:3]
status = importlib.import_module(f"mpp.{program}").main(sys.argv[3:])
time.sleep(2 if rank == int(slow) else 0)  # while the other has ended, and its watchman has seen it
sys.exit(status)
"""


@pytest.mark.parametrize("program", ["pretrain", "linear_probe"])
@pytest.mark.parametrize("slow", [0, 1])
def test_ranks_that_call_a_program_end_in_order_though_none_says_so(tmp_path, shards, encoder, program, slow):
    """As a script of somebody's own does, without what prints errors and leaves: one may have ended while another still has work of its own."""
    words = [
        *TINY,
        f"data.shards={shards}",
        f"run_dir={tmp_path / 'run'}",
        "optim={total_samples: 24, warmup_samples: 0}",
        "log.pictures=0",
    ]
    if program == "linear_probe":
        words = [f"encoder={encoder}", f"train={shards}", f"out={tmp_path / 'out'}", "extract_only=true"]
    done = finish(start([program, str(slow), *words], 2, ["-c", IN_ORDER]))
    assert done.status == [0, 0], done.err


@pytest.mark.parametrize("what", ["hangs", pytest.param("stops", marks=pytest.mark.long)])
def test_a_probe_names_a_rank_that_hangs_or_stops(tmp_path, shards, encoder, what):
    out = tmp_path / "out"
    hang = "time.sleep(0.1)" if what == "hangs" else "os.kill(os.getpid(), 19)"
    program = hanging("__call__", 4, hang, "linear_probe", "mpp.transfer.extractors", "EncoderExtractor")
    words = [f"encoder={encoder}", f"train={shards}", f"out={out}", "features.workers=0", "features.batch=2", "baselines=false"]
    job = start([*words, f"patience_seconds={PATIENCE}"], 2, program)
    line = ended(job, out).error_lines[0]
    assert "rank 1 (host" in line and "extracting features" in line
    assert ("has not moved" if what == "hangs" else "stopped by a signal") in line
