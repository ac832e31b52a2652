"""The table of docs/results.md, "Pretrained and probed": each small recipe, pretrained on CIFAR-10 (JPEG) with the same encoder for the same number of samples, then probed.

    python benchmarks/cifar_table.py --train SHARDS/train --test SHARDS/test --out runs/cifar [--seeds 0 1] [--jobs 2]
        [--pretrain key=value ...] [--probe key=value ...]

A run that is finished is not repeated, so the command can be given again.  `--jobs` runs go on at once, each on its share of the cores.
Without --test every figure is on a hold-out of train: for development.  Prints a Markdown table and writes OUT/table.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from mpp.machine import usable_cores

RECIPES = ("mpp", "grid", "l2", "mae")
COLUMNS = ("linear", "knn", "few_shot_5", "few_shot_10", "feature_rank")
_ports = count(29800)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pretrain and probe the four small recipes on CIFAR-10 (JPEG).")
    parser.add_argument("--train", required=True, help="labelled shards; the labels are used by the probes only")
    parser.add_argument("--test", help="labelled shards, read once a run; left out: a hold-out of train")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument(
        "--pretrain", nargs="+", default=[], metavar="key=value", help="for mpp/pretrain.py, such as optim.total_samples=4e6"
    )
    parser.add_argument("--probe", nargs="+", default=[], metavar="key=value", help="for mpp/linear_probe.py, such as train_samples=10000")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    options = parser.parse_args(argv)
    threads = max(1, usable_cores() // options.jobs)
    runs = [(recipe, seed) for recipe in options.recipes for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda run: one_run(*run, options, threads), runs))
    table = {f"{recipe}_s{seed}": result for (recipe, seed), result in zip(runs, results, strict=True)}
    (options.out / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    print(markdown(options.recipes, options.seeds, table))
    return 0


def one_run(recipe: str, seed: int, options: argparse.Namespace, threads: int) -> dict:
    run = options.out / f"{recipe}_s{seed}"
    run.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if not (run / "encoder" / "config.json").exists():
        launch = ["deepspeed", "--num_gpus", "1", "--master_port", str(next(_ports)), "mpp/pretrain.py"]
        words = [
            "--config",
            f"configs/cifar_{recipe}.yaml",
            f"data.shards={options.train}",
            f"run_dir={run}",
            f"seed={seed}",
            *options.pretrain,
        ]
        with (run / "console.log").open("a") as log:
            subprocess.run([*launch, *words], env=environment, stdout=log, stderr=log, check=True)
    results = run / "transfer" / "results.json"
    if not results.exists():
        words = [f"encoder={run}", f"train={options.train}", f"seed={seed}", f"out={results.parent}", *options.probe]
        words += [f"test={options.test}"] if options.test else []
        with (run / "console.log").open("a") as log:
            subprocess.run([sys.executable, "mpp/linear_probe.py", *words], env=environment, stdout=log, stderr=log, check=True)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in metrics if "speed/samples_per_second" in row]
    samples, seconds = 0, 0.0
    for row in logged:
        seconds += (row["samples"] - samples) / row["speed/samples_per_second"]
        samples = row["samples"]
    return {
        "samples": samples,
        "seconds": round(seconds, 1),
        "holdout_skill": next(row["holdout/skill"] for row in reversed(metrics) if "holdout/skill" in row),
        "baseline": json.loads((run / "baseline.json").read_text())["name"],
        "environment": json.loads((run / "environment.json").read_text()),
        "probe": json.loads(results.read_text()),
    }


def markdown(recipes: Sequence[str], seeds: Sequence[int], table: dict[str, dict]) -> str:
    """One row a recipe, the mean over seeds with each seed's figure in brackets; the baselines first."""
    lines = [
        "| recipe | samples seen | seconds | hold-out skill | linear | k-NN | 5-shot | 10-shot | rank, uncentred |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("raw pixels", "random init"):
        rows = [figures(result["probe"]["rows"][name]) for result in table.values()]
        # Raw pixels differ by the probe's seed alone, random init by the seed of the weights too: one figure a seed.
        per_seed = rows[: len(seeds)]
        lines.append(f"| {name} | 0 | - | - | " + " | ".join(spread([row[column] for row in per_seed]) for column in COLUMNS) + " |")
    for recipe in recipes:
        runs = [table[f"{recipe}_s{seed}"] for seed in seeds]
        rows = [figures(run["probe"]["rows"]["pretrained"]) for run in runs]
        cells = [f"{runs[0]['samples']:,}", spread([run["seconds"] for run in runs], 0), spread([run["holdout_skill"] for run in runs], 3)]
        cells += [spread([row[column] for row in rows]) for column in COLUMNS]
        lines.append(f"| {recipe} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 1) -> str:
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ({each})" if len(values) > 1 else each


def figures(row: dict) -> dict[str, float]:
    """results.json's row -> one number a column, accuracies in percent; the rank is RankMe's, as in results of all ages."""
    ranks = row["feature_rank"]
    accuracy = {"linear": row["linear"], "knn": row["knn"], "few_shot_5": row["few_shot"]["5"], "few_shot_10": row["few_shot"]["10"]}
    return {name: 100 * figure["accuracy"] for name, figure in accuracy.items()} | {
        "feature_rank": ranks["rank_uncentred"] if isinstance(ranks, dict) else ranks,
    }


if __name__ == "__main__":
    raise SystemExit(main())
