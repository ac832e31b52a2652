"""Kill, stop, poison and starve runs, over and over, and hold what comes out against a run that nothing happened to.

    python -m tests.chaos [--kills 200] [--seed 0] [--folder /tmp/mpp-chaos] [--part 1/2] [--out FILE]

Run after run of mpp/pretrain.py, each started again until it reaches its end, and hurt in most of its lives:
    job      all ranks get SIGKILL at a random instant: while they start, train or write a checkpoint
    save     all ranks, or one, get it within 10 ms of a file's appearance in checkpoints/
    rank     one rank gets it; the others must end by themselves
    stop     one rank gets SIGSTOP; likewise
    nan      one rank's loss is NaN in one step; with system.max_skipped_steps=0 that ends the run
    disk     calls on files of the run and its shards answer ESTALE or EIO now and then, or that the disk is full (tests/failing_disk.c)
Half of the runs keep their processes and ZeRO stage and must end with the weights of an uninterrupted run of that topology, bit for bit.  The others
draw 1 to 3 processes and a stage from 0 to 3 for every life.  All must have seen every position once, with the sample, crop and mask of the
uninterrupted run (log.samples).  No checkpoint may have been taken for damaged, and nobody may wait for ever.

FOLDER/lives.jsonl has a line for each life; with the same FOLDER and seed a call goes on where another has stopped.  Calls with --part 1/2 and 2/2
share the runs of one FOLDER; each counts the kills of all.  Exit status 1 where anything
was not as it must be.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHIM = "failing_disk.so"
STEPS, BATCH = 100, 12
PATIENCE, PATIENCE_SLOW = (
    2.0,
    20.0,
)  # seconds; a rank that dies before all have met is missed after the second, as no launcher looks after them
WORDS = [
    f"optim.total_samples={STEPS * BATCH}",
    "log={every_steps: 10, holdout_every_steps: 1000, pictures: 0, samples: true}",
    "evaluate.images=0",
    f"checkpoint={{every_samples: {4 * BATCH}, keep: 3}}",
    "system={precision: fp32, micro_batch_max: 12, workers: 0, max_skipped_steps: 0, disk_patience_seconds: 20}",
    f"system.patience_seconds={PATIENCE}",
    f"system.patience_slow_seconds={PATIENCE_SLOW}",
]
FAULTS = {"job": 5, "save": 7, "rank": 4, "stop": 1, "nan": 1, "disk": 2}  # how often each, in proportion
LIVES_HURT = 8  # of a run; then it is let be
LONGEST_LIFE = 180.0  # seconds


@dataclass
class Life:
    """From a start to its end."""

    run: int
    life: int
    world: int
    stage: int
    fault: str  # "none" too
    status: list[int] = field(default_factory=list)
    hit: bool = False  # whether the fault came before the end
    kills: int = 0  # 1 where a rank, or all of them, got SIGKILL
    in_save: bool = False  # it has left a checkpoint that was not committed
    started: float | None = None  # seconds until it trained
    trained: float = 0.0  # seconds from then, or from the last commit, to the fault: what is done again
    steps_lost: int = 0
    notice: float | None = None  # seconds from the fault to the end of all ranks
    answers: int = 0  # of a failing disk
    wrong: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs, over all runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/mpp-chaos"), help="for runs and notes; a call with the same one goes on")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further run after so many")
    parser.add_argument("--part", default="1/1", help="K/N: of so many calls at once, this is which")
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    prepare_shim(options.folder)
    from tests.forks import server

    server()  # before anything is timed
    chaos = Chaos(options.folder, options.seed, options.faults, *map(int, options.part.split("/")))
    ends = time.monotonic() + 60 * options.minutes
    while chaos.read_notes() < options.kills and time.monotonic() < ends:
        chaos.run()
    found = chaos.summary()
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if options.out:
        from mpp.train.run_folder import environment as machine

        command = f"python -m tests.chaos --kills {options.kills} --seed {options.seed}"
        options.out.write_text(json.dumps({"command": command, **found, "environment": machine()}, indent=1) + "\n")
    return 1 if found["wrong"] else 0


def prepare_shim(folder: Path) -> None:
    """Compile it, and have it in every process that is started from here."""
    library = folder / SHIM
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(Path(__file__).with_name("failing_disk.c")), "-ldl"], check=True
    )
    os.environ["LD_PRELOAD"] = str(library.resolve())


class Chaos:
    """One run after the other in FOLDER; each is named by its number, and what is drawn for it belongs to (seed, number)."""

    def __init__(self, folder: Path, seed: int, faults: Sequence[str], part: int, parts: int):
        from tests.conftest import write_shards

        self.folder, self.seed, self.faults, self.part, self.parts = folder, seed, list(faults), part, parts
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        self.shards = folder / "shards"
        if not self.shards.exists():
            write_shards(self.shards, [16, 13, 11])
        self.notes = folder / "lives.jsonl"

    def read_notes(self) -> int:
        """Lives and runs so far, of all parts; how many kills there were.  A run that has not come to its end counts for nothing, and is begun again."""
        lines = [json.loads(line) for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
        self.runs = {line["number"]: line for line in lines if "number" in line}
        lives = [Life(**line) for line in lines if line.get("run") in self.runs and line["life"] < self.runs[line["run"]]["lives"]]
        self.lives = list({(life.run, life.life): life for life in lives}.values())
        return self.kills

    @property
    def kills(self) -> int:
        return sum(life.kills for life in self.lives)

    def run(self) -> None:
        """One run to its end, and what is to be said of it."""
        number = next(number for number in itertools.count(self.part - 1, self.parts) if number not in self.runs)
        draw = random.Random(f"{self.seed}/{number}")
        run, lives = self.folder / f"run{number:04d}", list[Life]()
        shutil.rmtree(run, ignore_errors=True)
        topologies = [(world, stage) for world in (1, 2, 3) for stage in (0, 1, 2, 3)]
        own = topologies[number // 2 * 5 % 12] if number % 2 == 0 else None  # all of them, one after the other
        while True:
            world, stage = own or draw.choice(topologies)
            fault = draw.choices(self.faults, [FAULTS[name] for name in self.faults])[0] if len(lives) < LIVES_HURT else "none"
            if world == 1 and fault == "stop":  # nobody would wait for it
                fault = "job"
            life = self.live(run, Life(number, len(lives), world, stage, fault), draw)
            lives.append(life)
            self.note(asdict(life))
            if life.status == [0] * world or len(lives) > LIVES_HURT + 4:
                break
        wrong = [f"run {number}, life {life.life} ({life.fault}): {each}" for life in lives for each in life.wrong]
        if lives[-1].status != [0] * lives[-1].world:
            wrong.append(f"run {number} does not reach its end")
        else:
            faults = self.compare(run, own)
            wrong += [f"run {number}: {each}" for each in faults.pop("wrong")]
        found = {"number": number, "lives": len(lives), "same_topology": own is not None, "wrong": wrong}
        found |= faults if not wrong else {}
        self.note(found)
        sys.stderr.write(
            f"run {number}: {len(lives)} lives, {self.read_notes()} kills so far{''.join(f'; WRONG: {each}' for each in wrong)}\n"
        )
        if not wrong:
            shutil.rmtree(run)

    def note(self, found: dict[str, Any]) -> None:
        with self.notes.open("a") as file:
            file.write(json.dumps(found) + "\n")

    def live(self, run: Path, life: Life, draw: random.Random) -> Life:
        """One start, hurt as `life.fault` says at an instant that is drawn."""
        victims = [draw.randrange(life.world)] if life.fault in ("rank", "stop", "nan") else list(range(life.world))
        if life.fault == "save" and draw.random() < 0.3:
            victims = [draw.randrange(life.world)]
        extra, program = {}, None
        committed = newest(run)
        if life.fault == "nan":
            from tests.pipeline.test_bad_numbers import POISON

            program = ["-c", POISON, str(draw.randint(committed + 1, STEPS)), str(victims[0]), "nan"]
        log = run.with_name(f"{run.name}.answers")
        if life.fault == "disk":
            full = draw.random() < 0.3
            extra = {"FAILING_BELOW": f"{run}:{self.shards}", "FAILING_WITH": "28" if full else "5,116", "FAILING_LOG": str(log)}
            extra |= {"FAILING_RATE": f"{10 ** draw.uniform(-4, -2):.5f}", "FAILING_SEED": str(draw.randrange(1 << 30))}
        began = time.monotonic()
        processes = self.start(run, life, program, extra)
        instant = self.instant(run, life, draw, began)
        hit = next((True for here in instant if here or any(process.poll() is not None for process in processes)), True)
        hurt = time.monotonic()
        alive = all(process.poll() is None for process in processes)
        if hit and alive and life.fault in ("job", "save", "rank", "stop"):
            life.hit, life.kills = True, int(life.fault != "stop")
            for rank in victims:
                os.kill(processes[rank].pid, signal.SIGSTOP if life.fault == "stop" else signal.SIGKILL)
        left = time.monotonic() + LONGEST_LIFE
        try:
            for process in processes:  # first: rank 0's watchman writes on when rank 0 is dead
                process.wait(max(0.1, left - time.monotonic()))
        except subprocess.TimeoutExpired:
            from tests.forks import whereabouts

            life.wrong.append(f"somebody has not ended {LONGEST_LIFE:.0f} s after the fault")
            (run.with_name(f"{run.name}.hung{life.life}")).write_text(whereabouts())
            for process in processes:
                process.send_signal(signal.SIGKILL)
        ended = time.monotonic()
        texts = [process.communicate(30) for process in processes]
        life.status = [process.returncode for process in processes]
        if not any(life.status):  # the signal came to one that had just ended
            life.hit, life.kills = False, 0
        survivors = [status for rank, status in enumerate(life.status) if rank not in victims]
        whole = newest(run) == STEPS and (run / "encoder" / "config.json").exists()  # nobody had anything left to do
        too_late = whole and not any(survivors)
        if life.hit and survivors and not too_late:
            life.notice = ended - hurt
        if life.fault == "disk" and log.exists():
            life.answers, life.hit = len(log.read_text().splitlines()), True
            log.unlink()
        if life.fault == "nan":
            life.hit = any(life.status)
        if life.hit:
            self.count_loss(run, life, hurt - began)
        life.wrong += self.faults_of(life, victims, "".join(err for _, err in texts))
        if life.wrong:
            (run.with_name(f"{run.name}.life{life.life}.txt")).write_text("\n".join(out + err for out, err in texts))
        return life

    def start(self, run: Path, life: Life, program: list[str] | None, extra: dict[str, str]) -> list[Any]:
        from tests.forks import Forked
        from tests.pipeline.conftest import TINY, environment, free_port

        words = [*TINY, *WORDS, f"data.shards={self.shards}", f"run_dir={run}", f"system.zero_stage={life.stage}"]
        if life.fault == "disk":
            words += ["checkpoint.give_up_minutes=0.5"]
        port = free_port()
        return [
            Forked([*(program or ["mpp/pretrain.py"]), *words], cwd=ROOT, env=environment(rank, life.world, port) | extra)
            for rank in range(life.world)
        ]

    def instant(self, run: Path, life: Life, draw: random.Random, began: float) -> Iterator[bool]:
        """Looks again and again; true when it has come.  Notes when training begins."""
        log, size, after = run / "samples.rank0.tsv", None, None
        known = {path.name for path in (run / "checkpoints").glob("*")}
        kind = "start" if life.fault in ("job", "rank") and draw.random() < 0.2 else "training"
        wait = draw.uniform(0, 3.0) if kind == "start" else draw.expovariate(1 / 1.5)
        saves, name = draw.randint(1, 4), draw.choice(["", "rank00000.safetensors", "rank00000.moments.safetensors", "COMMIT.json"])
        short, seen = draw.uniform(0, 0.01), set[str]()
        while True:
            now = time.monotonic()
            there = log.stat().st_size if log.exists() else 0
            if life.started is None and size is not None and there > size:
                life.started, after = now - began, now
            size = there
            if life.fault == "save":
                with_it = {path.name for path in (run / "checkpoints").glob("*") if name == "" or (path / name).exists()} - known
                seen |= {each for each in with_it if each.isdigit()}
                if len(seen) >= saves:
                    time.sleep(short)
                    yield True
                yield False
                time.sleep(0.0005)
            else:
                from_here = began if kind == "start" else after
                hurts = life.fault in ("job", "rank", "stop")
                yield bool(hurts and from_here is not None and now >= from_here + wait)
                time.sleep(0.003)

    def count_loss(self, run: Path, life: Life, lived: float) -> None:
        """What was trained since the last commit, or since this life began to train."""
        commits = sorted((run / "checkpoints").glob("[0-9]*[0-9]/COMMIT.json"))
        folders = [path for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
        life.in_save = any(not (folder / "COMMIT.json").exists() for folder in folders)
        since = time.time() - commits[-1].stat().st_mtime if commits else lived
        life.trained = max(0.0, min(since, lived - (life.started if life.started is not None else lived)))
        seen = [int(line.split("\t")[0]) for line in whole_lines(run)]
        life.steps_lost = max(0, (max(seen, default=-1) + 1) // BATCH - newest(run))

    def faults_of(self, life: Life, victims: Sequence[int], said: str) -> list[str]:
        lines = [line for line in said.splitlines() if line.startswith("error")]
        wrong = []
        if "Traceback" in said:
            wrong.append("a traceback")
        if " is damaged: " in said or "passed over, damaged" in said:
            wrong.append("a checkpoint was taken for damaged")
        if not life.hit and any(life.status):
            wrong.append(f"ended with {life.status} though nothing was done to it: {lines}")
        if life.notice is not None:
            if any(status == 0 for status in life.status):
                wrong.append(f"a rank ended with 0: {life.status}")
            if not lines or (len(lines) > 1 and life.started is not None):  # before a job has a watch each speaks for itself
                wrong.append(f"not one line of error but {lines}")
        if life.fault in ("disk", "nan") and any(life.status) and len(lines) != 1:
            wrong.append(f"not one line of error but {lines}")
        return wrong

    def compare(self, run: Path, own: tuple[int, int] | None) -> dict[str, Any]:
        """With the uninterrupted run."""
        whole = self.uninterrupted(*(own or (1, 0)))
        ours, theirs = Counter[int](), rows(whole)
        other = []
        for line in whole_lines(run):
            position, _, rest = line.partition("\t")
            ours[int(position)] += 1
            if theirs.get(int(position)) != rest:
                other.append(int(position))
        lost, again = sorted(theirs.keys() - ours.keys()), sorted(position for position, times in ours.items() if times > 1)
        wrong = [f"positions lost: {lost[:9]}"] * bool(lost) + [f"positions repeated: {again[:9]}"] * bool(again)
        wrong += [f"other samples, crops or masks at {other[:9]}"] * bool(other)
        if aside := [path.name for path in (run / "checkpoints").iterdir() if not path.name.isdigit()]:
            wrong.append(f"set aside: {aside}")
        if own and (unlike := differing(run, whole)):
            wrong.append(f"not the same bits: {unlike[:3]}")
        return {"lost": len(lost), "repeated": len(again), "other": len(other), "wrong": wrong}

    def uninterrupted(self, world: int, stage: int) -> Path:
        run = self.folder / f"whole{world}x{stage}.part{self.part}"
        if not (run / "verdict.json").exists():
            shutil.rmtree(run, ignore_errors=True)
            processes = self.start(run, Life(-1, 0, world, stage, "none"), None, {})
            texts = [process.communicate(LONGEST_LIFE) for process in processes]
            assert all(process.returncode == 0 for process in processes), texts
        return run

    def summary(self) -> dict[str, Any]:
        hurt = [life for life in self.lives if life.hit]
        killed = [life for life in hurt if life.kills]
        follow = {(life.run, life.life): life for life in self.lives}
        again = [follow.get((life.run, life.life + 1)) for life in killed]
        lost = [life.trained + after.started for life, after in zip(killed, again, strict=True) if after and after.started is not None]
        told = lambda values: {
            "count": len(values),
            **({"median": round(statistics.median(values), 3), "longest": round(max(values), 3)} if values else {}),
        }
        return {
            "runs": len(self.runs),
            "runs_of_one_topology": sum(run["same_topology"] for run in self.runs.values()),
            "lives": len(self.lives),
            "kills": self.kills,
            "kills_of_one_rank_among_several": sum(life.notice is not None for life in killed),
            "kills_before_training": sum(life.started is None for life in killed),
            "kills_that_left_half_a_checkpoint": sum(life.in_save for life in killed),
            "kills_by_processes": dict(sorted(Counter(life.world for life in killed).items())),
            "kills_by_zero_stage": dict(sorted(Counter(life.stage for life in killed).items())),
            "stopped_ranks": sum(life.fault == "stop" for life in hurt),
            "nan_on_one_rank": sum(life.fault == "nan" for life in hurt),
            "lives_on_failing_disks": sum(life.fault == "disk" and life.answers > 0 for life in hurt),
            "of_them_reached_their_end": sum(life.fault == "disk" and life.answers > 0 and not any(life.status) for life in hurt),
            "errors_answered_by_disks": sum(life.answers for life in hurt),
            "samples_lost": sum(run.get("lost", 0) for run in self.runs.values()),
            "samples_repeated": sum(run.get("repeated", 0) for run in self.runs.values()),
            "samples_otherwise": sum(run.get("other", 0) for run in self.runs.values()),
            "samples_compared": len(self.runs) * STEPS * BATCH,
            "seconds_lost_a_kill": told(lost),
            "seconds_trained_again": told([life.trained for life in killed]),
            "steps_trained_again": told([life.steps_lost for life in killed]),
            "seconds_to_start": told([life.started for life in self.lives if life.started is not None]),
            "seconds_to_notice_a_dead_rank": told([life.notice for life in killed if life.notice is not None and life.started is not None]),
            "seconds_to_notice_one_that_died_while_starting": told(
                [life.notice for life in killed if life.notice is not None and life.started is None]
            ),
            "seconds_to_notice_a_stopped_rank": told([life.notice for life in hurt if life.fault == "stop" and life.notice is not None]),
            "patience_seconds": PATIENCE,
            "patience_slow_seconds": PATIENCE_SLOW,
            "wrong": [each for run in self.runs.values() for each in run["wrong"]],
        }


def newest(run: Path) -> int:
    """The step of the newest commit; 0 where there is none."""
    return max(
        (int(path.parent.name) for path in (run / "checkpoints").glob("[0-9]*/COMMIT.json") if path.parent.name.isdigit()), default=0
    )


def whole_lines(run: Path) -> list[str]:
    """Of all ranks' sample logs, without a last one that a kill has cut."""
    return [line for path in sorted(run.glob("samples.rank*.tsv")) for line in path.read_text().split("\n")[:-1]]


def rows(run: Path) -> dict[int, str]:
    return {int(position): rest for position, _, rest in (line.partition("\t") for line in whole_lines(run))}


def differing(run: Path, whole: Path) -> list[str]:
    """Names of tensors of the last commits that are not the same bits."""
    import torch

    from tests.pipeline.conftest import tensors

    ours, theirs = tensors(run, STEPS), tensors(whole, STEPS)
    same = lambda name: name in ours and name in theirs and torch.equal(ours[name], theirs[name])
    return sorted(name for name in ours.keys() | theirs.keys() if not same(name))


if __name__ == "__main__":
    sys.exit(main())
