"""What a process finds on its own machine: each check once where it is well, and once with a fault planted."""

import resource
import shutil
from collections import namedtuple

import pytest
import torch

from mpp.checks import machine
from mpp.config.pretrain import PretrainConfig
from mpp.config.sections import SystemConfig
from mpp.data.batch_plan import plan_batch
from mpp.data.order import OrderSampler
from mpp.data.training_set import open_training_set

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
Usage = namedtuple("Usage", "total used free")


def test_a_machine_without_a_driver_trains_on_its_cores_and_one_whose_gpu_is_not_seen_fails(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "nvidiactl")
    assert machine.device(CPU).verdict == "ok"
    (tmp_path / "nvidiactl").touch()
    found = machine.device(CPU)
    assert found.verdict == "FAILED" and "torch sees no GPU" in found.found and "nvidia-smi" in found.fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # nobody wants it
    assert machine.device(CPU).verdict == "ok"


@pytest.mark.parametrize(("free", "verdict"), [(79e9, "ok"), (50e9, "warning")])
def test_a_gpu_that_another_program_holds_is_told(monkeypatch, free, verdict):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    found = machine.device(GPU)
    assert found.verdict == verdict and found.found.startswith(f"H100, {free / 1e9:.3g} GB of 80 GB free")


@pytest.mark.parametrize(
    ("cores", "ranks", "device", "verdict"),
    [(96, 8, GPU, "ok"), (15, 8, GPU, "FAILED"), (1, 1, GPU, "FAILED"), (16, 8, GPU, "ok"), (2, 2, CPU, "ok"), (2, 4, CPU, "warning")],
)
def test_a_gpu_wants_two_cores_and_a_process_one(monkeypatch, cores, ranks, device, verdict):
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    found = machine.cores(device, ranks, 1)
    assert found.verdict == verdict and found.found.startswith(f"{cores / ranks:.3g} cores a rank")


def test_what_will_be_compiled_is_told_and_what_cannot_be_is_a_warning(monkeypatch):
    system = SystemConfig()
    monkeypatch.setattr(machine, "missing", lambda device: "")
    found = machine.compiler(system, CPU, steps=10)
    assert found.verdict == "ok" and found.found.endswith(" compiles nothing")
    assert machine.compiler(system, CPU, 100_000).found.endswith("; the step is compiled by torch, up to a minute")
    monkeypatch.setattr(machine, "missing", lambda device: "Triton")
    assert machine.compiler(system, GPU, 10).verdict == "ok"  # so short a run is not compiled
    found = machine.compiler(system, GPU, 100_000)
    assert found.verdict == "warning" and "Triton" in found.found and "system.compile=false" in found.fix


def test_a_deepspeed_that_is_too_old_fails_with_what_to_install(monkeypatch):
    monkeypatch.setattr(machine, "version", lambda package: "0.14.2")
    found = machine.compiler(SystemConfig(), CPU, 10)
    assert found.verdict == "FAILED" and "0.14.2 is too old" in found.found + found.fix


@pytest.mark.parametrize(("limit", "verdict"), [(1024, "FAILED"), (65536, "ok"), (resource.RLIM_INFINITY, "ok")])
def test_few_open_files_fail(monkeypatch, limit, verdict):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    found = machine.open_files(workers=64)  # 256 + 256 + 3 files of 5 batches of each
    assert found.verdict == verdict and "1,472" in found.found


def test_shared_memory_must_hold_the_batches_in_flight(monkeypatch, tiny_shards):
    config = PretrainConfig.model_validate({"data": {"shards": str(tiny_shards), "holdout_samples": 8, "global_batch": 16}})
    sets, plan = open_training_set(config), plan_batch(16, None, 1, 16)
    sampler = OrderSampler(sets.order(config, plan), plan, 0, 1, 0, 100)
    needed = sets.training.bytes_of(16) * 5 * 3 * 2  # five batches of each of three workers of two processes
    for free, verdict in ((needed - 1, "FAILED"), (needed, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(10**12, 0, free))
        found = machine.shared_memory(sets.training, sampler, workers=3, local_size=2)
        assert found.verdict == verdict
    assert machine.shared_memory(sets.training, sampler, 0, 2).found == "not used: no loader processes"
