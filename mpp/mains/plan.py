"""What mpp/plan.py does: counts a recipe's parameters, arithmetic and memory on shapes, and sets them against machines.

Measured are the images a second of one process, or the share of the card's matrix products that such a recipe has reached (REACHED); the rest is
arithmetic: memory and traffic of ZeRO's stages (train/zero_costs.py), rings for collectives.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from mpp.base.errors import ConfigError
from mpp.base.machine import usable_memory
from mpp.base.progress import Progress
from mpp.base.text import counted, say
from mpp.config.pretrain import PretrainConfig
from mpp.data.batch_plan import BatchPlan, plan_batch
from mpp.interop.lent import bring
from mpp.mains.pretrain import blank_inputs, flop_of, micro_step_bytes
from mpp.model.encoder import encoder_in_words
from mpp.model.recompute import recompute_blocks
from mpp.model.tokens import fuses_attention
from mpp.monitor.arithmetic import matrix_rate
from mpp.recipe.masking import Masking
from mpp.recipe.model import PretrainingModel, build_model
from mpp.train.engine import Engine, start_distributed
from mpp.train.optim import build_optimiser
from mpp.train.teacher import teacher_of
from mpp.train.zero_costs import PERSISTENT, STAGES, Parameters, held_at_most, sent

CPU = torch.device("cpu")
HIDES = 2 / 3  # of a step's arithmetic is the backward pass, behind which gradients could be summed
SLACK = 0.94  # of a card's memory, which torch's allocator and CUDA leave for tensors (judged)
TIMED, WARM_UP = 5, 2  # steps of --gpu here


@dataclass(frozen=True)
class Gpu:
    tflops: float  # of large bf16 matrix products
    gigabytes: float
    link: float  # GB/s that a GPU sends to others of its node
    name: str


GPUS = {  # matrix products as measured on an H100 (docs/results.md), of an A100 judged; links: two thirds of NVLink's rate one way (judged)
    "h100": Gpu(790, 80, 300, "H100"),
    "h200": Gpu(790, 141, 300, "H200"),
    "a100": Gpu(260, 80, 200, "A100"),
}
# Share of large matrix products that a step reached: ViT-B/16, 256 images at once, bf16, not compiled, one H100 (docs/results.md).
REACHED = {True: 0.21, False: 0.31}  # MAE, where three quarters of the patches are dropped; mean colour, where none is


@dataclass(frozen=True)
class Machines:
    gpus: int
    per_node: int
    gpu: str
    network: float  # GB/s
    cores: int
    loader_rate: float  # images a second and core

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)

    def bytes_a_second(self, gpu: Gpu) -> float:
        """Of a ring's collective: every byte passes from node to node once, and the GPUs of a node share that, each over its own port."""
        return 1e9 * (gpu.link if self.nodes == 1 else min(gpu.link, self.network * self.per_node))


@dataclass(frozen=True)
class Counts:
    """Of a recipe."""

    parameters: Parameters
    flop: int  # of an image
    step_bytes: dict[int, int]  # images at once -> bytes

    def bytes_at(self, batch: int) -> float:
        """A straight line through what was counted."""
        (small, low), (large, high) = sorted(self.step_bytes.items())[:2]
        return low + (high - low) / (large - small) * (batch - small)

    def largest_batch(self, stage: int, gpus: int, room: float) -> int:
        """Images at once that fit into so many bytes; 0: not even one does."""
        low, high = 0, 1
        fits = lambda batch: held_at_most(self.parameters, stage, gpus, int(self.bytes_at(batch))) <= room
        while high < 2**20 and fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


@dataclass(frozen=True)
class StepTime:
    """Seconds."""

    compute: float
    exchange: float  # without overlap
    hidden: float  # the part of it that a backward pass could hide

    @property
    def alone(self) -> float:
        return self.compute + self.exchange

    @property
    def overlapped(self) -> float:
        return self.alone - self.hidden


def plan(config: PretrainConfig, machines: Machines, rate: float | None) -> int:
    """Print it.  rate: images a second of one process, where it was measured.  Raises UserError."""
    data, system = config.data, config.system
    if machines.gpu not in (*GPUS, "here"):
        raise ConfigError(f"--gpu {machines.gpu} is not known; choose {', '.join(GPUS)} or here")
    batch = plan_batch(data.global_batch, data.streams, machines.gpus, system.micro_batch_max, data.views)
    masking = Masking(config.model.grid, config.mask, config.corruption)
    fused = fuses_attention(config.system, "" if machines.gpu == "here" else "cuda")
    model = build_model(config, fused, bring(config, None, fused).lent)
    with Progress("counting parameters, arithmetic and memory", at_once=True):
        found = counts(model, config, masking, batch.micro_batch)
    with Progress("measuring matrix products", at_once=True):
        gpu = here() if machines.gpu == "here" else GPUS[machines.gpu]
    said = f"as given ({rate:,.0f} images/s)" if rate else ""
    if not rate and machines.gpu == "here":
        rate = measured_rate(model, config, masking, batch)
        said = f"as measured here ({rate:,.1f} images/s)"
    if not rate:
        share = REACHED[config.corruption.drops]
        rate = share * gpu.tflops * 1e12 / found.flop
        said = f"at {share:.0%} of its matrix products, as a ViT-B/16 reached uncompiled: measure yours, benchmarks/step.py (--rate)"
    for line in (
        *about(config, machines, gpu, batch, found),
        *memory_table(found, machines, gpu, batch),
        *time_table(config, machines, gpu, batch, found, rate, said),
    ):
        say(line)
    return 0


def counts(model: PretrainingModel, config: PretrainConfig, masking: Masking, micro_batch: int) -> Counts:
    """On shapes: nothing is computed.  From here on the model has its teacher, and recomputes what the config says."""
    teacher_of(model, config)
    flop = flop_of(model, config, masking, CPU)  # what is computed again counts once
    recompute_blocks(model, config.system.recompute)
    beside = [model.teacher.net] if model.teacher else []
    return Counts(
        parameters_of(model, beside), flop, bytes_by_batch(lambda batch: micro_step_bytes(model, config, masking, batch, CPU), micro_batch)
    )


def parameters_of(model: nn.Module, beside: Sequence[nn.Module] = (), moments: int = 2) -> Parameters:
    """beside: networks that every process holds whole; moments: of the optimiser, for each trained parameter."""
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    frozen = sum(parameter.numel() for parameter in model.parameters()) - sum(trained)
    more = sum(parameter.numel() for net in beside for parameter in net.parameters())
    return Parameters(sum(trained), sum(size for size in trained if size <= PERSISTENT), frozen + more, moments)


def bytes_by_batch(step_bytes: Callable[[int], int], micro_batch: int) -> dict[int, int]:
    """For `Counts.step_bytes`.  step_bytes: images at once -> bytes."""
    batches = sorted({micro_batch, max(1, micro_batch // 2)} | ({2} if micro_batch == 1 else set()))
    return {batch: step_bytes(batch) for batch in batches}


def here() -> Gpu:
    """This machine, of which one process is measured."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda") if cuda else CPU
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else usable_memory()
    name = torch.cuda.get_device_name() if cuda else "CPU process"
    return Gpu(matrix_rate(device, torch.bfloat16) / 1e12, memory / 1e9, 300 if cuda else 5, name)


def measured_rate(model: PretrainingModel, config: PretrainConfig, masking: Masking, plan: BatchPlan) -> float:
    """Images a second of some real steps of one process on this machine, on black images, uncompiled."""
    world = start_distributed()
    one = replace(plan, accumulation=1)
    system = config.system.model_copy(update={"compile": False, "zero_stage": 0, "recompute": "none"})  # it does already
    engine = Engine(model.to(world.device), build_optimiser(model, config.optim), one, world, system, config.optim.clip_norm)
    inputs, times = blank_inputs(config, masking, world.device, one.micro_batch), []
    for _ in range(WARM_UP + TIMED):
        began = time.perf_counter()
        _, loss, _, own = engine.forward(*inputs)
        engine.backward(loss.mean() + own)
        float(engine.update(0.0))
        times.append(time.perf_counter() - began)
    return one.micro_batch / float(np.median(times[WARM_UP:]))


# ------------------------------------------------------------------------------------------------------------------------- what is told


def about(config: PretrainConfig, machines: Machines, gpu: Gpu, batch: BatchPlan, found: Counts) -> list[str]:
    steps, samples = config.optim.total_samples // config.data.global_batch, config.optim.total_samples
    return [
        f"{machines.gpus} x {gpu.name} on {counted(machines.nodes, 'node')} | {config.data.global_batch:,} images a step: micro-batch "
        f"{batch.micro_batch} x accumulation {batch.accumulation} a GPU | {steps:,} steps, {samples:,} samples",
        f"{encoder_in_words(config.model)}, target {config.target.name}: {found.parameters.trained:,} trained "
        f"parameters, {found.flop / 1e9:.1f} GFLOP an image, forward and backward",
    ]


def memory_table(found: Counts, machines: Machines, gpu: Gpu, batch: BatchPlan) -> list[str]:
    lines = [f"memory, GB a GPU of {gpu.gigabytes:.0f}   most held    largest micro-batch that fits"]
    for stage in STAGES:
        held = held_at_most(found.parameters, stage, machines.gpus, int(found.bytes_at(batch.micro_batch)), batch.accumulation)
        largest = found.largest_batch(stage, machines.gpus, SLACK * gpu.gigabytes * 1e9)
        fits = "" if held <= SLACK * gpu.gigabytes * 1e9 else "   does not fit: lower system.micro_batch_max, or system.recompute=selective"
        lines.append(f"  ZeRO {stage}                {held / 1e9:10.1f}    {largest:10,}{fits}")
    return lines


def step_time(found: Counts, machines: Machines, gpu: Gpu, batch: BatchPlan, rate: float, stage: int, gradient_bytes: int) -> StepTime:
    compute = batch.micro_batch * batch.accumulation / rate
    speed = machines.bytes_a_second(gpu)
    seconds = {"gradients": 0.0, "weights": 0.0}
    for each in sent(found.parameters, stage, batch.accumulation, gradient_bytes):
        seconds["weights" if each.kind == "all_gather" else "gradients"] += each.by_each(machines.gpus) / speed
    hidden = min(seconds["gradients"], HIDES * compute) + (min(seconds["weights"], compute) if stage == 3 else 0.0)
    return StepTime(compute, sum(seconds.values()), hidden)


def time_table(config: PretrainConfig, machines: Machines, gpu: Gpu, batch: BatchPlan, found: Counts, rate: float, said: str) -> list[str]:
    system, samples = config.system, config.optim.total_samples
    gradient_bytes = 2 if system.gradient_precision == "bf16" else 4
    lines = [
        f"step, of one GPU {said}",
        "                    compute ms   exchange ms   MB sent a GPU   images/s   a GPU   efficiency (with overlap)     days",
    ]
    for stage in STAGES:
        found_time = step_time(found, machines, gpu, batch, rate, stage, gradient_bytes)
        megabytes = sum(each.by_each(machines.gpus) for each in sent(found.parameters, stage, batch.accumulation, gradient_bytes)) / 1e6
        images = config.data.global_batch / found_time.alone
        lines.append(
            f"  ZeRO {stage}{' (chosen)' if stage == system.zero_stage else '         '}   {1000 * found_time.compute:10.1f}   "
            f"{1000 * found_time.exchange:11.1f}   {megabytes:13,.0f}   {images:8,.0f}   {images / machines.gpus:5,.0f}   "
            f"{found_time.compute / found_time.alone:9.1%} ({found_time.compute / found_time.overlapped:.1%})     {samples / images / 86400:9.2f}"
        )
    chosen = step_time(found, machines, gpu, batch, rate, system.zero_stage, gradient_bytes)
    images = config.data.global_batch / chosen.alone
    return [*lines, *loader_and_limit(config, machines, gpu, batch, found, images, chosen)]


def loader_and_limit(
    config: PretrainConfig, machines: Machines, gpu: Gpu, batch: BatchPlan, found: Counts, images: float, chosen: StepTime
) -> list[str]:
    a_node = min(machines.gpus, machines.per_node)
    needed = images / machines.gpus * a_node / machines.loader_rate + a_node  # a core for each training process
    held = held_at_most(
        found.parameters, config.system.zero_stage, machines.gpus, int(found.bytes_at(batch.micro_batch)), batch.accumulation
    )
    if held > SLACK * gpu.gigabytes * 1e9:
        limit = f"memory: {held / 1e9:.0f} GB do not fit into {gpu.gigabytes:.0f}; lower system.micro_batch_max"
    elif needed > machines.cores:
        most = (machines.cores - a_node) * machines.loader_rate * machines.gpus / a_node
        limit = f"loading: {machines.cores} cores a node feed {most:,.0f} images/s (smaller originals, --resize; system.decode=device)"
    elif chosen.exchange > chosen.compute:
        limit = "the network: a step exchanges longer than it computes (a larger data.global_batch, system.gradient_precision=bf16)"
    else:
        limit = "arithmetic" + (
            f", and the network takes {chosen.exchange / chosen.alone:.0%}" if chosen.exchange > 0.02 * chosen.alone else ""
        )
    return [
        f"loader: {needed:.0f} of {machines.cores} cores a node, at {machines.loader_rate:,.0f} images/s and core",
        f"limit: {limit}",
    ]
