"""Every small recipe (configs/cifar_*.yaml) on CIFAR-10 (JPEG): pretrained with one encoder for the same number of samples, probed, and fine-tuned.

    python benchmarks/cifar_runs.py --train SHARDS/train --out runs/cifar --jobs 2                       # develop: figures on a hold-out of train
    python benchmarks/cifar_runs.py --train SHARDS/train --out runs/cifar --jobs 2 --test SHARDS/test    # in the end: each run reads the test split once

What is finished is not repeated: a series that was stopped or killed goes on when the command is given again.  The most telling runs come first,
so that an interrupted series says something.  The second command trains nothing; it refuses to read the test split while a run lacks its hold-out
figures.  `--jobs` runs go on at once, each on its share of the cores.  After each run OUT/records.json is written (cifar_records.py); the page is
made by cifar_table.py of a copy that is committed.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from cifar_records import HOLDOUT, SCRATCH_RUN, TEST, collect, linear_on_holdout

from mpp.base.errors import ConfigError, Parser, UserError, run_program
from mpp.base.machine import usable_cores
from mpp.base.text import say
from mpp.disk.files import write_atomically
from mpp.disk.locks import hold_folder
from mpp.train.signals import STOPPED

ROOT = Path(__file__).resolve().parents[1]
# The most important first.
ROWS = (
    "mpp", "mae", "data2vec", "ijepa", "crossmae", "pixio", "simmim", "maskfeat", "l2", "grid", "beit", "capi", "capi_clusters", "salt", "colour",
    "ab", "rotation",
)  # fmt: skip
TEACHERS = ("data2vec", "ijepa", "capi", "capi_clusters", "salt")  # whose target is another encoder's features
NEW = ("crossmae", "pixio", "capi", "capi_clusters", "salt")  # of 2024 and later
SEEDS = (1, 2)  # further ones of mpp, mae, the best teacher row and the best other new row
ABLATED, RATIO = ("mpp", "grid", "l2"), 0.15  # ViT B.1.2: three targets x 15 % and 50 % corrupted, which is the rows' own
CODEBOOK = ("clusters=512", "patches=200000", "workers=0")  # as many codes as colours (mean_color, 3 bits), 400 patches a code
SPEED = ("system.images=ram", "system.workers=0", "checkpoint.every_minutes=2")  # change no result
PROBE = ("train_samples=10000", "features.precision=bf16", "features.workers=0")
INITS = "random_inits=10"  # of three, intervals are +-6.4 points wide in place of +-2.5: no row is told from them
FINETUNE = ("data.labels_per_class=1000", "optim.epochs=5", "log.holdout_every_epochs=5")


@dataclass(frozen=True)
class Planned:
    """A run: pretrained, probed, fine-tuned."""

    row: str
    seed: int = 0
    ratio: float | None = None  # mask.ratio; None: the row's own

    @property
    def name(self) -> str:
        share = "" if self.ratio is None else f"_{round(100 * self.ratio)}"
        return f"{self.row}{share}_s{self.seed}"

    @property
    def needs(self) -> str | None:
        """The name of the run whose encoder this one learns from, or starts from."""
        return {"salt": "mae_s0", SCRATCH_RUN: "mpp_s0"}.get(self.row)


@dataclass(frozen=True)
class Series:
    """What all runs share."""

    train: str
    test: str | None
    out: Path
    threads: int
    pretrain: Sequence[str]  # further words for each program
    probe: Sequence[str]
    finetune: Sequence[str]

    @property
    def mode(self) -> str:
        return TEST if self.test else HOLDOUT


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    series = Series(
        options.train,
        options.test,
        options.out,
        max(1, usable_cores() // options.jobs),
        options.pretrain,
        [*PROBE, *options.probe],
        [*FINETUNE, *options.finetune],
    )
    lock = hold_folder(
        series.out / "lock", f"--out {series.out}: another series is running there; wait for it, or give another --out", seconds=5
    )
    runner = Runner(series, options.jobs)
    failed = runner.all_of(options.rows)
    lock.close()
    say(f"{runner.record} | to look at: python benchmarks/cifar_table.py --print {runner.record}")
    for name, why in failed.items():
        say(f"FAILED  {name}: {why}")
    return 1 if failed else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="labelled shards; pretraining does not look at the labels")
    parser.add_argument("--test", help="labelled shards; left out: a hold-out of train")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=rows(), help="these alone, with one seed; left out: all, more seeds, and the ablation")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    for program in ("pretrain", "probe", "finetune"):
        parser.add_argument(f"--{program}", nargs="+", default=[], metavar="key=value", help=f"further words for {program}")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs} must be 1 or more")
    return options


def rows() -> list[str]:
    """Those that have a config."""
    return [row for row in ROWS if config_of(row).exists()]


def config_of(row: str) -> Path:
    return ROOT / "configs" / f"cifar_{row}.yaml"


def first_runs(chosen: Sequence[str] | None) -> list[Planned]:
    """One seed of each row; training from scratch after the first two."""
    runs = [Planned(row) for row in chosen or rows()]
    after = next((place for place, run in enumerate(runs, 1) if run.row == "mae"), len(runs))
    return runs[:after] + [Planned(SCRATCH_RUN)] * any(run.row == "mpp" for run in runs) + runs[after:]


def more_seeds(chosen: Sequence[str]) -> list[Planned]:
    """Seed by seed, so that an interrupted series has as many of each."""
    return [Planned(row, seed) for seed in SEEDS for row in chosen]


def ablation() -> list[Planned]:
    return [Planned(row, 0, RATIO) for row in ABLATED]


def best_rows(scores: dict[str, float]) -> list[str]:
    """mpp, mae, and by `scores`, of the hold-out, the best teacher row and the best new one beside it."""
    chosen: list[str] = [row for row in ("mpp", "mae") if row in scores]
    for kind in (TEACHERS, NEW):
        able = [row for row in kind if row in scores and row not in chosen]
        if able:
            chosen.append(max(able, key=scores.__getitem__))
    return chosen


class Runner:
    """Runs what is not finished, several at a time, and writes the records after each."""

    def __init__(self, series: Series, jobs: int):
        self.series, self.record, self.jobs = series, series.out / "records.json", jobs
        self.failed: dict[str, str] = {}
        self.writing = Lock()

    def all_of(self, chosen: Sequence[str] | None) -> dict[str, str]:
        """Returns why runs failed, by name; the others go on."""
        first = first_runs(chosen)
        if self.series.test:
            self.refuse_early(first)
        self.run(first)
        if chosen is None:
            seeds = more_seeds(best_rows(linear_on_holdout(self.record, first)))
            if self.series.test:
                self.refuse_early(seeds + ablation())
            self.run(seeds)
            self.run(ablation())
        return self.failed

    def refuse_early(self, runs: Sequence[Planned]) -> None:
        """Raises ConfigError where something is still to be trained: choices are made before the test split is looked at."""
        open_ = [run.name for run in runs if not (self.series.out / run.name / "stages" / f"{HOLDOUT}-finetune.json").exists()]
        if open_:
            raise ConfigError(
                f"--test {self.series.test}: no hold-out figures yet of {', '.join(open_)}; give the command without --test first"
            )

    def run(self, runs: Sequence[Planned]) -> None:
        done: dict[str, Future[bool]] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                for run in runs:
                    done[run.name] = pool.submit(self.one, run, done.get(run.needs or ""))
                for each in done.values():
                    each.result()  # raises what is no failure of a run alone
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # an interrupt ends the series, not only the programs
                raise

    def one(self, run: Planned, needed: "Future[bool] | None") -> bool:
        """Returns whether all of it is there."""
        began = time.monotonic()
        try:
            if needed is not None and not needed.result():
                raise UserError(f"{run.needs}, which it needs, has failed")
            worked = [stage(self.series, run) for stage in stages_of(run)]
        except (UserError, OSError) as error:
            self.failed[run.name] = str(error)
            say(f"FAILED  {run.name}: {error}")
            return False
        with self.writing:
            collect(self.series.out, self.record)
        say(f"{run.name:<20} {self.series.mode}  {f'{time.monotonic() - began:.0f} s' if any(worked) else 'was finished'}")
        return True


Stage = Callable[[Series, Planned], bool]


def stages_of(run: Planned) -> Iterator[Stage]:
    if run.row == "beit":
        yield codebook
    if run.row != SCRATCH_RUN:
        yield pretrain
        yield probe
    yield finetune


def codebook(series: Series, run: Planned) -> bool:
    words = [
        "--config",
        f"configs/cifar_{run.row}.yaml",
        f"data.shards={series.train}",
        f"out={series.out / run.name}/codebook.safetensors",
    ]
    of_data = [word for word in series.pretrain if word.startswith(("data.", "model."))]
    return once(series, run, "codebook", ["mpp/fit_codebook.py", *words, *CODEBOOK, *of_data])


def pretrain(series: Series, run: Planned) -> bool:
    if series.test:  # `refuse_early` has seen that it is finished
        return False
    folder = series.out / run.name
    words = ["--config", f"configs/cifar_{run.row}.yaml", f"data.shards={series.train}", f"run_dir={folder}", f"seed={run.seed}", *SPEED]
    if run.ratio is not None:
        words.append(f"mask.ratio={run.ratio}")
    if run.row == "beit":
        words.append(f"target.path={folder}/codebook.safetensors")
    if run.row == "salt":
        words.append(f"target.encoder={series.out / str(run.needs)}")
    return once(series, run, "pretrain", ["mpp/pretrain.py", *words, *series.pretrain])


def probe(series: Series, run: Planned) -> bool:
    """Labels and hold-outs are the same for all runs, whatever their seed; raw pixels and random initialisations are measured once an encoder."""
    folder = series.out / run.name
    baselines = run.name in ("mpp_s0", "pixio_s0")  # pixio has further class tokens
    words = [
        f"encoder={folder}",
        f"train={series.train}",
        "seed=0",
        f"out={folder}/transfer/{series.mode}/probe",
        f"features.cache={folder}/features",
    ]
    words += ["baselines=true", INITS] if baselines else ["baselines=false"]
    words += series.probe
    return once(series, run, f"{series.mode}-probe", ["mpp/linear_probe.py", *words, *tested(series)])


def finetune(series: Series, run: Planned) -> bool:
    folder = series.out / run.name / "transfer"
    own, words = folder / series.mode / "finetune", ["init=random", "optim.layer_decay=1"] if run.row == SCRATCH_RUN else []
    if series.test and not own.exists():  # the weights that the hold-out was measured with
        partial = folder / series.mode / "finetune.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder / HOLDOUT / "finetune", partial)
        partial.rename(own)
    encoder = series.out / (run.needs if run.needs and run.row == SCRATCH_RUN else run.name)
    words += ["--config", "configs/finetune_cifar.yaml", f"encoder={encoder}", f"train={series.train}", "seed=0", f"run_dir={own}", *SPEED]
    return once(series, run, f"{series.mode}-finetune", ["mpp/finetune.py", *words, *series.finetune, *tested(series)])


def tested(series: Series) -> list[str]:
    return [f"test={series.test}", f"ledger={series.out}/test_reads.jsonl"] if series.test else []


def once(series: Series, run: Planned, stage: str, command: Sequence[str]) -> bool:
    """Run a program unless it has ended well with this command and these configs; returns whether it ran.  Raises UserError.

    It dies with the series, however that ends, so that the next start finds its folder free.
    """
    folder = series.out / run.name
    mark = folder / "stages" / f"{stage}.json"
    configs = {word: hashlib.sha256((ROOT / word).read_bytes()).hexdigest() for word in command if word.startswith("configs/")}
    asked = {"command": shlex.join(command), "configs": configs}
    before = json.loads(mark.read_text()) if mark.exists() else {"cpu_seconds": 0.0, "wall_seconds": 0.0}
    if {key: before.get(key) for key in asked} == asked:
        return False
    mark.parent.mkdir(parents=True, exist_ok=True)
    began, with_series = time.time(), ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    with (folder / "console.log").open("ab") as log:
        log.write(f"\n$ {shlex.join(command)}\n".encode())
        log.flush()
        before_it = log.tell()
        environment = os.environ | {"OMP_NUM_THREADS": str(series.threads)}
        words = [*with_series, sys.executable, *command]
        started = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _, status, used = os.wait4(started.pid, 0)  # for what it took of a core: beside other jobs the clock says little
        started.returncode = os.waitstatus_to_exitcode(status)
    said = (folder / "console.log").read_bytes()[before_it:].decode(errors="replace")
    if any(line.startswith(STOPPED) for line in said.splitlines()):
        raise UserError(f"{stage} was stopped before its end; the same command goes on from there")
    if started.returncode:
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
        raise UserError(f"{stage} ended with {started.returncode}: {last} ({folder}/console.log)")
    took = {"wall_seconds": time.time() - began, "cpu_seconds": used.ru_utime + used.ru_stime}
    took = {key: round(value + before[key], 1) for key, value in took.items()}  # with another command it may have had nothing left to do
    ended = {"ended": time.strftime("%FT%TZ", time.gmtime())}
    write_atomically(mark, (json.dumps(asked | took | ended, indent=1) + "\n").encode())
    return True


if __name__ == "__main__":
    run_program(main)
