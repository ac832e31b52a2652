"""Writing a checkpoint from any topology, and reading it into any other.

float32 weights and optimiser moments by parameter name, dealt out to the ranks by size so that each writes its share; see commit.py for
what makes it exist.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mpp.errors import CheckpointError, disk_fault
from mpp.files import sha256_of, sync_path, writing
from mpp.train.commit import Commit, checkpoint_folder, not_finite, read_tensors, sealed, set_aside, some, write_commit
from mpp.train.engine import Engine
from mpp.train.resume import way_out
from mpp.watch import meeting, watch
from mpp.world import World


@watch.slowly("saving a checkpoint")
def save(run_dir: Path, engine: Engine, world: World, record: dict[str, Any], beside: Mapping[str, Tensor] | None = None) -> Commit:
    """Collective: every rank calls it after the same step.

    record: step, samples_seen, config ...  beside: further tensors, the same on all ranks (an average of the weights), by their full name, such
    as "ema/NAME"; rank 0 writes them.  Returns what was committed.  Raises CheckpointError, on all ranks, where a number is not finite or a file
    cannot be written; then what was committed before is as it was.
    """
    folder = checkpoint_folder(run_dir, record["step"])
    mine, facts = {}, {}
    owners = _owners(engine, world.size)
    for name, parameter in engine.module.named_parameters():
        for kind, tensor in engine.state_of(parameter).items():
            if owners[name] == world.rank:
                mine[f"{kind}/{name}"] = tensor.detach().float().cpu().contiguous().clone()
    if world.first and beside:
        mine |= {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in beside.items()}
    _check_finite(run_dir, mine, record, world)
    _together(world, lambda: _fresh(folder) if world.first else None)
    if mine:
        facts = _together(world, lambda: _write(folder / f"rank{world.rank:05d}.safetensors", mine))
    else:
        _together(world, lambda: None)
    gathered: list[dict] = [{} for _ in range(world.size)]
    dist.all_gather_object(gathered, facts)
    record = record | {"files": {name: fact for part in gathered for name, fact in sorted(part.items())}}
    _together(world, lambda: write_commit(folder, record) if world.first else None)
    return sealed(folder, record)


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


def _together(world: World, work: Callable[[], Any]) -> Any:
    """Do this rank's part; if it fails on any rank (a full disk, a lost mount), all of them raise the same CheckpointError, and none waits for ever."""
    result, failure = None, None
    try:
        result = work()
    except (OSError, SafetensorError) as error:
        failure = f"rank {world.rank}: {disk_fault(error) or error}"
    failures: list[str | None] = [None] * world.size
    with meeting():
        dist.all_gather_object(failures, failure)
    if any(failures):
        raise CheckpointError(
            f"the checkpoint was not written ({'; '.join(filter(None, failures))}); earlier ones are whole: mend that, and give the same command again"
        )
    return result


def _fresh(folder: Path) -> None:
    if (folder / "COMMIT.json").exists():
        set_aside(folder, "aside")
    shutil.rmtree(folder, ignore_errors=True)  # of a write that never committed
    folder.parent.mkdir(exist_ok=True)  # but not the run folder: one that was moved away is not begun again
    folder.mkdir()


def _write(path: Path, tensors: dict[str, Tensor]) -> dict[str, dict]:
    with writing(path):
        save_file(tensors, str(path), metadata={"format": "pt"})
        sync_path(path)
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}}


def restore(commit: Commit, engine: Engine, prime: Callable[[], None]) -> None:
    """Put the weights and the optimiser's state back, of a commit that was settled on (train/resume.py).

    prime: takes one optimiser step at learning rate 0, which creates that state.
    """
    prime()
    restore_weights(commit, engine)
    moments = {kind: read_tensors(commit, f"{kind}/") for kind in engine.moments}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            for kind in engine.moments:
                engine.set_moment(parameter, kind, moments[kind][name].to(parameter.device))
    engine.set_steps(commit.optimiser_steps)


def restore_weights(commit: Commit, engine: Engine) -> None:
    """Raises CheckpointError where the checkpoint is of another model."""
    weights = read_tensors(commit, "weight/")
    check_fit(weights, {name: tuple(engine.shape_of(p)) for name, p in engine.module.named_parameters()}, commit.folder)
    for name, parameter in engine.module.named_parameters():
        engine.set_weight(parameter, weights[name].to(parameter.device))


def check_fit(weights: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], origin: Path | str) -> None:
    for name in sorted(weights.keys() | shapes.keys()):
        theirs, ours = (tuple(weights[name].shape) if name in weights else None), shapes.get(name)
        if theirs != ours:
            raise CheckpointError(
                f"{origin} is of another model: {name} is {theirs or 'absent'} there and {ours or 'absent'} here; "
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
