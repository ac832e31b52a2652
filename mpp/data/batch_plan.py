"""How a step of the global batch is shared among streams and processes, and with how many processes a run can go on.  The letters are order.py's."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mpp.base.errors import ConfigError

MOST_STREAMS = 1024  # unless more are asked for


def default_streams(global_batch: int) -> int:
    """The largest divisor of the batch up to MOST_STREAMS."""
    return max(v for v in range(1, min(global_batch, MOST_STREAMS) + 1) if global_batch % v == 0)


@dataclass(frozen=True)
class BatchPlan:
    samples: int  # a step: the global batch without its further views
    views: int  # of each sample
    streams: int
    micro_batch: int  # views a process takes at once
    accumulation: int  # micro-batches a step
    worlds: tuple[int, ...]  # the admissible numbers of processes


def plan_batch(global_batch: int, streams: int | None, world: int, micro_batch_max: int, views: int = 1, together: int = 1) -> BatchPlan:
    """How a step of `global_batch` views is shared.  Raises ConfigError when `world` processes cannot share it equally.

    The views of a sample stay in one micro-batch, so that it is decoded once; and so do `together` neighbouring samples of one view.
    """
    if together > 1:
        try:
            plan = plan_batch(global_batch, streams, world, micro_batch_max, together)
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"data.views={together}", f"{together} (that many stay together)")) from None
        return replace(plan, samples=global_batch, views=1)
    if global_batch % views:
        lower = global_batch // views * views
        near = " and ".join(str(batch) for batch in (lower, lower + views) if batch)
        raise ConfigError(f"data.global_batch={global_batch} must be a multiple of data.views={views}; the nearest that fit are {near}")
    if views > micro_batch_max:
        raise ConfigError(f"data.views={views} do not fit into system.micro_batch_max={micro_batch_max}; raise it to {views} or more")
    samples = global_batch // views
    v = streams or default_streams(samples)
    if samples % v:
        raise ConfigError(
            f"data.streams={v} must divide data.global_batch={global_batch}{_by(views)}; leave it null for {default_streams(samples)}"
        )
    worlds = tuple(w for w in range(1, v + 1) if v % w == 0)
    if v % world:
        raise ConfigError(
            f"data.global_batch={global_batch}{_by(views)} in {v} streams cannot be shared equally by {world} processes; "
            f"start one of {', '.join(map(str, worlds))} processes, or {_that_fits(samples, world, views)}"
        )
    share = samples // world
    accumulation = next(a for a in range(1, share + 1) if share % a == 0 and share // a * views <= micro_batch_max)
    return BatchPlan(samples, views, v, share // accumulation * views, accumulation, worlds)


def _that_fits(samples: int, world: int, views: int) -> str:
    """What to ask for where so many processes are to share a step of so many samples."""
    if streams := [v for v in range(world, min(samples, max(world, MOST_STREAMS)) + 1, world) if samples % v == 0]:
        return f"set data.streams={streams[-1]}"
    if world > MOST_STREAMS:  # no batch has so many of itself
        near = [batch * views for batch in (samples // world * world, (samples // world + 1) * world) if batch]
        return f"take data.streams={world} and the nearest batch that fits: {' or '.join(map(str, near))}"
    fits = lambda batch: default_streams(batch) % world == 0
    first = samples // world * world
    lower = next((batch for batch in range(first, 0, -world) if fits(batch)), None)
    upper = next(batch for batch in itertools.count(first + world, world) if fits(batch))
    return f"take the nearest batches that fit, with data.streams=null: {' and '.join(str(b * views) for b in (lower, upper) if b)}"


def nodes_that_fit(streams: int, nodes: int, per_node: int) -> list[int]:
    """How many of so many nodes, with `per_node` processes each, may share the streams equally; ascending."""
    return [left for left in range(1, nodes + 1) if streams % (left * per_node) == 0]


def streams_for(samples: int, worlds: Iterable[int]) -> int | None:
    """The largest divisor of a step's samples, up to 1024 or as many as it takes, that each of these numbers of processes divides; None: there is none."""
    least = math.lcm(*worlds)
    return next((v for v in range(max(1024, least) // least * least, 0, -least) if samples % v == 0), None)


def lost_nodes_words(plan: BatchPlan, nodes: int, per_node: int) -> str:
    """With how many nodes a run goes on that has lost one or two of several, and which data.streams, or batch, would let all that are left go on.  Streams
    belong to a run: they are chosen when it begins."""
    left = [n for n in (nodes - 1, nodes - 2) if n > 0]
    fits = lambda streams, n: max(nodes_that_fit(streams, n, per_node), default=0)
    stay = [fits(plan.streams, n) for n in left]
    each = [f"with {lost} lost {_goes_on(n, found)}" for lost, (n, found) in enumerate(zip(left, stay, strict=True), start=1)]
    words = f"of {nodes} nodes x {per_node}: {', '.join(each)}"
    if stay == left:
        return words
    for wanted in [left, left[:1]] if stay[0] < left[0] else [left]:
        worlds, go_on = [n * per_node for n in (nodes, *wanted)], f"lets {' and '.join(map(str, wanted))} go on"
        if streams := streams_for(plan.samples, worlds):
            return f"{words}; data.streams={streams}, from the start of a run, {go_on}"
        least = math.lcm(*worlds)
        near = [batch for batch in (plan.samples // least * least, -(-plan.samples // least) * least) if 0 < batch < 2 * plan.samples]
        if near:
            batch = min(near, key=lambda batch: abs(batch - plan.samples))
            return f"{words}; data.global_batch={batch * plan.views} data.streams={streams_for(batch, worlds)}, from the start of a run, {go_on}"
    return f"{words}; no data.streams of this batch, or of one near it, lets more go on"


def _goes_on(left: int, fitting: int) -> str:
    if fitting == left:
        return f"all {left} go on" if left > 1 else "the other goes on"
    return f"{fitting} of {left} go on" if fitting else f"none of {left} can go on"


def _by(views: int) -> str:
    return f" / data.views={views}" if views > 1 else ""
