"""The recipe on these machines: learning rate after scaling, what a step holds, takes and exchanges, and how long a run is."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpp.base.text import sized
from mpp.checks.finding import Finding, amount
from mpp.config.schema import seconds_of
from mpp.config.sections import OptimConfig
from mpp.data.batch_plan import BatchPlan, lost_nodes_words, nodes_that_fit
from mpp.mains.plan import SLACK, Counts
from mpp.monitor.arithmetic import matrix_rate
from mpp.train.schedule import rate_words
from mpp.train.zero_costs import held_at_most

# Peaks on a ViT beyond which runs diverge as a rule (judged; the recipes' own are 4e-4 to 2.4e-3 with AdamW, ViT's grid with SGD ends at 0.06).
HIGH = {"adamw": 1e-2, "sgd": 0.5}
APART = 4  # times that a batch may differ from the one a rate was chosen at, where the rate does not follow (judged)
STEP_SECONDS, WARM_UP, TRIES = 2.0, 2, 30
CPU_SHARE = 0.3  # of large matrix products that a step reaches on CPU cores, to choose a batch whose steps fit into the time (judged)
LONG_DAYS = 60
SHORTER = "optim.total_samples, budget"


def rate(
    optim: OptimConfig, batch: int, of_file: tuple[OptimConfig, int] | None, note: str | None = None, optimiser: str = "adamw"
) -> Finding:
    """batch: samples a step.  of_file: both as the file has them without the words behind it.  note: of a rate that is small for such training."""
    found, peak = rate_words(optim, batch), optim.peak_rate(batch)
    warmup = f", after a warm-up of {optim.warmup_samples:,} samples"
    recipe, theirs = of_file or (optim, batch)
    if (recipe.peak_rate(theirs), theirs) != (peak, batch):
        found += f" (the file: {recipe.peak_rate(theirs):.3g} at batch {theirs})"
    if note:
        words, _, fix = note.removeprefix("note: ").partition(". ")
        return Finding("learning rate", "warning", f"{found}: {words}", fix)
    if peak > (high := HIGH[optimiser]):
        return Finding(
            "learning rate",
            "warning",
            f"{found}: very high for a Vision Transformer",
            f"lower optim.base_lr; {high:g} is far above any recipe's peak",
        )
    if optim.lr_batch is None and recipe.base_lr == optim.base_lr and not 1 / APART <= batch / theirs <= APART:
        return Finding(
            "learning rate", "warning", f"{found}: chosen at a batch of {theirs}, and it does not follow the batch (optim.lr_batch=null)",
            f"set optim.lr_batch={theirs} to scale it, or optim.base_lr itself",
        )  # fmt: skip
    return Finding("learning rate", "ok", found + warmup)


def batch(plan: BatchPlan, size: int, what: str = "the same batches") -> Finding:
    """what: any of the numbers of processes that share a step gives."""
    more = ", ..." if len(plan.worlds) > 12 else ""
    return Finding(
        "batch", "ok",
        f"{plan.samples * plan.views:,} views a step: micro-batch {plan.micro_batch} x accumulation {plan.accumulation} x {size} processes; "
        f"{what} on {', '.join(map(str, plan.worlds[:12]))}{more}",
    )  # fmt: skip


def lost_nodes(plan: BatchPlan, nodes: int, per_node: int) -> Finding:
    """With how many nodes the run would go on after one or two of several are lost."""
    words = lost_nodes_words(plan, nodes, per_node)
    left = [n for n in (nodes - 1, nodes - 2) if n > 0]
    if all(2 * max(nodes_that_fit(plan.streams, n, per_node), default=0) >= n for n in left):
        return Finding("lost nodes", "ok", words)
    words, _, proposal = words.partition("; ")
    fix = proposal if proposal.startswith("data.") else "take another number of nodes, such as a power of two"
    return Finding("lost nodes", "warning", words, fix)


def memory(found: Counts, stage: int, plan: BatchPlan, size: int, room: float, what: str, peak: float = 0.0, together: int = 1) -> Finding:
    """stage: ZeRO's.  room: bytes that one process may use; what: of what, in words; peak: bytes that forward and backward were seen to take here;
    together: views that stay in one micro-batch."""
    held = held_at_most(found.parameters, stage, size, int(found.bytes_at(plan.micro_batch)), plan.accumulation)
    words = f"{sized(held)} a process at ZeRO {stage} and micro-batch {plan.micro_batch}, of {sized(room)} ({what})"
    if peak:
        words += f"; forward and backward took {peak / 1e9:.3g}"
    if max(held, peak) > room:
        largest = found.largest_batch(stage, size, room) // together * together
        lower = f"system.micro_batch_max={largest}" if largest else "system.zero_stage=3"
        return Finding("memory", "FAILED", words, f"set {lower}, or system.recompute=selective")
    return Finding("memory", "ok", words, figure=room - held)


def commit_bytes(model: nn.Module, average: nn.Module | None, moments: int = 2) -> int:
    """Of one checkpoint: weight and moments of what is trained, weights of what is frozen, and an average where there is one; float32."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    averaged = sum(parameter.numel() for parameter in average.parameters()) if average else 0
    return 4 * (1 + moments) * trained + 4 * (frozen + averaged)


@dataclass(frozen=True)
class StepRate:
    views: float  # a second, forward and backward
    batch: int  # at once
    peak: float  # bytes, on a GPU
    tflops: float  # of large matrix products, as this process does them


def step_rate(
    model: nn.Module,
    blank: Callable[[torch.device, int], Callable[[], Tensor]],
    precision: str,
    plan: BatchPlan,
    device: torch.device,
    flop: int,
) -> StepRate:
    """Forward and backward on black images, uncompiled, without an optimiser and without other processes.  blank: device and images at once -> what
    gives their loss; flop: of a view.

    On a CPU a micro-batch may be too large for the time, and a smaller one is taken.  Raises torch.OutOfMemoryError.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tops = matrix_rate(device, dtype)
    batch = plan.micro_batch
    if device.type == "cpu":
        batch = max(1, min(batch, int(CPU_SHARE * tops * STEP_SECONDS / (WARM_UP + TRIES / 10) / flop)))
    else:
        torch.cuda.reset_peak_memory_stats(device)
    loss, times, began = blank(device, batch), list[float](), time.perf_counter()
    # A model whose single image takes long on a CPU is not warmed up.
    while not times or (len(times) < TRIES and time.perf_counter() - began < STEP_SECONDS * (1 if len(times) > WARM_UP else 3)):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16):
            loss().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    model.zero_grad(set_to_none=True)
    peak = float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0
    return StepRate(batch / min(times[WARM_UP:] or times), batch, peak, tops / 1e12)


def step(found: StepRate, flop: int) -> Finding:
    share = found.views * flop / (found.tflops * 1e12)
    return Finding(
        "step", "ok", f"{amount(found.views)} views/s a rank, forward and backward, {found.batch} at once: {share:.0%} of {found.tflops:.3g} TFLOP/s", figure=found.views
    )  # fmt: skip


def slow_ranks(views: list[float], hosts: list[str]) -> Finding | None:
    """views: a second, by rank.  All wait for the slowest."""
    middle = sorted(views)[len(views) // 2]
    slow = [rank for rank, each in enumerate(views) if each < 0.8 * middle]
    if not slow:
        return None
    worst = min(slow, key=lambda rank: views[rank])
    return Finding(
        "slow ranks", "warning", f"{len(slow)} of {len(views)} ranks are slower than the middle one ({amount(middle)} views/s), the slowest rank {worst} (host {hosts[worst]}) with {amount(views[worst])}: all wait for it",
        "see who else works there (nvidia-smi: clocks, heat; top), or leave that host out",
    )  # fmt: skip


def length(
    total: int,
    batch: int,
    views: float,
    size: int,
    loaded: float | None,
    budget: str | None = None,
    repeats: int = 1,
    shorter: str = SHORTER,
) -> Finding:
    """total: samples of a run, `repeats` times; batch: of a step.  views: a second that a rank trains on; loaded: that reach it, where they were
    measured.  budget: that will set the length, in place of `total`.  shorter: by which keys, in words."""
    each = min(views, loaded) if loaded else views
    if budget:
        samples = each * size * seconds_of(budget)
        return Finding(
            "length", "ok", f"budget={budget}: up to {amount(samples)} samples at {amount(each * size)} a second, less what exchange and saving take; what depends on the length was looked at as if it were {total:,}"
        )  # fmt: skip
    days = repeats * total / (each * size) / 86400
    took = f"{days:.1f} days" if days >= 1 else f"{24 * days:.1f} h" if days >= 1 / 24 else f"{1440 * days:.0f} min"
    times = f"{repeats} times " if repeats > 1 else ""
    found = f"{times}{total // batch:,} steps, {total:,} samples at {amount(each * size)} a second: about {took}, exchange, measuring and saving apart"
    if days > LONG_DAYS:
        return Finding("length", "warning", found, f"take more or faster processes, a smaller model, or fewer samples ({shorter})")
    return Finding("length", "ok", found)


def room_of(device: torch.device, free_ram: int, local_size: int) -> tuple[float, str]:
    """Bytes that one process may use, and of what."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        return SLACK * whole, f"{SLACK:.0%} of a {torch.cuda.get_device_name(device)}"
    return free_ram / local_size, "free RAM, a rank's share"
