"""The shipped curves of a recipe: several runs of it that differ in their seeds, as one band for each figure.

    python benchmarks/reference.py configs/references/demo_digits.json RUN RUN RUN ...

The runs must be finished, and of one recipe, scale and set of images.  Commands, machine and commit are the runs' own.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mpp.base.errors import UserError, run_program
from mpp.base.text import say
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.disk.files import write_atomically
from mpp.monitor.board import logged
from mpp.monitor.reference import band_of
from mpp.train.commit import whole_commit
from mpp.train.run_folder import identity_of

FIGURES = ("train/loss", "holdout/loss", "holdout/skill", "features/linear", "features/knn", "features/rank", "features/deviation")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    asked = parser.parse_args(argv)
    if len(asked.runs) < 3:
        raise UserError(f"{len(asked.runs)} runs are no band; give three or more that differ in their seeds")
    found = [identity_and_seed(run) for run in asked.runs]
    if len({identity for identity, _ in found}) != 1 or len({seed for _, seed in found}) != len(found):
        told = "; ".join(f"{run}: {identity[:12]}, seed {seed}" for run, (identity, seed) in zip(asked.runs, found, strict=True))
        raise UserError(f"these runs must be of one recipe, scale and set of images, and of different seeds: {told}")
    courses = {
        name: [{row["samples"]: row[name] for row in logged(run, name) if row[name] is not None} for run in asked.runs] for name in FIGURES
    }
    bands = {name: asdict(band_of(each)) for name, each in courses.items() if all(len(course) >= 2 for course in each)}
    where = json.loads((asked.runs[0] / "environment.json").read_text())
    command = (asked.runs[0] / "command.txt").read_text().splitlines()[0]
    seeds = ", ".join(str(seed) for seed in sorted(seed for _, seed in found))
    about = f"{len(found)} runs, seeds {seeds}; commit {where['commit']}; {where['gpu'] or str(where['cpus']) + ' CPU cores'}; {command}"
    write_atomically(asked.out, (json.dumps({"identity": found[0][0], "about": about, "bands": bands}, indent=1) + "\n").encode())
    say(f"{asked.out}: {', '.join(bands)} | {about}")
    return 0


def identity_and_seed(run: Path) -> tuple[str, int]:
    commit = whole_commit(run)
    if commit is None:
        raise UserError(f"{run} holds no whole checkpoint; give finished runs of mpp/pretrain.py")
    config = load(PretrainConfig, str(run / "config.yaml"), [])
    if commit.samples_seen != config.optim.total_samples // config.data.global_batch * config.data.global_batch:
        raise UserError(f"{run} has seen {commit.samples_seen:,} of {config.optim.total_samples:,} samples; let it finish")
    return identity_of(config, commit.record["manifests"]), config.seed


if __name__ == "__main__":
    run_program(main)
