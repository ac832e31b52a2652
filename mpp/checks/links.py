"""Between processes: clocks, and whether and how fast they exchange tensors."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mpp.checks.finding import Finding
from mpp.processes.peers import Peers

SKEW = 1.0  # seconds by which clocks may differ: times of files and logs of several hosts are read together (judged)
EXCHANGE_SECONDS = 30.0  # that a collective may take before it counts as hanging
MOST_BYTES = 64 << 20  # of the tensor that is summed
TRIES = 5
FIX = "see docs/launching.md, When it hangs: GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the interface, NCCL_DEBUG=INFO tells what NCCL chose, and a firewall may be in the way"


def clocks(peers: Peers, clock: Callable[[], float] = time.time) -> Finding:
    """Collective: each host's clock against rank 0's, through the store, one host after the other; the shortest of some questions counts.  Raises
    UserError where a process has left, or does not answer."""
    if peers.store is None or peers.nodes == 1:
        return Finding("clocks", "ok", "one host, one clock")
    asking = [rank for rank in range(1, peers.size) if peers.hosts.index(peers.hosts[rank]) == rank]
    mine: list[float] = []
    for rank in asking:
        if peers.rank in (0, rank):
            mine = _offset(peers, rank, clock) or mine
    offsets = {peers.hosts[rank]: found for rank, found in enumerate(peers.gather(mine)) if found}
    host, (off, error) = max(offsets.items(), key=lambda item: abs(item[1][0]))
    found = f"{len(offsets) + 1} hosts, the farthest from rank 0's clock is {host}'s by {off:+.3f} s (± {error:.3f})"
    if abs(off) - error > SKEW:
        late = ", ".join(name for name, (skew, within) in offsets.items() if abs(skew) - within > SKEW)
        return Finding(
            "clocks",
            "warning",
            f"{found}; too far: {late}",
            "let NTP set the clocks of those hosts (chronyc tracking, timedatectl show what it does)",
        )
    return Finding("clocks", "ok", found)


def _offset(peers: Peers, rank: int, clock: Callable[[], float]) -> list[float]:
    """At that rank: its clock less rank 0's, and within how much, in seconds; at rank 0, which answers, nothing."""
    best = [0.0, float("inf")]
    for number in range(TRIES):
        asked, told = f"clock/{number}/{rank}", f"clock-told/{number}-{rank}"
        if peers.first:
            peers.heard(asked)
            peers.tell(told, repr(clock()))
            continue
        before = clock()
        peers.tell(asked, "")
        heard = peers.heard(told)
        after = clock()
        if (after - before) / 2 < best[1]:
            best = [(before + after) / 2 - float(heard), (after - before) / 2]
    return [] if peers.first else best


@dataclass(frozen=True)
class Exchange:
    """GB/s that each process sends in an all-reduce (a ring's: twice the tensor, less its own share); 0: not measured."""

    together: float  # of all processes
    inside: float  # of those of a host, each host by itself
    between: float  # of one process of each host


def exchange(peers: Peers, device: torch.device, gradient_bytes: int) -> Exchange:
    """Collective: sums tensors of about the size of the gradients over all, and checks the sums.  Raises RuntimeError where that fails or hangs."""
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a collective that hangs then raises, and does not end the process
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = timedelta(seconds=EXCHANGE_SECONDS)
    dist.init_process_group(backend, store=peers.store, rank=peers.rank, world_size=peers.size, timeout=limit)
    try:
        count = max(1, min(gradient_bytes, MOST_BYTES) // 4)
        together = _timed(None, list(range(peers.size)), peers.rank, device, count)
        inside = between = 0.0
        if 1 < peers.nodes < peers.size:
            of_host = {host: [rank for rank in range(peers.size) if peers.hosts[rank] == host] for host in dict.fromkeys(peers.hosts)}
            firsts = [ranks[0] for ranks in of_host.values()]
            groups = {host: dist.new_group(ranks, timeout=limit) for host, ranks in of_host.items()}
            across = dist.new_group(firsts, timeout=limit)
            own = peers.hosts[peers.rank]
            inside = _timed(groups[own], of_host[own], peers.rank, device, count) if len(of_host[own]) > 1 else 0.0
            between = _timed(across, firsts, peers.rank, device, count) if peers.rank in firsts else 0.0
        return Exchange(together, inside, between)
    finally:
        dist.destroy_process_group()


def _timed(group: Any, ranks: Sequence[int], rank: int, device: torch.device, count: int) -> float:
    best = float("inf")
    for _ in range(TRIES):
        tensor = torch.full((count,), float(rank + 1), device=device)
        dist.barrier(group)
        began = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        low, high = float(tensor.min()), float(tensor.max())  # waits for the device
        best = min(best, time.perf_counter() - began)
        if not low == high == sum(each + 1 for each in ranks):
            raise RuntimeError(f"the sum over {len(ranks)} processes is {low:g} to {high:g}, not {sum(each + 1 for each in ranks)}")
    return 2 * (len(ranks) - 1) / len(ranks) * 4 * count / best / 1e9


def exchanged(found: Sequence[Exchange], peers: Peers, gradient_bytes: int, compute: float | None) -> Finding:
    """found: by rank.  gradient_bytes: of a step; compute: seconds of its arithmetic on a rank, where that was measured."""
    hosts = list(dict.fromkeys(peers.hosts))
    shown = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if hosts[4:] else "")
    speed = min(each.together for each in found)
    words = f"works between {peers.size} processes of {shown}: {speed:.3g} GB/s each"
    if inside := [(each.inside, host) for each, host in zip(found, peers.hosts, strict=True) if each.inside]:
        words += f"; inside a host {min(inside)[0]:.3g} (the slowest: {min(inside)[1]})"
    if between := [each.between for each in found if each.between]:
        words += f"; between hosts, one process of each, {min(between):.3g}"
    seconds = 2 * (peers.size - 1) / peers.size * gradient_bytes / (speed * 1e9)
    if compute is None:
        return Finding("all-reduce", "ok", words)
    words += f"; a step's gradients take {1000 * seconds:,.0f} ms, its arithmetic {1000 * compute:,.0f}"
    if seconds > compute:
        return Finding(
            "all-reduce", "warning", words, "a larger data.global_batch exchanges less often, system.gradient_precision=bf16 half as much; is it the network you paid for? NCCL_DEBUG=INFO says NET/IB or NET/Socket"
        )  # fmt: skip
    return Finding("all-reduce", "ok", words)
