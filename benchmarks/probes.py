"""How long mpp's probes take on features that are there already, beside scikit-learn, lightly and big_vision's few-shot formula on the same features.

    python benchmarks/probes.py TRAIN_X TRAIN_Y TEST_X TEST_Y --out benchmarks/results/DEVICE-probes-DATASET.json [--peers FOLDER] [--rounds 3]

Features float32 [n, D] and labels integers [n], as .npy, or as FILE.safetensors:NAME.  `--peers` is where lightly lies (pip install --no-deps
--target FOLDER lightly pytorch-lightning lightning-utilities torchmetrics); without it lightly is left out.  In each round every contender runs
once, in turn, in this process with all its threads; medians are over rounds, ratios peer / mpp are taken round by round.  A contender gets the
features as its users hand them over: scikit-learn standardised ones for logistic regression (its StandardScaler is timed too) and raw ones for
neighbours, lightly normalised ones.  Prints a table and writes OUT.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from mpp.base.machine import usable_cores
from mpp.disk.files import write_atomically
from mpp.train.run_folder import environment
from mpp.transfer.metrics import wilson
from mpp.transfer.probes import few_shot
from mpp.transfer.probes.knn import nearest, vote
from mpp.transfer.probes.logistic import fit_path

CPU = torch.device("cpu")
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
GRID, K, TEMPERATURE = (10, 20, 100, 200), 20, 0.07
SHOTS, L2 = 10, 2.0**10  # big_vision's common_fewshot.py
BIAS_CONSTANT = 100.0  # big_vision's constant column


class Problem:
    def __init__(self, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray):
        self.train_x, self.test_x = np.ascontiguousarray(train_x, np.float32), np.ascontiguousarray(test_x, np.float32)
        self.train_y, self.test_y = train_y.astype(np.int64), test_y.astype(np.int64)
        self.classes = int(self.train_y.max()) + 1
        self.x, self.asked, self.y = torch.from_numpy(self.train_x), torch.from_numpy(self.test_x), torch.from_numpy(self.train_y)
        self.rows, self.columns = np.arange(len(train_x)), torch.arange(train_x.shape[1])


# Each contender returns its predictions [figures, m]: one line for every C, or for every k.


def ours_path(p: Problem) -> np.ndarray:
    path = fit_path(p.x, p.rows, p.train_y, p.classes, p.columns, STRENGTHS, device=CPU)
    if not all(path.converged):
        print(f"mpp: not converged at C={[c for c, done in zip(path.strengths, path.converged, strict=True) if not done]}")
    return path.predict(p.asked, np.arange(len(p.test_x)))[0].numpy()


def sklearn_path(p: Problem) -> np.ndarray:
    scaler = StandardScaler().fit(p.train_x)
    x, asked = scaler.transform(p.train_x), scaler.transform(p.test_x)
    model = LogisticRegression(max_iter=1000, warm_start=True)
    found = []
    for strength in STRENGTHS:
        model.C = strength
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(x, p.train_y)
        if said:
            print(f"scikit-learn: not converged after {model.n_iter_.max()} iterations at C={strength:g}")
        found.append(model.predict(asked))
    return np.stack(found)


def ours_neighbours(p: Problem, grid: Sequence[int]) -> np.ndarray:
    similarity, index = nearest(p.asked, p.x, p.rows, p.columns, max(grid), CPU)
    return vote(similarity, p.y[index], p.classes, grid, [TEMPERATURE])[0][0].numpy()


def sklearn_neighbours(p: Problem, grid: Sequence[int]) -> np.ndarray:
    found = []
    for k in grid:
        weigh = lambda distance: np.exp((1 - distance) / TEMPERATURE)
        model = KNeighborsClassifier(k, metric="cosine", weights=weigh, n_jobs=-1).fit(p.train_x, p.train_y)
        found.append(model.predict(p.test_x))
    return np.stack(found)


def lightly_neighbours(p: Problem, grid: Sequence[int], knn_predict: Callable) -> np.ndarray:
    normalize = torch.nn.functional.normalize
    bank, found = normalize(p.x, dim=1).T.contiguous(), []
    for k in grid:
        parts = [
            knn_predict(block, bank, p.y, p.classes, knn_k=k, knn_t=TEMPERATURE)[:, 0] for block in normalize(p.asked, dim=1).split(256)
        ]
        found.append(torch.cat(parts).numpy())
    return np.stack(found)


def shots_of(p: Problem) -> np.ndarray:
    return few_shot.draw_shots(p.train_y, p.rows, [str(c) for c in range(p.classes)], SHOTS, 0, 0)


def ours_shots(p: Problem) -> np.ndarray:
    rows = shots_of(p)
    return few_shot.fit(p.x[rows], p.y[rows], p.classes, [L2], CPU).predict(p.asked)[0].numpy()


def big_vision_shots(p: Problem) -> np.ndarray:
    """Least squares to {-1, 1} on standardised features and a constant column, in float32, as its formula has it."""
    rows = shots_of(p)
    x = p.train_x[rows]
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    x, asked = (np.pad((part - mean) / deviation, ((0, 0), (0, 1)), constant_values=BIAS_CONSTANT) for part in (x, p.test_x))
    targets = 2 * np.eye(p.classes, dtype=np.float32)[p.train_y[rows]] - 1
    wide = x.shape[1] > len(x)
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    left, right = (x.T @ vectors, vectors.T @ targets) if wide else (vectors, vectors.T @ (x.T @ targets))
    return (asked @ ((left / (values + L2)) @ right)).argmax(1)[None]


def tasks(peers: bool) -> dict[str, dict[str, Callable[[Problem], np.ndarray]]]:
    one, several = [K], list(GRID)
    found = {
        "logistic regression, 6 strengths": {"mpp": ours_path, "scikit-learn": sklearn_path},
        f"k-NN, k {K}": {"mpp": lambda p: ours_neighbours(p, one), "scikit-learn": lambda p: sklearn_neighbours(p, one)},
        f"k-NN, k {', '.join(map(str, GRID))}": {
            "mpp": lambda p: ours_neighbours(p, several),
            "scikit-learn": lambda p: sklearn_neighbours(p, several),
        },
        f"few-shot, {SHOTS} a class, l2 2^10": {"mpp": ours_shots, "big_vision's formula": big_vision_shots},
    }
    if peers:
        from lightly.utils.benchmarking.knn import knn_predict

        found[f"k-NN, k {K}"]["lightly"] = lambda p: lightly_neighbours(p, one, knn_predict)
        found[f"k-NN, k {', '.join(map(str, GRID))}"]["lightly"] = lambda p: lightly_neighbours(p, several, knn_predict)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Time mpp's probes beside scikit-learn's, lightly's and big_vision's on the same features."
    )
    parser.add_argument("features", nargs=4, metavar="FILE", help="TRAIN_X TRAIN_Y TEST_X TEST_Y")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers", type=Path, help="a folder with lightly in it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="", help="of the features, for the record")
    options = parser.parse_args(argv)
    if options.peers:
        sys.path.append(str(options.peers))
    torch.set_num_threads(usable_cores())
    problem = Problem(*map(read, options.features))
    contenders = tasks(bool(options.peers))
    seconds: dict[str, dict[str, list[float]]] = {task: {name: [] for name in group} for task, group in contenders.items()}
    predicted: dict[str, dict[str, np.ndarray]] = {task: {} for task in contenders}
    for number in range(options.rounds):
        for task, group in contenders.items():
            for name in list(group)[number % len(group) :] + list(group)[: number % len(group)]:  # nobody is always first
                began = time.perf_counter()
                predicted[task][name] = group[name](problem)
                seconds[task][name].append(round(time.perf_counter() - began, 3))
    results = {task: summary(seconds[task], predicted[task], problem.test_y) for task in contenders}
    about: dict[str, Any] = {
        "environment": environment() | {"scikit-learn": sklearn.__version__, "threads": torch.get_num_threads()},
        "command": ["probes.py", *(sys.argv[1:] if argv is None else argv)],
        "features": {
            "name": options.name,
            "train": list(problem.train_x.shape),
            "test": list(problem.test_x.shape),
            "classes": problem.classes,
        },
        "strengths": STRENGTHS,
        "rounds": options.rounds,
        "results": results,
    }
    write_atomically(options.out, (json.dumps(about, indent=1) + "\n").encode())
    print(markdown(results))
    return 0


def read(file: str) -> np.ndarray:
    path, _, name = file.partition(".safetensors:")
    return safetensors.numpy.load_file(f"{path}.safetensors")[name] if name else np.load(file)


def summary(seconds: dict[str, list[float]], predicted: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, Any]:
    """For each contender: seconds by round, accuracies (one a strength or k) with intervals, and how often it agrees with mpp."""
    found = {}
    for name, times in seconds.items():
        right = [int((line == truth).sum()) for line in predicted[name]]
        found[name] = {
            "seconds": times,
            "median_seconds": statistics.median(times),
            "times_mpp": statistics.median(other / ours for other, ours in zip(times, seconds["mpp"], strict=True)),
            "accuracy": [count / len(truth) for count in right],
            "ci95": [wilson(count, len(truth)) for count in right],
            "agrees_with_mpp": (predicted[name] == predicted["mpp"]).mean(1).tolist(),
        }
    return found


def markdown(results: dict[str, Any]) -> str:
    lines = ["| probe | by | seconds | x mpp | top-1, % | same class as mpp, % |", "|---|---|---|---|---|---|"]
    for task, group in results.items():
        for name, row in group.items():
            accuracy = " ".join(f"{100 * value:.2f}" for value in row["accuracy"])
            agrees = f"{100 * min(row['agrees_with_mpp']):.2f}"
            lines.append(f"| {task} | {name} | {row['median_seconds']:.2f} | {row['times_mpp']:.2f} | {accuracy} | {agrees} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
