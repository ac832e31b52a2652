"""Training data from an object store, mpp and its peers beside each other: images/s, share of waiting, memory, time to resume.

    python benchmarks/stores.py --peers /tmp/peers/bin/python --out benchmarks/results/DEVICE-stores.json [--work FOLDER] [--rounds 3]
        [--photos FOLDER] [--shards 64] [--rates 400 100 30] [--step-ms 250] [--workers 1] [--tools mpp ...] [--only epoch paced memory resume]

The store is tests/object_store.py in a process of its own: --latency-ms before each answer, and --rates, MB a second that all connections share.
The set (store_set.py): --shards shards of at least --shard-mb, JPEG crops of the photographs of ../shared/data or of --photos, about 100 kB each.
Each tool reads the same JPEG bytes in its own format, decodes and crops them to 224 px in --workers processes, and gives batches of 128.
What it is asked to do, and what it does differently, stands at the top of its file in benchmarks/peers/store_*.py.

    epoch    one epoch, cold cache, batches taken as fast as they come, for each rate
    paced    the same, where a step takes --step-ms, in which the receiving process sleeps: the share of the time that it waits for a batch
    memory   three epochs, as fast as they come, at the highest rate: peak of all processes' memory in each
    resume   cold cache, at 90 % of an epoch: seconds from asking for a loader to the first batch, and what the store had sent by then

"mpp, local disk" reads the same tars without a store.  In each round every tool runs at every rate, each time with an empty cache; the tools take
turns at being first.  Figures are medians; ratios are medians of the ratios of one round.  Images/s are those of the epoch from the moment a loader
is asked for (importing apart), and those behind its first batch.  Images/CPU-s count all processes of a tool, with what its start costs.  Store and
tool share the machine's cores.  The page cache is warm for the store's files and for those of the local disk.

--only runs some parts and keeps the others as they are in --out.  --peers is the Python of an environment with the peers:

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install torch==2.14.1 torchvision==0.29.1 webdataset==1.0.2 litdata==0.2.76 \\
        mosaicml-streaming==0.13.0 psutil

A tool that fails is left out from then on, and the reason is printed and recorded.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from measured import Failed, members, start
from store_set import build
from stores_report import markdown

from data_prep import cpu
from mpp.train.run_folder import environment

HERE = Path(__file__).parent
SAMPLED_EVERY = 0.2  # seconds, of memory
LIMIT = 900  # seconds a single process may take
GRACE = 3  # seconds
STORE_SECONDS = 4 * 3600  # after which a store ends by itself
EPOCHS = 3  # of memory
RESUMED_AT = 0.9  # of an epoch
PARTS = ("epoch", "paced", "memory", "resume")
LOCAL = "mpp, local disk"


@dataclass(frozen=True)
class Tool:
    """A loader, as a script of benchmarks/peers/."""

    name: str
    python: str
    script: str
    own_format: bool = False  # it stores the images anew
    local: bool = False  # without a store

    def run(self, words: Sequence[str | Path | float], cores: str, log: Path, watch: Callable[[list], None] | None = None) -> dict:
        """The JSON object that the script ends with.  `watch` is called again and again.  Raises Failed."""
        process = start([self.python, HERE / "peers" / self.script, *map(str, words)], cores, log)
        deadline = time.monotonic() + LIMIT
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise Failed(f"did not end within {LIMIT} s")
                if watch:
                    watch(members(process.pid))
                time.sleep(SAMPLED_EVERY)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            end_group(process.pid)
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if process.returncode:
            raise Failed(lines[-1][:300] if lines else f"exit status {process.returncode}")
        return json.loads(next(line for line in reversed(lines) if line.startswith("{")))


def end_group(number: int) -> None:
    """What a process has left behind has a moment to end by itself."""
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(number, 0)
            time.sleep(0.05)
        os.killpg(number, signal.SIGKILL)


def tools(peers: str) -> list[Tool]:
    return [
        Tool(LOCAL, sys.executable, "store_mpp.py", local=True),
        Tool("mpp", sys.executable, "store_mpp.py"),
        Tool("mpp, mixed less", sys.executable, "store_mpp_near.py"),
        Tool("MosaicML Streaming", peers, "store_streaming.py", own_format=True),
        Tool("litData", peers, "store_litdata.py", own_format=True),
        Tool("webdataset", peers, "store_webdataset.py"),
    ]


@dataclass
class Bench:
    """What all parts share.  `left_out`: tool -> why."""

    folder: Path  # the set
    work: Path
    latency_ms: float
    workers: int
    cores: str
    left_out: dict[str, str]
    versions: dict[str, dict]
    stores: contextlib.ExitStack
    addresses: dict[float, str] = field(default_factory=dict)

    def store(self, mb_per_second: float) -> str:
        """The address of a store of this rate that serves the set and has counted nothing yet; it ends with `stores`."""
        if mb_per_second not in self.addresses:
            program = HERE.parent / "tests" / "object_store.py"
            words = [self.folder / "served", "--latency-ms", self.latency_ms, "--mb-per-second", mb_per_second, "--seconds", STORE_SECONDS]
            command = ["taskset", "-c", self.cores, sys.executable, program, *words]
            process = self.stores.enter_context(subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True))
            self.stores.callback(process.kill)
            assert process.stdout
            self.addresses[mb_per_second] = process.stdout.readline().strip()
        address = self.addresses[mb_per_second]
        urllib.request.urlopen(urllib.request.Request(f"{address}/-/", method="DELETE")).close()
        return address

    def ask(self, tool: Tool, mb_per_second: float, what: str, number: float, watch: Callable[[list], None] | None = None) -> dict:
        """Run one tool once, with an empty cache.  Raises Failed."""
        cache = self.work / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        os.sync()  # nobody pays for the writes of the run before
        address = "-" if tool.local else self.store(mb_per_second)
        result = tool.run([what, self.folder, address, cache, self.workers, number], self.cores, self.work / "log.txt", watch)
        self.versions[tool.name] = result.pop("versions")
        shutil.rmtree(cache)
        return result

    def attempt(self, said: str, found: list[Tool], action: Callable[[Tool], object]) -> list[Tool]:
        """The tools for which the action succeeds; of the others the reason is noted."""
        good = []
        for tool in found:
            print(f"{said}: {tool.name}", file=sys.stderr)
            try:
                action(tool)
                good.append(tool)
            except (Failed, OSError) as error:
                self.left_out[tool.name] = f"{said}: {error}"
                print(f"left out: {tool.name} ({error})", file=sys.stderr)
        return good


def main(argv: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    options = parse(argv)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    result |= {"environment": environment() | {"cpu": cpu()}, "commands": [*result.get("commands", []), words]}
    result["left_out"] = {name: why for name, why in result.get("left_out", {}).items() if not why.startswith(tuple(options.only))}
    result["versions"] = result.get("versions", {})
    folder = build(options.photos, work, options.shards, options.shard_mb)
    result["set"] = json.loads((folder / "set.json").read_text())
    names = ("rates", "latency_ms", "workers", "step_ms", "rounds", "cores")
    settings = {name: getattr(options, name) for name in names} | {"commit": result["environment"].get("commit")}
    result["settings"] = result.get("settings", {}) | dict.fromkeys(options.only, settings)
    with contextlib.ExitStack() as stores:
        bench = Bench(folder, work, options.latency_ms, options.workers, options.cores, result["left_out"], result["versions"], stores)
        measure(bench, options, result)
    keep(options.out, result | {"seconds": round(time.monotonic() - began)})
    print(markdown(result))
    return 0


def measure(bench: Bench, options: argparse.Namespace, result: dict) -> None:
    """What --only names, into `result`."""
    found = [tool for tool in tools(options.peers) if not options.tools or any(word in tool.name for word in options.tools)]
    found = bench.attempt("made ready", found, lambda tool: make_ready(tool, bench.folder, bench.work / "log.txt"))

    for part, step_ms in (("epoch", 0), ("paced", options.step_ms)):
        if part in options.only:
            found = epochs_of(bench, part, found, options.rates, step_ms, options.rounds, result)
            keep(options.out, result)
    if "memory" in options.only:
        result["memory"] = {}
        found = bench.attempt("memory", found, lambda tool: result["memory"].update({tool.name: memory(bench, tool, max(options.rates))}))
        keep(options.out, result)
    if "resume" in options.only:
        result["resume"] = {}
        rate = sorted(options.rates)[len(options.rates) // 2]
        for number in range(options.rounds):
            said = f"resume, round {number + 1} of {options.rounds}"
            found = bench.attempt(said, found, lambda tool: resume(bench, tool, rate, result))


def keep(out: Path, result: dict) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="of an environment with the peers")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument("--work", type=Path, default=Path("runs/stores"), help="a folder for set and caches; about 3 GB")
    photos = Path(os.environ.get("MPP_TEST_DATA") or HERE.parents[1] / "shared" / "data") / "photos-300.tar"
    parser.add_argument("--photos", type=Path, default=photos, help="an archive or a folder of JPEGs")
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--shard-mb", type=float, default=8, help="bytes of each, at least")
    parser.add_argument("--rates", type=float, nargs="+", default=[400, 100, 30], help="of the store, MB/s")
    parser.add_argument("--latency-ms", type=float, default=20, help="of the store, before each answer")
    parser.add_argument("--step-ms", type=float, default=250, help="a step of the paced part")
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    parser.add_argument("--cores", default="0,1", help="for taskset; store and tool share them")
    parser.add_argument("--tools", nargs="+", metavar="NAME", help="only those whose name holds one of these words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    return parser.parse_args(argv)


def make_ready(tool: Tool, folder: Path, log: Path) -> None:
    mark = folder / f"{tool.script}.ready"
    if tool.own_format and not mark.exists():
        tool.run(["prepare", folder], "0", log)
        mark.touch()


def epochs_of(bench: Bench, part: str, found: list[Tool], rates: list[float], step_ms: float, rounds: int, result: dict) -> list[Tool]:
    """Fills result[part]: rate -> tool -> runs, medians, and ratios to mpp from the local disk.  Returns the tools that ran."""
    runs: dict = {f"{rate:g}": {tool.name: [] for tool in found} for rate in rates}
    for number in range(rounds):
        for rate in rates:
            turn = number % len(found) if found else 0
            said = f"{part}, {rate:g} MB/s, round {number + 1} of {rounds}"
            add = lambda tool, rate=rate: runs[f"{rate:g}"][tool.name].append(bench.ask(tool, rate, "epoch", step_ms))
            found = bench.attempt(said, found[turn:] + found[:turn], add)
    names = [tool.name for tool in tools("")]
    found.sort(key=lambda tool: names.index(tool.name))
    for rate, of_tools in runs.items():
        summed = {tool.name: summed_up(of_tools[tool.name], result["set"]) for tool in found}
        for case in summed.values():
            if LOCAL in summed:
                case["over_local"] = median_ratio(case["runs"], summed[LOCAL]["runs"])
        result.setdefault(part, {})[rate] = summed
    return found


def summed_up(runs: list[dict], about: dict) -> dict:
    median = lambda of: statistics.median(map(of, runs))
    spent = [run["images"] / run["cpu_seconds"] for run in runs if run["cpu_seconds"]]
    return {
        "images_per_second": round(median(lambda run: run["images"] / run["seconds"]), 1),  # behind the first batch
        "with_start": round(
            median(lambda run: (run["images"] + about["batch"]) / (run["first"] + run["seconds"])), 1
        ),  # of the whole epoch
        "first_batch": round(median(lambda run: run["first"]), 2),
        "waiting": round(
            median(lambda run: (run["first"] + run["waited"]) / (run["first"] + run["seconds"])), 4
        ),  # from asking for a loader on
        "waiting_behind_first": round(median(lambda run: run["waited"] / run["seconds"]), 4),
        "longest_wait": round(median(lambda run: run["longest_wait"]), 2),
        "images_per_cpu_second": round(statistics.median(spent), 1) if spent else None,
        "bytes_over_set": round(median(lambda run: run["bytes"] / about["image_bytes"]), 3),
        "requests": round(median(lambda run: run["requests"])),
        "runs": runs,
    }


def median_ratio(above: list[dict], below: list[dict]) -> float:
    """Of images a second behind the first batch, round by round."""
    pairs = zip(above, below, strict=True)
    return round(statistics.median(a["images"] / a["seconds"] * b["seconds"] / b["images"] for a, b in pairs), 3)


def memory(bench: Bench, tool: Tool, rate: float) -> dict:
    """Of each epoch the peaks, MB, of the sums over all processes: resident (shared pages count once for each), and proportional (once)."""
    samples: list[tuple[float, int, int]] = []

    def watch(processes: list) -> None:
        held = list(map(holds, processes))
        samples.append((time.monotonic(), sum(rss for rss, _ in held), sum(pss for _, pss in held)))

    measured = bench.ask(tool, rate, "epochs", EPOCHS, watch)
    spans = list(itertools.pairwise([measured["asked"], *measured["ends"]]))
    peaks = lambda nth: [round(max((s[nth] for s in samples if begin < s[0] <= end), default=0) / 1e6, 1) for begin, end in spans]
    found = {"resident_mb": peaks(1), "proportional_mb": peaks(2), "seconds": [round(end - begin, 2) for begin, end in spans]}
    return found | {"last_over_first": round(found["proportional_mb"][-1] / found["proportional_mb"][0], 3), "bytes": measured["bytes"]}


def holds(process: psutil.Process) -> tuple[int, int]:
    try:
        found = process.memory_full_info()
    except psutil.Error:
        return 0, 0
    return found.rss, found.pss


def resume(bench: Bench, tool: Tool, rate: float, result: dict) -> None:
    """Adds a run to result["resume"]: tool -> seconds, MB and requests; medians."""
    about = result["set"]
    measured = bench.ask(tool, rate, "resume", int(RESUMED_AT * (about["entries"] // about["batch"])))
    runs = result["resume"].setdefault(tool.name, {"runs": []})["runs"]
    runs.append({"seconds": measured["seconds"], "mb": measured["bytes"] / 1e6, "requests": measured["requests"]})
    result["resume"][tool.name] |= {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    result["resume_rate"] = rate


if __name__ == "__main__":
    raise SystemExit(main())
