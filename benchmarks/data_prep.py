"""make_shards.py and its peers on the same files in one run: copy, resize, verify, restart, memory.  Prints Markdown, writes JSON.

    python benchmarks/data_prep.py --peers /tmp/peers/bin/python --out benchmarks/results/DEVICE-data_prep.json [--work FOLDER]
        [--rounds 5] [--photos 4000] [--resized 1000] [--small 10000] [--list 10_000 10_000_000] [--only copy resize ...]

Files: the 300 photographs of ../shared/data/photos-300.tar again and again, each time with a comment of its own so that no two files are
equal, and the CIFAR-10 (JPEG) test images.  The page cache is warm.  In each of the `--rounds` rounds every tool runs once on core 0 with one worker and once on cores 0 and 1 with two, so
that a drift of the machine's speed meets all of them.  A time ends when the bytes are on the disk: what a tool leaves in the page cache is
flushed and counted.  Rates are beyond start-up: the time for TINY images is taken off, which favours tools that start slowly.  Ratios are
medians over the rounds.  What each peer is asked to do, and what it does differently, stands at the top of its file in benchmarks/peers/.

--only runs some parts and keeps the others as they are in --out: about two thirds of the time go into `limits copy resize`, half of that
into the peers' start-up.

--peers is the Python of an environment with img2dataset and litdata, apart from mpp's because img2dataset needs webdataset < 0.3:

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install img2dataset==1.47.0 litdata==0.2.76 xxhash

A peer that cannot be imported there is left out, and the reason is printed and recorded.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep_report import markdown
from measured import Failed, killed_when, timed

from mpp.train.run_folder import environment

HERE = Path(__file__).parent
CORES = {1: "0", 2: "0,1"}  # workers -> for taskset
TINY = 40  # images in the start-up runs
MOST = 0.8  # of a run's time that may be taken off as start-up


@dataclass(frozen=True)
class Tool:
    """A way to make shards, as a script of benchmarks/peers/."""

    name: str
    python: str
    script: str
    finished: str  # glob below OUT: one file for every finished shard
    extra: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()  # further words for a set as its users make it
    check: tuple[str, ...] = ()  # further words when it is verified
    workers: tuple[int, ...] = (1, 2)
    parts: tuple[str, ...] = ("tiny", "copy", "resize", "verify", "restart")

    def make(self, task: "Task", out: Path, workers: int) -> list[str | Path]:
        numbers = (workers, task.per_shard, task.resize)
        return [self.python, HERE / "peers" / self.script, "make", task.root, out, *map(str, numbers), *self.extra]

    def verify(self, out: Path, workers: int) -> list[str | Path]:
        return [self.python, HERE / "peers" / self.script, "verify", out, str(workers), *self.check]

    def ask(self, *words: str | Path) -> dict:
        """The JSON object that a short command prints last.  Raises Failed."""
        done = subprocess.run([self.python, HERE / "peers" / self.script, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(" / ".join(done.stderr.strip().splitlines()[-1:]))
        return json.loads(done.stdout.strip().splitlines()[-1])


def tools(peers: str) -> list[Tool]:
    every = ("tiny", "copy", "resize", "small", "verify", "restart")
    return [
        Tool("make_shards", sys.executable, "mpp_tools.py", ".work/*.done", plain=("10000",), parts=every),
        Tool("make_shards, first 10,000", sys.executable, "mpp_tools.py", "", ("10000",), workers=(2,), parts=("tiny", "copy", "resize")),
        Tool("verify_shards --full", sys.executable, "mpp_tools.py", "", plain=("10000",), check=("full",), parts=("verify",)),
        Tool("webdataset loop", sys.executable, "webdataset_loop.py", "*.tar", parts=every),
        Tool("img2dataset", peers, "img2dataset_run.py", "*_stats.json"),
        Tool("litdata", peers, "litdata_run.py", "chunk-*.bin"),
    ]


@dataclass(frozen=True)
class Task:
    """Files and what to do with them."""

    name: str
    root: Path
    images: int
    bytes: int
    per_shard: int
    resize: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="of an environment with img2dataset and litdata")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument("--work", type=Path, default=Path("runs/data_prep"), help="a folder on the disk to be measured; about 3 GB")
    data = Path(os.environ.get("MPP_TEST_DATA") or HERE.parents[1] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=data, help="the folder with the two archives of images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=4000, help="images to copy")
    parser.add_argument("--resized", type=int, default=1000, help="images to shrink")
    parser.add_argument("--small", type=int, default=10_000, help="CIFAR-10 images to copy")
    parser.add_argument("--list", type=int, nargs="*", default=[10_000, 10_000_000], metavar="N", help="lengths of made-up listings")
    parts = ("limits", "copy", "resize", "small", "verify", "restart", "list")
    parser.add_argument("--only", nargs="+", default=parts, choices=parts)
    options = parser.parse_args(argv)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)

    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    result |= {
        "environment": environment() | {"cpu": cpu()},
        "commands": [*result.get("commands", []), words],
        "tasks": result.get("tasks", {}),
    }
    found = available(options.peers, result)
    photos = unpack(options.data / "photos-300.tar", work / "photos-300")
    cifar = unpack(options.data / "cifar10-test.tar.xz", work / "cifar10-test")
    tasks = {
        "tiny": lay_out("tiny", photos, TINY, work, TINY // 2),
        "copy": lay_out("copy", photos, options.photos, work, 500),
        "resize": lay_out("resize", photos, options.resized, work, 125, resize=256),
        "small": lay_out("small", cifar, options.small, work, 1000),
        "restart": lay_out("copy", photos, options.photos, work, 100),
    }
    chosen = [part for part in ("copy", "resize", "small") if part in options.only]
    for part in chosen:
        task = tasks[part]
        result["tasks"][part] = {"images": task.images, "bytes": task.bytes, "per_shard": task.per_shard, "resize": task.resize}

    if "limits" in options.only:
        result["limits"] = limits(tasks["copy"].root, work, options.rounds)
    if chosen and set(result.get("start_up", {})) != {tool.name for tool in found if "tiny" in tool.parts}:
        result["start_up"] = compare(found, tasks["tiny"], work, 3)
    for part in chosen:
        result[part] = compare(found, tasks[part], work, options.rounds)
        add_rates(found[0].name, result[part], tasks[part], result["start_up"])
    if "verify" in options.only:
        result["verify"] = verify(found, tasks["copy"], work, max(1, options.rounds // 2 + 1))
    if "restart" in options.only:
        result["restart"] = restart(found, tasks["restart"], work)
    if "list" in options.only:
        listing = [sys.executable, str(HERE / "listing.py")]
        result["list"] = [
            json.loads(subprocess.run([*listing, str(count), str(work)], capture_output=True, check=True).stdout) for count in options.list
        ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    return 0


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def available(peers: str, result: dict) -> list[Tool]:
    """The tools that can be imported; notes their versions, and why the others are left out."""
    result["versions"], result["left_out"], found = {}, {}, []
    for tool in tools(peers):
        try:
            result["versions"][tool.name] = tool.ask("versions")
            found.append(tool)
        except (Failed, OSError) as error:
            result["left_out"][tool.name] = str(error)
            print(f"left out: {tool.name} ({error})", file=sys.stderr)
    return found


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Every image of an archive, as files."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def lay_out(name: str, files: list[Path], images: int, work: Path, per_shard: int, resize: int = 0) -> Task:
    """A tree of `images` JPEGs that the page cache holds, 100 to a folder: `files` again and again, each with its number in a comment."""
    root = work / f"{name}-{images}"
    if not root.exists():
        partial = root.with_name(root.name + ".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        for number in range(images):
            path = partial / f"{number // 100:04d}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            start, rest = (data := files[number % len(files)].read_bytes())[:2], data[2:]
            path.write_bytes(start + b"\xff\xfe\x00\x0a%08d" % number + rest)
        partial.rename(root)
    sizes = [len(path.read_bytes()) for path in root.rglob("*.jpg")]
    assert len(sizes) == images
    return Task(name, root, images, sum(sizes), per_shard, resize)


def limits(root: Path, work: Path, rounds: int) -> dict:
    command = ["taskset", "-c", "0", sys.executable, str(HERE / "limits.py"), str(root), str(work)]
    runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(rounds)]
    return {"runs": runs, **{name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}}


def compare(found: list[Tool], task: Task, work: Path, rounds: int) -> dict:
    """tool -> workers -> runs, median seconds, peak memory; and what was written."""
    cases = [(tool, workers) for tool in found if task.name in tool.parts for workers in tool.workers]
    result: dict = {tool.name: {"workers": {str(workers): {"runs": []} for workers in tool.workers}} for tool, _ in cases}
    out, log = work / "out", work / "log.txt"
    for number in range(rounds):
        turn = number % len(cases)
        for tool, workers in cases[turn:] + cases[:turn]:
            print(f"{task.name}, round {number + 1} of {rounds}: {tool.name}, {workers} workers", file=sys.stderr)
            run = timed(tool.make(task, out, workers), CORES[workers], log, out)
            result[tool.name]["workers"][str(workers)]["runs"].append({name: round(value, 3) for name, value in run.items()})
            if not number and workers == tool.workers[-1]:
                result[tool.name]["written"] = tool.ask("describe", out)
            clear(work)
    for tool in result.values():
        for case in tool["workers"].values():
            case["seconds"] = round(statistics.median(run["seconds"] + run["flush_seconds"] for run in case["runs"]), 3)
            case["cpu_seconds"] = round(statistics.median(run["cpu_seconds"] for run in case["runs"]), 3)
            case["peak_mb"] = max(run["peak_mb"] for run in case["runs"])
    return result


def add_rates(ours: str, result: dict, task: Task, start_up: dict) -> None:
    """Add rates beyond start-up, each tool's gain by a second core, our rate over its, and how many of its images have the sizes of ours."""
    for name, tool in result.items():
        for workers, case in tool["workers"].items():
            spent = start_up[name]["workers"][workers]["seconds"]
            totals = [run["seconds"] + run["flush_seconds"] for run in case["runs"]]
            case["rates"] = [round((task.images - TINY) / max(total - spent, (1 - MOST) * total), 1) for total in totals]
            case["images_per_second"] = statistics.median(case["rates"])
            case["mb_per_second"] = round(case["images_per_second"] * task.bytes / task.images / 1e6, 1)
    sizes = Counter(result[ours]["written"]["sizes"])
    for tool in result.values():
        if "1" in tool["workers"]:
            tool["two_over_one"] = median_ratio(tool["workers"]["2"]["rates"], tool["workers"]["1"]["rates"])
        for workers, case in tool["workers"].items():
            case["ours_over_it"] = median_ratio(result[ours]["workers"][workers]["rates"], case["rates"])
        tool["written"]["same_sizes_as_ours"] = (sizes & Counter(tool["written"]["sizes"])).total()
    for tool in result.values():
        del tool["written"]["sizes"]


def median_ratio(above: list[float], below: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 2)


def clear(work: Path) -> None:
    for path in work.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def verify(found: list[Tool], task: Task, work: Path, rounds: int) -> dict:
    """tool -> images/s of reading everything back, by workers; and whether one flipped byte and a cut shard are found."""
    checked = [tool for tool in found if "verify" in tool.parts]
    log, outs = work / "log.txt", {tool.name: work / f"out-{number}" for number, tool in enumerate(checked)}
    result: dict = {tool.name: {"runs": {str(workers): [] for workers in CORES}} for tool in checked}
    for tool in checked:
        timed([*tool.make(task, outs[tool.name], 2), *tool.plain], CORES[2], log, outs[tool.name])
    for number in range(rounds):
        for tool in checked:
            for workers, cores in CORES.items():
                print(f"verify, round {number + 1} of {rounds}: {tool.name}, {workers} workers", file=sys.stderr)
                result[tool.name]["runs"][str(workers)].append(
                    round(timed(tool.verify(outs[tool.name], workers), cores, log)["seconds"], 3)
                )
    for tool in checked:
        entry, out = result[tool.name], outs[tool.name]
        seconds = {workers: statistics.median(runs) for workers, runs in entry["runs"].items()}
        entry["images_per_second"] = {workers: round(task.images / value, 1) for workers, value in seconds.items()}
        entry["mb_per_second"] = {workers: round(task.bytes / value / 1e6, 1) for workers, value in seconds.items()}
        shard = max((path for path in out.rglob("*") if path.suffix in (".tar", ".bin")), key=lambda path: path.stat().st_size)
        whole = shard.read_bytes()
        middle = len(whole) // 2
        damage = {"flipped_byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], "cut_shard": cut(whole, shard)}
        for name, content in damage.items():
            shard.write_bytes(content)
            entry[f"finds_{name}"] = not succeeds(tool.verify(out, 2), log)
    clear(work)
    return result


def cut(whole: bytes, shard: Path) -> bytes:
    """The first half; of a tar up to a member's header, where readers take the end of the file for the end of the archive."""
    if shard.suffix != ".tar":
        return whole[: len(whole) // 2]
    with tarfile.open(shard) as tar:
        headers = [member.offset for member in tar]
    return whole[: headers[len(headers) // 4 * 2]]


def succeeds(command: Sequence[str | Path], log: Path) -> bool:
    try:
        timed(command, CORES[2], log)
    except Failed:
        return False
    return True


def restart(found: list[Tool], task: Task, work: Path) -> dict:
    """tool -> killed (SIGKILL, all its processes) once 90 % of its shards are finished, then the same command: seconds and images."""
    out, log, result = work / "out", work / "log.txt", {}
    shards = task.images // task.per_shard
    for tool in (tool for tool in found if "restart" in tool.parts):
        print(f"restart: {tool.name}", file=sys.stderr)
        command = tool.make(task, out, 2)
        whole = timed(command, CORES[2], log, out)["seconds"]
        clear(work)
        killed_when(command, CORES[2], log, lambda tool=tool: sum(1 for _ in out.glob(tool.finished)) >= 0.9 * shards)
        kept = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".tar", ".bin") and path.name[0] != "."}
        entry = {"seconds_of_a_whole_run": round(whole, 2), "shards": shards, "shards_at_the_kill": len(kept)}
        try:
            entry["seconds"] = round(timed(command, CORES[2], log)["seconds"], 2)
            untouched = sum(path.exists() and path.stat().st_mtime_ns == when for path, when in kept.items())
            entry["images_made_by_the_restart"] = (shards - untouched) * task.per_shard
            entry["images"] = tool.ask("describe", out)["images"]
        except Failed as error:
            entry["refused"] = str(error)
        result[tool.name] = entry
        clear(work)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
