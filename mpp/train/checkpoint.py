"""Writing a checkpoint from any topology, and reading it into any other.

float32 weights and optimiser moments by parameter name, dealt out to the ranks by size so that each writes its share; see commit.py for
what makes it exist.
"""

import errno
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpp.base.errors import CheckpointError, disk_fault
from mpp.base.text import sized
from mpp.disk.files import sha256_of, sync_path, writing
from mpp.processes.watch import meeting, watch
from mpp.processes.world import World
from mpp.train.commit import MOMENTS, Commit, checkpoint_folder, not_finite, sealed, set_aside, some, write_commit
from mpp.train.engine import Engine
from mpp.train.resume import way_out


class NotWrittenError(CheckpointError):
    """A checkpoint that a disk did not take: what was committed before is as it was, and another may be tried.  why: in words."""

    def __init__(self, done: str, why: str):
        super().__init__(f"the checkpoint was not {done} ({why}); earlier ones are whole: mend that, and give the same command again")
        self.why = why


class Saving:
    """One checkpoint on its way to the disk: this rank's share is copied at once, and written by a thread, while training goes on.

    It exists once `commit` has returned.  All but `is_written` is collective.
    """

    @watch.slowly("copying a checkpoint")
    def __init__(self, run_dir: Path, engine: Engine, world: World, record: Mapping[str, Any], beside: Mapping[str, Tensor] | None = None):
        """record: step, samples_seen, config ...  beside: further tensors, the same on all ranks (an average of the weights), by their full name,
        such as "ema/NAME"; rank 0 writes them.  Raises, on all ranks, CheckpointError where a number is not finite, and NotWrittenError where there
        is no room."""
        self.folder, self.world, self.record = checkpoint_folder(run_dir, record["step"]), world, record
        mine, owners = {}, _owners(engine, world.size)
        for name, parameter in engine.module.named_parameters():
            for kind, tensor in engine.state_of(parameter).items():
                if owners[name] == world.rank:
                    mine[f"{kind}/{name}"] = tensor.detach().float().cpu().contiguous().clone()
        if world.first and beside:
            mine |= {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in beside.items()}
        _check_finite(run_dir, mine, record, world)
        needed = torch.tensor(sum(tensor.nbytes for tensor in mine.values()))
        dist.all_reduce(needed)
        together_on_disk(world, lambda: _fresh(self.folder, int(needed)) if world.first else None)
        self._began = self._ended = time.monotonic()
        self._facts: dict[str, Any] = {}
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._write, args=[mine, engine.moments], name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self, mine: dict[str, Tensor], moments: Sequence[str]) -> None:
        try:
            self._facts = _write(self.folder / f"rank{self.world.rank:05d}", mine, moments)
        except Exception as error:  # whatever it is, `commit` raises it: a share that is missing must not be committed
            self._failure = error
        self._ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """That this rank has taken to write its part."""
        return self._ended - self._began

    @property
    def is_written(self) -> bool:
        """Whether this rank has done its part, well or not."""
        return not self._thread.is_alive()

    @watch.slowly("saving a checkpoint")
    def commit(self) -> Commit:
        """Wait for all parts, then make it exist.  Raises NotWrittenError, on all ranks, where a file cannot be written."""
        self._thread.join()
        facts = together_on_disk(self.world, self._told)
        gathered: list[dict] = [{} for _ in range(self.world.size)]
        dist.all_gather_object(gathered, facts)
        record = {**self.record, "files": {name: fact for part in gathered for name, fact in sorted(part.items())}}
        together_on_disk(self.world, lambda: write_commit(self.folder, record) if self.world.first else None)
        return sealed(self.folder, record)

    def _told(self) -> dict[str, Any]:
        if self._failure:
            raise self._failure
        return self._facts


def _check_finite(run_dir: Path, mine: Mapping[str, Tensor], record: Mapping[str, Any], world: World) -> None:
    """Collective: no state that cannot be trained on is committed, and so none pushes out those that can."""
    broken: list[list[str]] = [[] for _ in range(world.size)]
    dist.all_gather_object(broken, [name for name, tensor in mine.items() if not_finite(tensor)])
    if names := sorted(name for part in broken for name in part):
        step = record["step"]
        raise CheckpointError(
            f"after step {step} numbers are not finite in {some(names)}; this state is not committed; "
            f"{way_out(run_dir, record['config'], step - 1)}"
        )


def together_on_disk(world: World, work: Callable[[], Any], done: str = "written") -> Any:
    """Collective: do this rank's part; if it fails on any rank (a full disk, a lost mount), all of them raise the same NotWrittenError, and none waits
    for ever."""
    result, failure = None, None
    try:
        result = work()
    except (OSError, SafetensorError) as error:
        failure = f"rank {world.rank}: {disk_fault(error) or error}"
    failures: list[str | None] = [None] * world.size
    with meeting():
        dist.all_gather_object(failures, failure)
    if any(failures):
        raise NotWrittenError(done, "; ".join(filter(None, failures)))
    return result


def _fresh(folder: Path, needed: int) -> None:
    """needed: bytes that all ranks will write.  Raises OSError where there is no room for them."""
    if (folder / "COMMIT.json").exists():
        set_aside(folder, "aside")
    shutil.rmtree(folder, ignore_errors=True)  # of a write that never committed
    folder.parent.mkdir(exist_ok=True)  # but not the run folder: one that was moved away is not begun again
    folder.mkdir()
    if (free := shutil.disk_usage(folder).free) < needed:
        folder.rmdir()
        raise OSError(errno.ENOSPC, f"{sized(needed)} are needed and {sized(free)} free", str(folder.parent))


def _write(start: Path, tensors: dict[str, Tensor], moments: Sequence[str]) -> dict[str, dict]:
    """A rank's files, whose paths begin so: of moments, and of all else."""
    facts = {}
    apart = {name for name in tensors if name.partition("/")[0] in moments}
    for end, names in ((".safetensors", tensors.keys() - apart), (MOMENTS, apart)):
        if names:
            path = start.with_name(start.name + end)
            with writing(path):
                save_file({name: tensors[name] for name in sorted(names)}, str(path), metadata={"format": "pt"})
                sync_path(path)
            facts[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return facts


class Passed:
    """A commit's tensors, each read by the rank in whose share its file is (`Commit.share_of`), and passed on to all.  Collective throughout.

    shapes: of each, by its full name.  Raises CheckpointError, on all ranks, where a file cannot be read.
    """

    def __init__(self, commit: Commit, world: World):
        self.commit, self.world = commit, world
        self._files = together_on_disk(world, lambda: self._opened(commit.share_of(world.rank, world.size)), "read")
        mine = {name: list(file.get_slice(name).get_shape()) for file in self._files for name in file.keys()}  # noqa: SIM118
        known: list[dict[str, list[int]]] = [{} for _ in range(world.size)]
        dist.all_gather_object(known, mine)
        self._owner = {name: rank for rank, names in enumerate(known) for name in names}
        self.shapes = {name: tuple(shape) for names in known for name, shape in names.items()}

    def _opened(self, names: Sequence[str]) -> list[Any]:
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(str(self.commit.folder / name), framework="pt")) for name in names]
            stack.pop_all()
            return opened

    def of(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Shapes of those whose name begins so, by the rest of it."""
        return {name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        """float32, on this rank's device."""
        owner, device = self._owner[name], self.world.device
        if owner == self.world.rank:
            tensor = next(file for file in self._files if name in file.keys()).get_tensor(name).to(device)  # noqa: SIM118
        else:
            tensor = torch.empty(self.shapes[name], device=device)
        if self.world.size > 1:
            dist.broadcast(tensor, owner)
        watch.moved()
        return tensor


@watch.slowly("restoring a checkpoint")
def restore(commit: Commit, engine: Engine, world: World, average: "Averaged | None", prime: Callable[[], None]) -> None:
    """Collective: put back the weights, the optimiser's state and the average of the weights, of a commit that was settled on (train/resume.py).

    prime: takes one optimiser step at learning rate 0, which creates that state.  Raises CheckpointError where the checkpoint is of another model.
    """
    prime()
    passed = Passed(commit, world)
    parameters = dict(engine.module.named_parameters())
    check_fit(passed.of("weight/"), {name: tuple(engine.shape_of(parameter)) for name, parameter in parameters.items()}, commit.folder)
    for name, parameter in parameters.items():
        engine.set_weight(parameter, passed[f"weight/{name}"])
        if parameter.requires_grad:
            for kind in engine.moments:
                engine.set_moment(parameter, kind, passed[f"{kind}/{name}"])
    engine.set_steps(commit.optimiser_steps)
    if average:
        average.restore(passed)


class Averaged(Protocol):
    def restore(self, passed: Passed) -> None: ...


def check_fit(theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]], origin: Path | str) -> None:
    """Shapes by name."""
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise CheckpointError(
                f"{origin} is of another model: {name} is {theirs.get(name) or 'absent'} there and {ours.get(name) or 'absent'} here; "
                f"use the same model, decoder and target sections, or another run_dir"
            )


def _owners(engine: Engine, world: int) -> dict[str, int]:
    """Parameter -> the rank that writes it: largest first, each to the lightest rank so far."""
    load = [0] * world
    owners = {}
    for name, parameter in sorted(engine.module.named_parameters(), key=lambda item: (-engine.shape_of(item[1]).numel(), item[0])):
        rank = min(range(world), key=load.__getitem__)
        owners[name] = rank
        load[rank] += engine.shape_of(parameter).numel()
    return owners
