"""What a process finds on its own machine: device, cores, compiler, packages, open files, memory shared with loader processes."""

import os
import resource
import shutil
import socket
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from mpp.base.machine import usable_cores
from mpp.base.text import counted, sized
from mpp.checks.finding import Finding, attempt
from mpp.config.sections import SystemConfig
from mpp.data.crop_dataset import CropDataset
from mpp.data.handing_over import PREFETCHED
from mpp.data.loader import SHARED_MEMORY, refuse_small_shared_memory, shared_bytes
from mpp.data.order import OrderSampler
from mpp.data.shards import OPEN_FILES
from mpp.train.compiling import missing, pays
from mpp.train.engine import check_version

DRIVER = Path("/dev/nvidiactl")  # there where a driver of NVIDIA's is
BUSY = 0.1  # of a card's memory that others hold, from which on they are in the way
TENSORS, BESIDE = 3, 256  # files: of a batch that is handed over; of Python, libraries, logs, sockets (judged)


def device(own: torch.device) -> Finding:
    """own: this process's, whose number is right by now."""
    if own.type == "cpu":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")  # on purpose
        if DRIVER.exists() and not hidden:
            return Finding(
                "device", "FAILED", f"{socket.gethostname()} has an NVIDIA driver, and torch sees no GPU",
                "look at nvidia-smi and CUDA_VISIBLE_DEVICES, and install the torch of that driver's CUDA (python -c 'import torch; torch.zeros(1).cuda()' says why)",
            )  # fmt: skip
        return Finding("device", "ok", f"no GPU: CPU cores, {counted(torch.get_num_threads(), 'thread')} a process")
    free, whole = torch.cuda.mem_get_info(own)
    name = f"{torch.cuda.get_device_name(own)}, {sized(free)} of {sized(whole)} free"
    if whole - free > BUSY * whole:
        return Finding(
            "device", "warning", name, "another program holds its memory: nvidia-smi names it; end it, or choose other GPUs by CUDA_VISIBLE_DEVICES"
        )  # fmt: skip
    return Finding("device", "ok", name, figure=free / 1e9)


def cores(own: torch.device, local_size: int, workers: int) -> Finding:
    """workers: loader processes a rank."""
    usable, there = usable_cores(), psutil.cpu_count() or 1
    share = usable / local_size
    found = f"{share:.3g} cores a rank ({usable} of the machine's {there}, {counted(local_size, 'rank')} here), {counted(workers, 'loader process', 'loader processes')} each"
    if share < 2 and own.type == "cuda":
        return Finding(
            "cores", "FAILED", found, "a GPU's process and its loader need two cores at least: ask for more (srun --cpus-per-task=12, which sbatch's own does not pass on)"
        )  # fmt: skip
    if share < 1:
        return Finding("cores", "warning", found, f"start at most {usable} processes on this machine, or give them more cores")
    return Finding("cores", "ok", found, figure=share)


def compiler(system: SystemConfig, own: torch.device, steps: int) -> Finding:
    """Whether DeepSpeed is one that serves, and torch.compile has what it needs here.  steps: of the run."""
    name = "compilers"
    refused = attempt(name, lambda: check_version(version("deepspeed")))
    if isinstance(refused, Finding):
        return refused
    said, fix = f"DeepSpeed {version('deepspeed')} compiles nothing", ""
    if pays(system, steps):
        if lacking := missing(own):
            said, fix = f"{said}; the step will not be compiled, which needs {lacking}", f"install {lacking}, or set system.compile=false"
        else:
            said += "; the step is compiled by torch, up to a minute"
    return Finding(name, "warning" if fix else "ok", said, fix)


def open_files(workers: int) -> Finding:
    """After mpp.base.machine.allow_open_files, which raises the limit as far as the system lets it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = BESIDE + OPEN_FILES + TENSORS * (PREFETCHED + 1) * workers
    shown = "any number of" if limit == resource.RLIM_INFINITY else f"{limit:,}"
    found = f"{shown} open files a process, about {needed:,} are used"
    if limit != resource.RLIM_INFINITY and limit < needed:
        return Finding(
            "open files", "FAILED", found, f"raise the hard limit: ulimit -Hn {max(65536, needed)}, LimitNOFILE= of the daemon that starts it, or docker run --ulimit nofile=65536"
        )  # fmt: skip
    return Finding("open files", "ok", found, figure=float("inf") if limit == resource.RLIM_INFINITY else float(limit))


def shared_memory(dataset: CropDataset, sampler: OrderSampler, workers: int, local_size: int) -> Finding:
    if not workers or not SHARED_MEMORY.is_dir():
        return Finding("shared memory", "ok", "not used: no loader processes" if not workers else f"no {SHARED_MEMORY} here")
    needed = shared_bytes(dataset, sampler, workers, local_size)
    refused = attempt("shared memory", lambda: refuse_small_shared_memory(needed, workers))
    if isinstance(refused, Finding):
        return refused
    free = shutil.disk_usage(SHARED_MEMORY).free
    return Finding("shared memory", "ok", f"{SHARED_MEMORY} has {sized(free)} free, loaders hold up to {sized(needed)}", figure=free / 1e9)
