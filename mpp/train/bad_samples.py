"""Bad samples are named, counted and replaced, or stop the run: never skipped in silence."""

import json
from pathlib import Path

import torch.distributed as dist

from mpp.base.errors import DataError
from mpp.disk.files import append
from mpp.processes.world import World


class BadSamples:
    """bad_samples.rankN.jsonl, one line for each unreadable sample this rank has met."""

    def __init__(self, run_dir: Path, world: World):
        self.path = run_dir / f"bad_samples.rank{world.rank}.jsonl"
        self.world = world
        self.newest: dict | None = None

    def note(self, bad: list[dict]) -> int:
        """Write them down; how many samples were replaced, which may have met several bad ones on the way."""
        if bad:
            append(self.path, "".join(json.dumps(fault) + "\n" for fault in bad))
            self.newest = bad[-1]
        return sum(fault["bad"] == fault["sample"] for fault in bad)

    def stop_beyond(self, count: int, samples_seen: int, allowed: float) -> None:
        """Collective: stop when more were bad than the budget allows, which is one at least unless it is 0."""
        if count > (max(1.0, allowed * samples_seen) if allowed else 0):
            self.stop(count, samples_seen, allowed)

    def stop(self, count: int, samples_seen: int, allowed: float) -> None:
        """Collective: every rank raises the same DataError, which names one of the faults whichever rank met it."""
        found: list[dict | None] = [None] * self.world.size
        dist.all_gather_object(found, self.newest)
        fault = next((each for each in found if each), {"where": "?", "reason": "?"})
        raise DataError(
            f"{count} unreadable of {samples_seen} samples, more than data.max_bad_fraction={allowed:g} allows, such as {fault['where']}: "
            f"{fault['reason']}; all are in {self.path.parent}/bad_samples.rank*.jsonl: make the shards again, or raise data.max_bad_fraction "
            f"to have them replaced by the next readable sample"
        )
