"""Every record of benchmarks/results anew, or the table of what they say.

    python benchmarks/reproduce.py                                          # the table: each record, where and at which commit it was measured, its figures
    python benchmarks/reproduce.py --run bare_step growth --device cpu2     # these, on this machine, as benchmarks/results/cpu2-bare_step.json ...
    python benchmarks/reproduce.py --run everything --device cpu2 --images CIFAR10_TRAIN.tar --photos PHOTOS.tar
    python benchmarks/reproduce.py --run gpu --device h100 --minutes 9      # what a card alone can tell, the most telling first, in the time it is lent

These records take minutes each; those of whole trainings (recipes, small sets) take hours and have commands of their own in docs/results.md and
docs/small.md.  Each command is printed before it runs; a record that fails does not stop the others.  Shards are made below --work when first needed.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mpp.base.errors import UserError, run_program

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Record:
    """name: of DEVICE-NAME.json.  command: with {out}, and what it reads: {cifar}, {photos} (shards), {cifar_images}, {photo_images}, {peers}."""

    name: str
    minutes: int
    command: str
    told: Callable[[Any], str]  # its figures in a line
    gpu: bool = False  # makes sense on one only


def rates(record: Any) -> str:
    return ", ".join(f"{name} {rate:,.4g}" for name, rate in record["images_per_second"].items()) + " images/s"


def of_shapes(record: Any) -> str:
    rows = record["shapes"]
    return "; ".join(
        f"{name} " + ", ".join(f"{side} {rate:,.4g}" for side, rate in row["images_per_second"].items()) + f" of {row['floor']:,.4g}"
        for name, row in rows.items()
    )


def of_step(record: Any) -> str:
    return (
        f"{record['images_per_second']:,.0f} images/s, {record['peak_memory_gb']:.1f} GB, {record['wait_share']:.1%} waiting, "
        f"batches of {record['batch_a_process']} on {record['data']} images"
    )


def of_cores(record: Any) -> str:
    found = record["images_per_second"]
    return "; ".join(f"{name} {median(found['quiet'][name]):,.0f}, busy {median(found['busy'][name]):,.0f}" for name in found["quiet"])


def of_attention(record: Any) -> str:
    spans: dict[str, list[float]] = {}
    for row in record["rows"]:
        spans.setdefault(row["precision"], []).append(row["ratio"])
    return "; ".join(
        f"{precision}: fused is {min(found):.2f} to {max(found):.2f} times as fast as plain" for precision, found in spans.items()
    )


def of_growth(record: Any) -> str:
    return "; ".join(f"{name}: {len(rows)} points" for name, rows in record.items() if isinstance(rows, list))


def of_extraction(record: Any) -> str:
    return f"extraction at {record['ratio_of_medians']:.2f} of the bare forward pass"


def of_sets(record: Any) -> str:
    return ", ".join(key for key in record if key not in ("environment", "command", "commands", "versions"))


def of_stores(record: Any) -> str:
    told = lambda found: ", ".join(f"{name} {case['with_start']:,.0f}" for name, case in found.items())
    return "; ".join(f"at {rate} MB/s: {told(found)} images/s" for rate, found in record["epoch"].items())


def of_guards(record: Any) -> str:
    steps = ", ".join(
        f"{name} {row['guards_ms']:.2f} ms of {row['step_ms']:.0f} ({row['share']:.2%})" for name, row in record["steps"].items()
    )
    saves = ", ".join(f"{row['megabytes']:.0f} MB {row['wait_seconds']:.2f} of {row['seconds']:.2f} s" for row in record["saves"].values())
    return f"guards of a step: {steps}; training waits for a checkpoint: {saves}"


def synthetic(config: str) -> Record:
    command = f"deepspeed benchmarks/step.py --config configs/{config}.yaml --steps 200 --out {{out}}"
    return Record(f"{config}-synthetic", 1, command, of_step, gpu=True)


def real(config: str, decode: str) -> Record:
    command = f"deepspeed benchmarks/step.py --config configs/{config}.yaml --steps 200 --out {{out}} data.shards={{photos}}/train system.decode={decode}"
    return Record(f"{config}-photos-{decode}", 2, command, of_step, gpu=True)


def of_faults(record: Any) -> str:
    last = lambda rows: next((row["features/linear"] for row in reversed(rows) if "features/linear" in row), 0.0)
    return "linear probe at the end: " + ", ".join(f"{name} {last(run['rows']):.0%}" for name, run in record["runs"].items())


def of_grid(record: Any) -> str:
    of = lambda each: " and ".join(f"{seconds:.1f}" for seconds in each["cpu_median"].values())
    return "CPU seconds by one process and by two: " + ", ".join(
        f"{of(each)} ({classes} classes)" for classes, each in record["classes"].items()
    )


RECORDS = [
    Record("bare_step", 12, "python benchmarks/bare_step.py --rounds 7 --steps 3 --out {out}", of_shapes),
    Record("guards", 4, "python benchmarks/guards.py --shapes mae_ti4 --saves mae_ti4 mae_s16 --rounds 3 --out {out}", of_guards),
    Record("divided_grid", 8, "python benchmarks/divided_grid.py --out {out}", of_grid),
    Record("cpu_cores", 12, "python benchmarks/cpu_cores.py --shards {cifar}/train --rounds 2 --out {out}", of_cores),
    Record("end_to_end-cifar", 4, "python benchmarks/end_to_end.py --images {cifar_images} --shards {cifar}/train --out {out}", rates),
    Record(
        "end_to_end-photos", 4, "python benchmarks/end_to_end.py --images {photo_images} --shards {photos}/train --shape mae_s16 --steps 6 --rounds 4 --out {out}", rates
    ),
    Record("attention", 6, "python benchmarks/attention.py --rounds 3 --out {out}", of_attention),
    Record("faults", 10, "python benchmarks/planted_faults.py --digits {digits} --out {out} --plots docs/curves", of_faults),
    Record("growth", 15, "python benchmarks/growth.py --out {out} --plot docs/growth.png", of_growth),
    Record("extraction-b16", 4, "python benchmarks/extraction.py encoder=timm:vit_base_patch16_224@random train={photos}/train --images 256 --out {out}", of_extraction),
    Record("loader", 120, "python benchmarks/loader.py --peers {peers}/bin/python --out {out}", of_sets),
    Record("stores", 45, "python benchmarks/stores.py --peers {peers}/bin/python --out {out}", of_stores),
    Record("data_prep", 60, "python benchmarks/data_prep.py --peers {peers}/bin/python --out {out} --rounds 3 --photos 2000 --resized 600", of_sets),
    *(synthetic(config) for config in ("mpp_b16", "mae_b16", "mae_l16")),
    Record("compiled", 3, "python benchmarks/bare_step.py --shapes mae_ti4 mpp_ti4 mae_b16 --batches 256 --sides engine engine+c engine+g peer+c products --rounds 5 --steps 10 --out {out}", of_shapes, gpu=True),
    *(real(config, decode) for config in ("mpp_b16", "mae_b16") for decode in ("cpu", "device")),
    Record("sweep", 4, "python benchmarks/bare_step.py --shapes mae_b16 mpp_b16 mae_l16 mpp_l16 --batches 64 128 256 --sides engine loop peer --rounds 3 --steps 10 --out {out}", of_shapes, gpu=True),
]  # fmt: skip
BY_NAME = {record.name: record for record in RECORDS}
GROUPS: dict[str, Callable[[Record], bool]] = {"everything": lambda _: True, "gpu": lambda record: record.gpu}

SETS = {  # what makes each, once, in {work}
    "cifar": "python data_prep/make_shards.py {images} {work}/cifar --labels",
    "photos": "python data_prep/make_shards.py {photographs} {work}/photos --samples-per-shard 50 --max-rejects 0.1",
    "cifar_images": "mkdir -p {work}/cifar_images && tar -xf {images} -C {work}/cifar_images",
    "digits": "python data_prep/demo_digits.py {work}/digits",
    "photo_images": "mkdir -p {work}/photo_images/all && tar -xf {photographs} -C {work}/photo_images/all",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure again what benchmarks/results holds, or print it.")
    parser.add_argument("--run", nargs="+", choices=[*GROUPS, *BY_NAME], metavar="RECORD", help=", ".join([*GROUPS, *BY_NAME]))
    parser.add_argument("--device", help="the records' first word: cpu2, h100 ...")
    parser.add_argument("--images", default="../shared/data/cifar10-train.tar.xz", help="JPEGs in class folders, as a tar")
    parser.add_argument("--photos", default="../shared/data/photos-300.tar", help="photographs, as a tar")
    parser.add_argument("--peers", help="an environment with the other libraries (benchmarks/peers/)")
    parser.add_argument("--work", default="runs/benchmarks", help="where sets are made")
    parser.add_argument("--minutes", type=float, help="begin nothing that is expected to end later than this")
    options = parser.parse_args(argv)
    if not options.run:
        print(table())
        return 0
    if not options.device:
        parser.error("--run needs --device, such as cpu2")
    began, failed = time.monotonic(), []
    for record in RECORDS:
        if not (record.name in options.run or any(GROUPS[group](record) for group in options.run if group in GROUPS)):
            continue
        left = math.inf if options.minutes is None else options.minutes - (time.monotonic() - began) / 60
        if record.minutes > left:
            print(f"{record.name}: left for another time: about {record.minutes} min, and {max(0, left):.1f} are left", flush=True)
        elif not measured(record, options):
            failed.append(record.name)
    print(table(options.device))
    if failed:
        raise UserError(f"not measured: {', '.join(failed)}; their output stands above")
    return 0


def measured(record: Record, options: argparse.Namespace) -> bool:
    """Whether it was, or needs what is not here, which is said."""
    lacking = (
        "a GPU" if record.gpu and not torch.cuda.is_available() else "--peers" if "{peers}" in record.command and not options.peers else ""
    )
    if lacking:
        print(f"{record.name}: left out, it needs {lacking}", flush=True)
        return True
    work = Path(options.work).resolve()
    given = {"images": options.images, "photographs": options.photos, "work": work, "peers": options.peers}
    made = {name: work / name for name in SETS if f"{{{name}}}" in record.command}
    for name, folder in made.items():
        if not folder.exists() and not run(filled(SETS[name], **given)):
            return False
    out = RESULTS / f"{options.device}-{record.name}.json"
    return run(filled(record.command, out=out, peers=options.peers, **made))


def filled(command: str, **values: object) -> str:
    """A line for the shell, in which each value is one word or a part of one, whatever it holds."""
    return command.format(**{name: shlex.quote(str(value)) for name, value in values.items()})


def run(command: str) -> bool:
    print(f"$ {command}", flush=True)
    began = time.perf_counter()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    status = subprocess.run(command, shell=True, cwd=ROOT, env=os.environ | {"PATH": path}).returncode
    print(f"  {'done' if status == 0 else f'failed ({status})'} after {time.perf_counter() - began:.0f} s", flush=True)
    return status == 0


def table(device: str = "") -> str:
    """A line for each record of RECORDS that is there, and what is not yet measured."""
    lines = []
    for path in sorted(RESULTS.glob(f"{device or '*'}-*.json")):
        name = path.stem.partition("-")[2]
        if name in BY_NAME:
            record = json.loads(path.read_text())
            where = record.get("environment", {})
            lines.append(
                f"{path.stem}  ({where.get('commit', 'commit unknown')}, torch {where.get('torch', '?')})\n    {BY_NAME[name].told(record)}"
            )
    there = {path.stem.partition("-")[2] for path in RESULTS.glob("*.json")}
    missing = [record.name for record in RECORDS if record.name not in there]
    return "\n".join([*lines, *([f"not yet measured anywhere: {', '.join(missing)}"] if missing else [])])


if __name__ == "__main__":
    run_program(main)
