"""How a program that trains begins: its processes meet and agree, hold the run folder, and get collectives and devices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

from mpp.base.machine import allow_open_files
from mpp.config.schema import flat
from mpp.config.sections import CheckpointConfig, SystemConfig
from mpp.data.shard_cache import caching
from mpp.disk.files import make_folder
from mpp.disk.patience import disks
from mpp.processes.agreement import agree
from mpp.processes.peers import Peers, meet
from mpp.processes.world import World
from mpp.train.engine import start_distributed
from mpp.train.resume import STALE_SECONDS
from mpp.train.run_folder import RunConfig, refuse_unshared


class _Data(Protocol):
    @property
    def max_bad_fraction(self) -> float: ...


class _Log(Protocol):
    @property
    def every_steps(self) -> int: ...


class _Optim(Protocol):
    @property
    def clip_norm(self) -> float: ...


class TrainingConfig(RunConfig, Protocol):
    """What every training program's config has."""

    @property
    def seed(self) -> int: ...
    @property
    def resume(self) -> str | int: ...
    @property
    def data(self) -> _Data: ...
    @property
    def log(self) -> _Log: ...
    @property
    def optim(self) -> _Optim: ...
    @property
    def system(self) -> SystemConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...
    def model_dump(self, *, mode: str = ...) -> dict[str, Any]: ...


def gather(program: str, asked: TrainingConfig) -> Peers:
    """Collective, before anything else: the processes of the job meet, and agree on the command.  Raises ConfigError where they differ."""
    disks.patience = asked.system.disk_patience_seconds
    caching.use(asked.system.cache, asked.system.cache_gb)
    peers = meet(asked.system.patience_slow_seconds)
    agree(peers, program, flat(asked.model_dump(mode="json")))
    allow_open_files()
    return peers


def held_folder(run_dir: Path, hold: Callable[[], TextIO], peers: Peers) -> TextIO | None:
    """Collective: the folder is made, and held by rank 0 for as long as the file that is returned stays open.  Raises UserError where another run
    holds it, and where not all see it."""
    peers.together(lambda: make_folder(run_dir, "run_dir"))
    lock = peers.together(lambda: hold() if peers.first else None)
    refuse_unshared(run_dir, peers, STALE_SECONDS)
    return lock


def start(run_dir: Path, system: SystemConfig, peers: Peers) -> World:
    """Collective: the processes get collectives, and each its device."""
    return start_distributed(system.patience_seconds, system.patience_slow_seconds, run_dir, peers)
