"""mpp's loader and its peers on the same work in one run: speed, memory, time to the first batch, time to resume.

    python benchmarks/loader.py --peers /tmp/peers/bin/python --out benchmarks/results/DEVICE-loader.json [--work FOLDER] [--rounds 3]
        [--datasets photos photos256 cifar] [--photos FOLDER] [--entries 50000] [--tools mpp timm ...] [--only rate memory first resume]

Work: batches of 128, uint8, each image decoded, cropped at random (5 to 100 % of the area, 3:4 to 4:3) and resized, antialiased and bicubic,
delivered to the process that would train.  Three sets, of the same JPEG bytes for every tool, `--entries` long (loader_sets.py):

    photos      the 300 photographs of ../shared/data/photos-300.tar, or those of --photos, 224 px
    photos256   the same with the short side shrunk to 256 by make_shards.py, JPEG quality 90, 224 px
    cifar       CIFAR-10 (JPEG), 32 px

The page cache is warm.  One worker shares core 0 with the process that receives, two workers share cores 0 and 1 with it.  Rates are of steady
work: each process brings up its loader, takes --warm-up images, then notes CPU time (its own and its workers', user and system) and wall time
over the images that count.  In each round every tool runs with one worker and with two, so that a drift of the machine's speed meets all
of them; rates are medians, ratios medians of the ratios of one round.  The receiver does nothing with the batches, so queues are empty.

Memory: PSS of all processes over three epochs of cifar, sampled; two workers.  Libraries that other running programs have mapped too count
in part only, so leave the machine alone.  First batch and resume: photos256, two workers; a tool that
cannot resume fetches the batches and drops them.  What each tool is asked to do, and what it does differently, stands at the top of its
file in benchmarks/peers/.  The pixels of some batches are compared, so that nobody is fast by delivering something else.

--only runs some parts and keeps the others as they are in --out.  --peers is the Python of an environment with the peers:

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 webdataset==1.0.2 \\
        litdata==0.2.76 mosaicml-streaming==0.13.0 spdl==0.8.0 psutil

A tool that cannot be imported there, or that fails, is left out from then on, and the reason is printed and recorded.  The second forms of
ImageFolder (Pillow) and SPDL (FFmpeg) take part in the rates alone.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from loader_report import markdown
from loader_sets import BATCH, Source, build
from measured import Failed, members, start

from data_prep import cpu
from mpp.train.run_folder import environment

HERE = Path(__file__).parent
CORES = {1: "0", 2: "0,1"}  # workers -> for taskset
SAMPLED_EVERY = 0.2  # seconds, of memory
LIMIT = 600  # seconds a single process may take
EPOCHS = 3  # of memory
MEMORY_SET, LENGTH_SET = "cifar", "photos256"
SHARES = (0.1, 0.9)  # of an epoch, from which to resume
PARTS = ("rate", "memory", "first", "resume")


@dataclass(frozen=True)
class Tool:
    """A loader, as a script of benchmarks/peers/."""

    name: str
    python: str
    script: str
    form: tuple[str, ...] = ()
    own_format: bool = False  # it stores the images anew
    parts: tuple[str, ...] = PARTS

    def ask(self, *words: str | Path | int, workers: int, log: Path, watch: Callable[[list], None] | None = None) -> dict:
        """The JSON object that the script ends with, and `started`, when it was.  `watch` is called again and again.  Raises Failed."""
        command = [self.python, HERE / "peers" / self.script, *self.form, *map(str, words)]
        started = time.monotonic()
        process = start(command, CORES[workers], log)
        while process.poll() is None:
            if time.monotonic() > started + LIMIT:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise Failed(f"did not end within {LIMIT} s")
            if watch:
                watch(members(process.pid))
            time.sleep(SAMPLED_EVERY)
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if process.returncode:
            raise Failed(lines[-1][:300] if lines else f"exit status {process.returncode}")
        return json.loads(next(line for line in reversed(lines) if line.startswith("{"))) | {"started": started}


def tools(peers: str) -> list[Tool]:
    return [
        Tool("mpp", sys.executable, "loader_mpp.py"),
        Tool("ImageFolder", peers, "loader_torchvision.py", ("pil",), parts=("rate",)),
        Tool("torchvision, decode_jpeg", peers, "loader_torchvision.py", ("tensor",)),
        Tool("timm", peers, "loader_timm.py"),
        Tool("webdataset", peers, "loader_webdataset.py"),
        Tool("litData", peers, "loader_litdata.py", own_format=True),
        Tool("MosaicML Streaming", peers, "loader_streaming.py", own_format=True),
        Tool("SPDL, decode_jpeg", peers, "loader_spdl.py", ("tensor",)),
        Tool("SPDL, FFmpeg", peers, "loader_spdl.py", ("ffmpeg",), parts=("rate",)),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    options = parse(argv)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    log = work / "log.txt"
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    result |= {"environment": environment() | {"cpu": cpu()}, "commands": [*result.get("commands", []), words], "left_out": {}}
    result |= {name: result.get(name, {}) for name in ("versions", "sets")}
    found = [tool for tool in tools(options.peers) if not options.tools or any(word in tool.name for word in options.tools)]
    wanted = set(options.datasets) if "rate" in options.only else set()
    wanted |= {MEMORY_SET} if "memory" in options.only else set()
    wanted |= {LENGTH_SET} if {"first", "resume"} & set(options.only) else set()
    sets = {source.name: build(source, work, options.entries) for source in sources(options) if source.name in wanted}
    for name, folder in sets.items():
        result["sets"][name] = json.loads((folder / "set.json").read_text())
        found = attempt(f"{name}, made ready", found, result, lambda tool, folder=folder: make_ready(tool, folder, log))

    if "rate" in options.only:
        chosen = {name: sets[name] for name in options.datasets}
        images = {name: options.small if name == "cifar" else options.images for name in chosen}
        found = rate(found, chosen, options.warm_up, images, options.rounds, result, log)
        keep(options.out, result)
    found = [tool for tool in found if "memory" in tool.parts]
    if "memory" in options.only:
        result["memory"] = {}
        found = attempt("memory", found, result, lambda tool: result["memory"].update({tool.name: memory(tool, sets[MEMORY_SET], log)}))
    if "first" in options.only:
        result["first"] = {}
        for number in range(options.rounds):
            said = f"first batch, round {number + 1} of {options.rounds}"
            found = attempt(said, found, result, lambda tool: first(tool, sets[LENGTH_SET], result["first"], log))
    if "resume" in options.only:
        result["resume"] = {}
        found = attempt("resume", found, result, lambda tool: result["resume"].update({tool.name: resume(tool, sets[LENGTH_SET], log)}))
    keep(options.out, result | {"seconds": round(time.monotonic() - began)})
    print(markdown(result))
    return 0


def keep(out: Path, result: dict) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="of an environment with the peers")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument("--work", type=Path, default=Path("runs/loader"), help="a folder for the sets; about 0.5 GB")
    data = Path(os.environ.get("MPP_TEST_DATA") or HERE.parents[1] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=data, help="the folder with the archives of images")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="of JPEGs, instead of the 300 photographs")
    names = ("photos", "photos256", "cifar")
    parser.add_argument("--datasets", nargs="+", default=names, choices=names, help="whose rates are measured")
    parser.add_argument("--entries", type=int, default=50_000, help="length of each set")
    parser.add_argument("--tools", nargs="+", metavar="NAME", help="only those whose name holds one of these words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=4 * BATCH, help="images before those that count, a worker")
    parser.add_argument("--images", type=int, default=12 * BATCH, help="photographs that count in a round, a worker")
    parser.add_argument("--small", type=int, default=60 * BATCH, help="CIFAR-10 images that count in a round, a worker")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    options = parser.parse_args(argv)
    if options.entries < (least := max(CORES) * (options.warm_up + max(options.images, options.small) + 8 * BATCH)):
        parser.error(f"--entries {options.entries} must be at least {least}, so that what is measured lies within one epoch")
    return options


def sources(options: argparse.Namespace) -> list[Source]:
    photos = options.photos or options.data / "photos-300.tar"
    return [
        Source("photos", photos, 224),
        Source("photos256", photos, 224, ("--resize", "256", "--quality", "90")),
        Source("cifar", options.data / "cifar10-train.tar.xz", 32),
    ]


def attempt(said: str, found: list[Tool], result: dict, action: Callable[[Tool], object]) -> list[Tool]:
    """The tools for which the action succeeds; of the others the reason is noted."""
    good = []
    for tool in found:
        print(f"{said}: {tool.name}", file=sys.stderr)
        try:
            action(tool)
            good.append(tool)
        except (Failed, OSError) as error:
            result["left_out"][tool.name] = f"{said}: {error}"
            print(f"left out: {tool.name} ({error})", file=sys.stderr)
    return good


def make_ready(tool: Tool, folder: Path, log: Path) -> None:
    mark = folder / f"{tool.script}.ready"
    if tool.own_format and not mark.exists():
        tool.ask("prepare", folder, workers=2, log=log)
        mark.touch()


def rate(
    found: list[Tool], sets: dict[str, Path], warm_up: int, images: dict[str, int], rounds: int, result: dict, log: Path
) -> list[Tool]:
    """Fills result["rate"]: set -> tool -> workers -> runs and medians; and ratios to ImageFolder and of mpp.  Returns the tools that ran."""
    runs: dict = {name: {tool.name: {str(workers): [] for workers in CORES} for tool in found} for name in sets}

    def run(tool: Tool) -> None:
        for workers in CORES:  # as many images a worker, so that the batches in the making at either end weigh the same
            words = [word for name, folder in sets.items() for word in (folder, workers * warm_up, workers * images[name])]
            measured = tool.ask("rate", workers, *words, workers=workers, log=log)
            result["versions"][tool.name] = measured["versions"]
            for name, values in zip(sets, measured["sets"], strict=True):
                runs[name][tool.name][str(workers)].append(values)

    for number in range(rounds):
        turn = number % len(found) if found else 0
        found = attempt(f"rate, round {number + 1} of {rounds}", found[turn:] + found[:turn], result, run)
    names = [tool.name for tool in tools("")]
    found.sort(key=lambda tool: names.index(tool.name))
    result["rate"] = result.get("rate", {})
    for name, tool_runs in runs.items():
        result["rate"][name] = {tool.name: {workers: summed_up(each) for workers, each in tool_runs[tool.name].items()} for tool in found}
        for tool in found:
            for workers, case in result["rate"][name][tool.name].items():
                for said, base in (("over_imagefolder", "ImageFolder"), ("mpp_over_it", "mpp")):
                    if base in result["rate"][name]:
                        ratio = median_ratio(case["runs"], result["rate"][name][base][workers]["runs"])
                        case[said] = ratio if said == "over_imagefolder" else round(1 / ratio, 2)
    return found


def summed_up(runs: list[dict]) -> dict:
    return {
        "images_per_cpu_second": round(statistics.median(run["images"] / run["cpu_seconds"] for run in runs), 1),
        "images_per_second": round(statistics.median(run["images"] / run["seconds"] for run in runs), 1),
        "pixels": {name: round(statistics.mean(run["pixels"][name] for run in runs), 2) for name in runs[0]["pixels"]},
        "runs": runs,
    }


def median_ratio(above: list[dict], below: list[dict]) -> float:
    """Of images per CPU second, round by round."""
    return round(
        statistics.median(a["images"] / a["cpu_seconds"] * b["cpu_seconds"] / b["images"] for a, b in zip(above, below, strict=True)),
        2,
    )


def memory(tool: Tool, folder: Path, log: Path) -> dict:
    """peak_mb: of each epoch, the sum of the processes' proportional set sizes (shared pages count once)."""
    samples: list[tuple[float, int]] = []
    measured = tool.ask(
        "epochs",
        2,
        folder,
        EPOCHS,
        workers=2,
        log=log,
        watch=lambda processes: samples.append((time.monotonic(), sum(map(proportional, processes)))),
    )
    edges = [measured["imported"], *measured["ends"]]
    peaks = [max((size for when, size in samples if begin < when <= end), default=0) for begin, end in itertools.pairwise(edges)]
    return {
        "peak_mb": [round(peak / 1e6, 1) for peak in peaks],
        "last_over_first": round(peaks[-1] / peaks[0], 3),
        "images": measured["images"],
    }


def proportional(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def first(tool: Tool, folder: Path, result: dict, log: Path) -> None:
    """tool -> seconds from the start of the process, and from the moment a loader was asked for; a round more each time."""
    measured = tool.ask("first", 2, folder, workers=2, log=log)
    runs = result.setdefault(tool.name, {"runs": []})["runs"]
    seconds = measured["arrived"][0]
    runs.append({"from_start": measured["imported"] - measured["started"] + seconds, "from_asked": seconds})
    result[tool.name] |= {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def resume(tool: Tool, folder: Path, log: Path) -> dict:
    """share of an epoch -> seconds from the moment a loader was asked for to the first batch after it."""
    steps = json.loads((folder / "set.json").read_text())["entries"] // BATCH
    arrived = tool.ask("resume", 2, folder, *(int(share * steps) for share in SHARES), workers=2, log=log)["arrived"]
    return {str(share): round(seconds, 3) for share, seconds in zip(SHARES, arrived, strict=True)}


if __name__ == "__main__":
    raise SystemExit(main())
