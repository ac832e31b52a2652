"""The tables of docs/results.md, "Every recipe in one table", from the records of cifar_runs.py.

    python benchmarks/cifar_table.py                # write them between their marks on the page, which name the records
    python benchmarks/cifar_table.py --check        # exit 1 where page and records disagree, and say where
    python benchmarks/cifar_table.py --print runs/cifar/records.json        # a series that is not on the page

Figures on the test split are shown as soon as there are any; until then those on a hold-out of train, and the page says so.
"""

import argparse
import difflib
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_records import read_records

from mpp.base.errors import DataError, Parser, run_program
from mpp.base.text import counted, say, say_lines
from mpp.disk.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
BEGIN, END = "<!-- written by benchmarks/cifar_table.py from {}: begin -->", "<!-- end -->"  # {}: a file of RESULTS
# Row -> how it is called, what the encoder sees, what is predicted.
RECIPES = {
    "mpp": ("mean colour", "50 % corrupted", "3-bit mean colour"),
    "grid": ("colour grid", "50 % corrupted", "3-bit colour of every pixel"),
    "l2": ("L2", "50 % corrupted", "pixels"),
    "mae": ("MAE", "75 % dropped", "normalised pixels"),
    "crossmae": ("CrossMAE", "75 % dropped", "normalised pixels of a third of them"),
    "pixio": ("Pixio", "75 % dropped in squares", "normalised pixels"),
    "simmim": ("SimMIM", "60 % [mask] in squares", "pixels, L1"),
    "maskfeat": ("MaskFeat", "40 % [mask] in blocks", "histograms of gradients"),
    "beit": ("BEiT", "50 % [mask]", "code of a codebook"),
    "data2vec": ("data2vec", "60 % [mask] in blocks", "averaged encoder's features"),
    "ijepa": ("I-JEPA", "a block is seen", "averaged encoder's features"),
    "capi": ("CAPI, features", "a rolled block is seen", "averaged encoder's features"),
    "capi_clusters": ("CAPI, clusters", "a rolled block is seen", "averaged encoder's clusters"),
    "salt": ("SALT", "75 % dropped", "features of the MAE above"),
    "colour": ("colourisation", "grey image", "3-bit mean colour"),
    "ab": ("colourisation, ab", "grey image", "colour of every pixel"),
    "rotation": ("rotation", "turned image", "by how much"),
}
BASELINES = {"raw pixels": "raw pixels", "random init": "random initialisation", "from scratch": "from scratch"}
FEW = 3  # seeds whose figures are listed
WIDTH = 120  # of a line of prose
ABLATED, RATIOS = ("mpp", "grid", "l2"), (15, 50)
MODES = {  # in the order of preference
    "test": "All {images:,} test images, which each probing and each fine-tuning has read {reads}.",
    "hold-out": "**Development**: {images:,} images of train were held out of the labels that probes learn from{tuned}. No test image has been "
    "looked at.",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the records")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where page and records disagree")
    parser.add_argument("--print", type=Path, metavar="RECORDS", help="show the tables of these and leave the page alone")
    options = parser.parse_args(argv)
    if options.print:
        say_lines(section(read_records(options.print)))
        return 0
    page = options.page.read_text()
    wanted = filled(page, options.results, str(options.page))
    if page == wanted:
        return 0
    if options.check:
        say(f"{options.page} does not say what the records in {options.results} hold; python benchmarks/cifar_table.py writes it anew:")
        say_lines("\n".join(difflib.unified_diff(page.splitlines(), wanted.splitlines(), "page", "records", lineterm="", n=0)))
        return 1
    write_atomically(options.page, wanted.encode())
    return 0


def filled(page: str, results: Path, called: str) -> str:
    """A page with the tables of every records file that its marks name.  Raises DataError."""
    begin, end = (re.escape(mark).replace(r"\{\}", r"([\w.-]+)") for mark in (BEGIN, END))
    marks = re.findall(f"{begin}|({end})", page)
    names, ends = [name for name, _ in marks[::2]], marks[1::2]
    if not marks or len(marks) % 2 or not all(names) or not all(each for _, each in ends):
        raise DataError(
            f"{called} must hold the line {BEGIN.format('RECORDS.json')!r} and behind it the line {END!r}: the tables go between them"
        )

    def written(found: re.Match[str]) -> str:
        records = results / found[1]
        if not records.is_file():
            raise DataError(
                f"{called} names {found[1]}, and there is no {records}; write it with benchmarks/cifar_runs.py, or take the mark away"
            )
        return f"{BEGIN.format(found[1])}\n\n{section(read_records(records))}\n\n{END}"

    return re.sub(f"{begin}.*?{end}", written, page, flags=re.DOTALL)


def section(records: Mapping[str, Any]) -> str:
    mode = next((mode for mode in MODES if records["measured"].get(mode)), None)
    if mode is None:
        return "Not yet measured."
    measured, runs = records["measured"][mode], records["runs"]
    probed, tuned = measured.get("probe", {"lines": []}), measured.get("finetune", {"lines": []})
    parts = [
        settings(runs, mode, probed, tuned),
        rows_table(runs, probed["lines"], tuned["lines"]),
        ablation_table(probed["lines"], tuned["lines"]),
        against_random(probed["lines"]),
    ]
    return "\n\n".join(part for part in parts if part)


def settings(runs: Mapping[str, Any], mode: str, probed: Mapping[str, Any], tuned: Mapping[str, Any]) -> str:
    samples = sorted({run["samples"] for run in runs.values()})
    commits = sorted({str(run["environment"]["commit"]) for run in runs.values()})
    machines = sorted({machine(run["environment"]) for run in runs.values()})
    times = max(program.get("test_reads", 0) for program in (probed, tuned))
    reads = "once" if times == 1 else f"up to {times} times"
    labels = sorted({figure["labels"] for line in tuned["lines"] for figure in line["figures"].values()})
    held_out_too = f", {tuned['images']:,} of those that are fine-tuned on" if labels else ""
    said = [
        f"{counted(len(runs), 'run')} of {' or '.join(f'{count:,}' for count in samples)} samples, {', '.join(machines)}, "
        f"commit {', '.join(commits)}.",
        MODES[mode].format(images=probed.get("images", 0), tuned=held_out_too, reads=reads),
        "Top-1 in %, ± half of a 95 % interval; of several seeds the mean, and in brackets each, or of more than three the lowest and highest.",
        *([f"Fine-tuned on {' or '.join(f'{count:,}' for count in labels)} labels."] if labels else []),
    ]
    return textwrap.fill(" ".join(said), WIDTH, break_on_hyphens=False)


def machine(environment: Mapping[str, Any]) -> str:
    gpu = f"{environment['gpu']}, " if environment.get("gpu") else ""
    return f"{gpu}{counted(environment['cpus'], 'CPU core')}, torch {environment['torch']}"


Lines = Sequence[Mapping[str, Any]]


def rows_table(runs: Mapping[str, Any], probed: Lines, tuned: Lines) -> str:
    table = [
        "| recipe | sees | predicts | core seconds | hold-out skill | linear, best place | place | linear, last block | k-NN, best place | k-NN, last block | 10-shot | fine-tuned |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, name in BASELINES.items():
        for line in [line for line in (*probed, *tuned) if line["kind"] == kind]:
            beside = "" if line["run"] in ("mpp_s0", "scratch_s0") else f", encoder of {RECIPES[row_of(line)][0]}"
            if kind != "raw pixels" or not beside:
                table.append(cells([name + beside, "-", "-", "-", "-", *figures(line, None if kind != "from scratch" else line)]))
    for row, (name, sees, predicts) in RECIPES.items():
        found, fine = together(probed, row), together(tuned, row)
        own = [run for run in sorted(runs) if run.rpartition("_s")[0] == row]
        if found is None or not own:
            continue
        skills = [runs[run]["holdout_skill"] for run in own]
        skill = "-" if None in skills else several(skills, 3)
        table.append(cells([name, sees, predicts, seconds([runs[run] for run in own]), skill, *figures(found, fine)]))
    return "\n".join(table)


def row_of(line: Mapping[str, Any]) -> str:
    return str(line["run"]).rpartition("_s")[0]


def together(lines: Lines, row: str) -> Mapping[str, Any] | None:
    """A row's line: of all its seeds where there are several."""
    return max(
        (line for line in lines if row_of(line) == row and line["kind"] in ("pretrained", "fine-tuned")),
        key=lambda line: line["seeds"],
        default=None,
    )


def figures(line: Mapping[str, Any], tuned: Mapping[str, Any] | None) -> list[str]:
    """linear at its best place, that place, linear at the last block, k-NN likewise, 10-shot, fine-tuned."""
    found = line["figures"]
    place = found.get("linear", {}).get("place", "-")
    return [
        shown(found.get("linear")),
        place,
        *(shown(found.get(column)) for column in ("linear/last", "knn", "knn/last", "few_shot/10")),
        shown(tuned["figures"].get("finetune")) if tuned else "-",
    ]


def shown(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    low, high = figure["ci95"]
    mean = f"{100 * figure['accuracy']:.1f} ±{50 * (high - low):.1f}"
    seeds = [100 * sum(draws) / len(draws) for draws in figure["by_run"]]
    if len(seeds) > FEW:
        return f"{mean} ({min(seeds):.1f} to {max(seeds):.1f})"
    return f"{mean} ({', '.join(f'{value:.1f}' for value in seeds)})" if len(seeds) > 1 else mean


def seconds(runs: Lines) -> str:
    """Of one core; what a killed start has taken is not known."""
    killed = any(run["starts"] > 1 for run in runs)
    return ("at least " if killed else "") + several([run["cpu_seconds"]["pretrain"] for run in runs], 0)


def several(each: Sequence[float], digits: int) -> str:
    words = [f"{value:.{digits}f}" for value in each]
    return f"{sum(each) / len(each):.{digits}f} ({', '.join(words)})" if len(each) > 1 else words[0]


def cells(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def ablation_table(probed: Lines, tuned: Lines) -> str:
    """The ViT paper's own (B.1.2); empty without any run of it."""
    if not any(row_of(line) == f"{row}_{RATIOS[0]}" for line in probed for row in ABLATED):
        return ""
    columns = (("linear", "linear", probed), ("k-NN", "knn", probed), ("fine-tuned", "finetune", tuned))
    heads = [f"{title}, {ratio} % corrupted" for title, _, _ in columns for ratio in RATIOS]
    table = [
        "The ViT paper's own ablation (B.1.2), one seed, all else equal:",
        "",
        cells(["target", *heads]),
        cells(["---"] * (1 + len(heads))).replace(" ", ""),
    ]
    for row in ABLATED:
        found = [alone(lines, f"{row}_{ratio}_s0" if ratio != 50 else f"{row}_s0") for _, _, lines in columns for ratio in RATIOS]
        keys = [key for _, key, _ in columns for _ in RATIOS]
        table.append(
            cells([RECIPES[row][2], *(shown(line["figures"].get(key)) if line else "-" for line, key in zip(found, keys, strict=True))])
        )
    return "\n".join(table)


def alone(lines: Lines, run: str) -> Mapping[str, Any] | None:
    return next(
        (line for line in lines if line["run"] == run and line["seeds"] == 1 and line["kind"] in ("pretrained", "fine-tuned")), None
    )


def against_random(probed: Lines) -> str:
    """A line for each row that is not shown to beat random initialisation of its encoder."""
    said = []
    for row, (name, *_) in RECIPES.items():
        line = together(probed, row)
        beside = line["beside"] if line else None
        if beside and beside["ci95"][0] <= 0:
            low, high = (100 * end for end in beside["ci95"])
            said.append(
                f"* **{name}** is not shown to beat random initialisation: linear {100 * beside['difference']:+.1f} points ({low:+.1f} to {high:+.1f})."
            )
    return "\n".join(said) or (
        "* Every row beats random initialisation in the linear probe." if any(line["beside"] for line in probed) else ""
    )


if __name__ == "__main__":
    run_program(main)
