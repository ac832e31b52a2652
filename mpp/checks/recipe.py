"""The recipe on these machines: learning rate after scaling, what a step holds, takes and exchanges, and how long a run is."""

import time
from dataclasses import dataclass

import torch

from mpp.checks.finding import Finding, amount
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import seconds_of
from mpp.data.order import BatchPlan, lost_nodes_words, nodes_that_fit
from mpp.monitor.arithmetic import matrix_rate
from mpp.planning import SLACK, Counts
from mpp.pretraining import blank_inputs
from mpp.recipe.masking import Masking
from mpp.recipe.model import PretrainingModel
from mpp.recipe.teacher import TeacherKnobs
from mpp.train.schedule import rate_words, small_rate_note
from mpp.train.zero_costs import held_at_most

HIGH = 1e-2  # of AdamW on a ViT, beyond which runs diverge as a rule (judged; the recipes' own peaks are 4e-4 to 2.4e-3)
APART = 4  # times that a batch may differ from the one a rate was chosen at, where the rate does not follow (judged)
STEP_SECONDS, WARM_UP, TRIES = 2.0, 2, 30
CPU_SHARE = 0.3  # of large matrix products that a step reaches on CPU cores, to choose a batch whose steps fit into the time (judged)
LONG_DAYS = 60


def rate(config: PretrainConfig, recipe: PretrainConfig | None) -> Finding:
    """recipe: what the file says without the words behind it."""
    optim, batch = config.optim, config.data.global_batch
    found, peak = rate_words(optim, batch), optim.peak_rate(batch)
    warmup = f", after a warm-up of {optim.warmup_samples:,} samples"
    if recipe and (recipe.optim.peak_rate(recipe.data.global_batch), recipe.data.global_batch) != (peak, batch):
        found += f" (the file: {recipe.optim.peak_rate(recipe.data.global_batch):.3g} at batch {recipe.data.global_batch})"
    if note := small_rate_note(optim, batch):
        words, _, fix = note.removeprefix("note: ").partition(". ")
        return Finding("learning rate", "warning", f"{found}: {words}", fix)
    if peak > HIGH:
        return Finding(
            "learning rate",
            "warning",
            f"{found}: very high for a Vision Transformer",
            f"lower optim.base_lr; {HIGH:g} is far above any recipe's peak",
        )
    if recipe and optim.lr_batch is None and recipe.optim.base_lr == optim.base_lr:
        theirs = recipe.data.global_batch
        if not 1 / APART <= batch / theirs <= APART:
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


def memory(found: Counts, config: PretrainConfig, plan: BatchPlan, size: int, room: float, what: str, peak: float = 0.0) -> Finding:
    """room: bytes that one process may use; what: of what, in words; peak: bytes that forward and backward were seen to take here."""
    stage = config.system.zero_stage
    held = held_at_most(found.parameters, stage, size, int(found.bytes_at(plan.micro_batch)), plan.accumulation)
    words = f"{held / 1e9:.3g} GB a process at ZeRO {stage} and micro-batch {plan.micro_batch}, of {room / 1e9:.3g} GB ({what})"
    if peak:
        words += f"; forward and backward took {peak / 1e9:.3g}"
    if max(held, peak) > room:
        largest = found.largest_batch(stage, size, room) // plan.views * plan.views
        lower = f"system.micro_batch_max={largest}" if largest else "system.zero_stage=3"
        return Finding("memory", "FAILED", words, f"set {lower}, or system.recompute=selective")
    return Finding("memory", "ok", words, figure=room - held)


def commit_bytes(model: PretrainingModel, config: PretrainConfig) -> int:
    """Of one checkpoint: weight and two moments of what is trained, weights of what is frozen, and an average where there is one; float32."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    averaged = (
        sum(parameter.numel() for parameter in model.teacher.net.parameters())
        if model.teacher and isinstance(config.target, TeacherKnobs)
        else 0
    )
    return 12 * trained + 4 * (frozen + averaged)


@dataclass(frozen=True)
class StepRate:
    views: float  # a second, forward and backward
    batch: int  # at once
    peak: float  # bytes, on a GPU
    tflops: float  # of large matrix products, as this process does them


def step_rate(
    model: PretrainingModel, config: PretrainConfig, masking: Masking, plan: BatchPlan, device: torch.device, flop: int
) -> StepRate:
    """Forward and backward on black images, uncompiled, without an optimiser and without other processes.  flop: of a view.

    On a CPU a micro-batch may be too large for the time, and a smaller one is taken.  Raises torch.OutOfMemoryError.
    """
    dtype = torch.bfloat16 if config.system.precision == "bf16" else torch.float32
    tops = matrix_rate(device, dtype)
    batch = plan.micro_batch
    if device.type == "cpu":
        batch = max(1, min(batch, int(CPU_SHARE * tops * STEP_SECONDS / (WARM_UP + TRIES / 10) / flop)))
    else:
        torch.cuda.reset_peak_memory_stats(device)
    model.to(device)
    if model.teacher:
        model.teacher.net.to(device)
    inputs, times, began = blank_inputs(config, masking, device, batch), list[float](), time.perf_counter()
    # A model whose single image takes long on a CPU is not warmed up.
    while not times or (len(times) < TRIES and time.perf_counter() - began < STEP_SECONDS * (1 if len(times) > WARM_UP else 3)):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16):
            _, loss, _, own = model(*inputs)
            (loss.mean() + own).backward()
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


def length(config: PretrainConfig, views: float, size: int, loaded: float | None, budget: str | None = None) -> Finding:
    """views: a second that a rank trains on; loaded: that reach it, where they were measured.  budget: that will set the length,
    in place of the config's."""
    each = min(views, loaded) if loaded else views
    if budget:
        samples = each * size * seconds_of(budget)
        return Finding(
            "length", "ok", f"budget={budget}: up to {amount(samples)} samples at {amount(each * size)} a second, less what exchange and saving take; what depends on the length was looked at as if it were {config.optim.total_samples:,}"
        )  # fmt: skip
    total = config.optim.total_samples
    days = total / (each * size) / 86400
    took = f"{days:.1f} days" if days >= 1 else f"{24 * days:.1f} h" if days >= 1 / 24 else f"{1440 * days:.0f} min"
    found = f"{total // config.data.global_batch:,} steps, {total:,} samples at {amount(each * size)} a second: about {took}, exchange and saving apart"
    if days > LONG_DAYS:
        return Finding(
            "length", "warning", found, "take more or faster processes, a smaller model, or fewer samples (optim.total_samples, budget)"
        )
    return Finding("length", "ok", found)


def room_of(device: torch.device, free_ram: int, local_size: int) -> tuple[float, str]:
    """Bytes that one process may use, and of what."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        return SLACK * whole, f"{SLACK:.0%} of a {torch.cuda.get_device_name(device)}"
    return free_ram / local_size, "free RAM, a rank's share"
