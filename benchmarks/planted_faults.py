"""What curves look like when all is well, and when something is wrong: short runs on the demo's digits, each fault planted and run.

    python benchmarks/planted_faults.py --digits demo/digits --out benchmarks/results/DEVICE-faults.json [--only rate leak]
    python benchmarks/planted_faults.py --drawn benchmarks/results/cpu2-faults.json --plots docs/curves       # the pictures of docs/normal.md alone

A fault is words of the command line, other images, or a patch of the code that only this program makes (PATCHES).  Each run is a process of its own;
the record has its words, the rows of its metrics.jsonl and its verdict; the notes follow from the rows (mpp/monitor/signs.py).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from PIL import Image

from mpp.base.errors import UserError, run_program
from mpp.base.text import say
from mpp.monitor.board import rows_of
from mpp.monitor.figures import FIGURES
from mpp.train.run_folder import environment

ROOT = Path(__file__).parents[1]
SHORT = "optim.total_samples=64_000 optim.warmup_samples=6_400 log.every_steps=20 log.holdout_every_steps=50 log.pictures_every_steps=500 "
SHORT += "evaluate.every_steps=50 evaluate.images=300"
DIGITS = f"--config configs/demo_digits.yaml {SHORT}"
# As I-JEPA, with the demo's mask and decoder.
AVERAGE = "target={name: features, blocks: 1, norm_blocks: false, final_norm: true, beta: 1.0, ema_start: EMA, ema_end: EMA}"


@dataclass(frozen=True)
class Run:
    title: str
    words: str
    images: str = "grey"  # of IMAGES
    beside: str = "healthy"  # the run it is drawn beside


RUNS = {
    "healthy": Run("healthy", DIGITS),
    "rate": Run("25 times the learning rate", f"{DIGITS} optim.base_lr=0.05"),
    "leak": Run("the encoder sees the patches it should predict", DIGITS),
    "misaligned": Run("each image has the target of another", DIGITS),
    "one colour": Run("images of one grey level each", DIGITS, "flat"),
    "channel": Run("blue is 128 in all pixels of all images", DIGITS, "blue"),
    "teacher": Run("healthy, with a teacher", f"{DIGITS} {AVERAGE.replace('EMA', '0.996')}", beside="teacher"),
    "collapse": Run("the teacher is the encoder itself, goals not normalised", f"{DIGITS} {AVERAGE.replace('EMA', '0').replace('beta', 'norm: false, beta')}", beside="teacher"),
}  # fmt: skip
PANELS = ("train/loss", "holdout/skill", "features/rank", "features/deviation", "features/linear", "optim/gradient_norm")
PANELS_OF_A_TEACHER = ("train/loss", "teacher/deviation", *PANELS[2:])


def leak() -> None:
    """The mask upside down: what is predicted is what is seen."""
    from mpp.recipe.masking import Masking

    real = Masking.draw_all
    Masking.draw_all = lambda self, draws: (masks := real(self, draws))._replace(visible=masks.predicted)  # type: ignore[method-assign]


def misaligned() -> None:
    """Goals one image further than inputs."""
    from mpp.recipe.targets.pixels import Pixels

    real = Pixels.__call__
    Pixels.__call__ = lambda self, images, masks, teacher=None: real(self, images.roll(1, 0), masks, teacher)  # type: ignore[method-assign]


PATCHES: dict[str, Callable[[], None]] = {"leak": leak, "misaligned": misaligned}


def flat(grey: np.ndarray) -> np.ndarray:
    return np.full_like(grey, round(float(grey.mean())))


def blue(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey, grey, np.full_like(grey, 128)], axis=-1)


IMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"grey": np.asarray, "flat": flat, "blue": blue}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Curves of healthy runs and of planted faults.")
    parser.add_argument("--digits", type=Path, help="what data_prep/demo_digits.py has made")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), help="others in the record of --out stay")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--drawn", type=Path, help="the record of another time, to draw")
    parser.add_argument("--plots", type=Path, help="a folder for the pictures")
    parser.add_argument(
        "--planted", nargs=argparse.REMAINDER, help=argparse.SUPPRESS
    )  # a fault and words: what the process of one run is called with
    options = parser.parse_args(argv)
    if options.planted:
        return planted(options.planted[0], options.planted[1:])
    file = options.drawn or options.out
    if file is None or not (options.drawn or options.digits):
        raise UserError("give --digits and --out to run, or --drawn to draw a record")
    if not options.drawn:
        record(options.digits.absolute(), options.only, options.out)
    if options.plots:
        options.plots.mkdir(exist_ok=True)
        draw_all(json.loads(file.read_text())["runs"], options.plots)
    return 0


def planted(name: str, words: Sequence[str]) -> int:
    from mpp.pretrain import main as pretrain

    if name in PATCHES:
        PATCHES[name]()
    return pretrain(words)


def record(digits: Path, names: Sequence[str], out: Path) -> None:
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    found["environment"] = environment()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found["runs"][name] = run(
                name, shards_of(digits, RUNS[name].images, Path(folder)), Path(folder) / "runs" / name.replace(" ", "-")
            )
            out.write_text(json.dumps(found, separators=(",", ":")).replace('{"samples"', '\n{"samples"') + "\n")  # a line for each row


def shards_of(digits: Path, images: str, folder: Path) -> Path:
    """Shards of the digits as IMAGES[images] has them."""
    out = folder / f"shards-{images}"
    if not out.exists():
        source = folder / images
        for path in sorted(digits.glob("*/*.png")):
            (source / path.parent.name).mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                Image.fromarray(IMAGES[images](np.asarray(image))).save(source / path.parent.name / path.name)
        words = ["data_prep/make_shards.py", str(source), str(out), "--labels", "--val", "1000", "--quiet"]
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
        shutil.rmtree(source)
    return out


def run(name: str, shards: Path, run_dir: Path) -> dict[str, Any]:
    words, began = [*words_of(RUNS[name].words), f"data.shards={shards / 'train'}", f"run_dir={run_dir}"], time.perf_counter()
    command = [sys.executable, __file__, "--planted", name, *words]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    said = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if line.startswith(("note:", "verdict", "error:")) or "no skill is defined" in line
    ]
    # What a clock says is of no use here.
    rows = [{key: rounded(value) for key, value in row.items() if not key.startswith("speed/")} for row in rows_of(run_dir)]
    if done.returncode and not rows:
        raise UserError(f"the run '{name}' failed: {said or done.stderr[-500:]}")
    say(f"{name}: {time.perf_counter() - began:.0f} s, status {done.returncode}")
    for line in said:
        say(f"  {line}")
    kept = [
        line for line in said if not line.startswith("note:")
    ]  # notes follow from the rows (mpp/monitor/signs.py), by the rules of the day
    return {"words": RUNS[name].words, "images": RUNS[name].images, "status": done.returncode, "said": kept, "rows": rows}


def words_of(text: str) -> list[str]:
    """Words at spaces that stand in no {braces}."""
    words = [""]
    for letter in text:
        if letter == " " and words[-1].count("{") == words[-1].count("}"):
            words.append("")
        else:
            words[-1] += letter
    return words


def rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.4g}")


def draw_all(runs: dict[str, Any], folder: Path) -> None:
    for name, each in RUNS.items():
        if name in runs and each.beside in runs:
            drawn = {each.beside: runs[each.beside]} | {name: runs[name]}
            draw(drawn, PANELS_OF_A_TEACHER if each.beside == "teacher" else PANELS).savefig(
                folder / f"{name.replace(' ', '-')}.png", dpi=110
            )


def draw(runs: dict[str, Any], panels: Sequence[str]) -> Figure:
    """The first one is the healthy run."""
    matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})
    figure = Figure(figsize=(13, 2.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for number, (name, each) in enumerate(runs.items()):
            points = [(row["samples"] / 1000, row[panel]) for row in each["rows"] if row.get(panel) is not None]
            only = len(runs) == 1
            style = {"color": "#2166ac" if only or number == 0 else "#d6604d", "lw": 1.8, "zorder": 2 + number}
            label = RUNS[name].title
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else "", markersize=3, **style)
            else:
                axes.plot([], [], label=label, **style)
                axes.text(0.6, 0.08, "not defined" if number else "", transform=axes.transAxes, ha="center", color=style["color"])
        axes.set_title("linear probe, share right" if panel == "features/linear" else FIGURES[panel].title, fontsize=9)
        axes.set_xlabel("thousand samples")
        if panel == "features/linear":
            axes.set_ylim(0, 1)
        elif panel in ("features/rank", "features/deviation", "teacher/deviation"):
            axes.set_ylim(bottom=0)
        elif panel in ("train/loss", "optim/gradient_norm"):
            axes.set_yscale("log")
            for axis_ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                axis_ticks(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if spans_less_than(axes, 30) else ()))
        axes.set_xlim(left=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def spans_less_than(axes: Axes, times: float) -> bool:
    low, high = axes.get_ylim()
    return high / low < times


if __name__ == "__main__":
    run_program(main)
