"""One run, or several beside each other, as what a template is filled with.

Everything on a page is of the run folder, so it can be computed again from it: curves from metrics.jsonl, the table from results.json.
"""

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import mpp
from mpp.base.text import counted, printable, sized
from mpp.data.shards import flat_channels
from mpp.data.streams import in_words, is_stream
from mpp.monitor.figures import figure_of
from mpp.pages.charts import Chart, Points, draw
from mpp.pages.run_folder import FINE_TUNING, PRETRAINING, RunFolder
from mpp.train.progress import clock
from mpp.transfer.common_table import CommonTable, run_name
from mpp.transfer.results import RESULTS, Result, find_results
from mpp.transfer.table import ALWAYS, FINETUNED, SCRATCH, TUNED, rank_cells, remarks_on_table

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_BAD = 10
PICTURES = ("layers.png", "confusion.png", "mistakes.png")
CAPTIONS = {
    "layers.png": "accuracy on a hold-out of train, by block",
    "confusion.png": "which class was taken for which",
    "mistakes.png": "the surest mistakes",
}


def render(template: str, **words: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(version=mpp.__version__, **words)


def embedded(picture: Path) -> str:
    """A PNG as an address that needs no network."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


@dataclass(frozen=True)
class Picture:
    title: str
    address: str


@dataclass(frozen=True)
class Table:
    """Rows of cells as they are shown."""

    title: str
    head: list[str]
    rows: list[list[str]]
    remarks: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


# Curves.


@dataclass(frozen=True)
class Drawn:
    title: str
    svg: Markup


def title_of(name: str) -> str:
    found = figure_of(name)
    return found.title if found else name


def charts_of(run: RunFolder) -> dict[str, list[Drawn]]:
    """Section -> its charts; a chart without a point is left out."""
    if run.kind == PRETRAINING:
        sections = {"Does it learn?": _learning(run), "Are the features any good?": _features(run)}
    else:
        sections = {"Does it learn?": _tuning(run)}
        run = (run.repeats or [run])[0]  # what follows is of the first
    sections |= {"Optimiser": _optimiser(run), "By depth": _depth(run), "Speed": _speed(run)}
    drawn = {title: drawn_of(charts) for title, charts in sections.items()}
    return {title: charts for title, charts in drawn.items() if charts}


def drawn_of(charts: Sequence[Chart]) -> list[Drawn]:
    """Those that have a point."""
    return [Drawn(chart.title, draw(chart)) for chart in charts if any(chart.lines.values())]


def _lines(run: RunFolder, named: Mapping[str, str]) -> dict[str, Points]:
    return {label: run.points(name) for label, name in named.items()}


def _band(run: RunFolder, name: str) -> tuple[str, Sequence[float], Sequence[float], Sequence[float]] | None:
    band = run.reference.bands.get(name) if run.reference else None
    return ("the reference's range", band.samples, band.low, band.high) if band else None


def _learning(run: RunFolder) -> list[Chart]:
    trivial = run.baseline.get("loss")
    level = (f"trivial: {run.baseline.get('name')}", float(trivial)) if trivial else None
    skill = {"training": "train/skill", "hold-out": "holdout/skill"}
    sources = {name.removeprefix("holdout/loss/"): run.points(name) for name in run.names("holdout/loss/")}
    return [
        Chart("skill", _lines(run, skill), "skill", band=_band(run, "holdout/skill"), level=("as good as the trivial rule", 0.0)),
        Chart("loss", _lines(run, {"training": "train/loss", "hold-out": "holdout/loss"}), "loss", level=level),
        Chart("hold-out loss by source", sources, "loss"),
    ]


def _features(run: RunFolder) -> list[Chart]:
    told = _lines(run, {"linear probe": "features/linear", "k-NN": "features/knn"})
    spread = {"deviation": "features/deviation", "mean cosine": "features/mean_cosine"}
    teacher = {
        "teacher, deviation": "teacher/deviation",
        "teacher, mean cosine": "teacher/mean_cosine",
        "told by the place": "target/position",
    }
    return [
        Chart("held-out images given their own class", told, "share", band=_band(run, "features/linear")),
        Chart(
            "rank of features",
            _lines(run, {"encoder": "features/rank", "teacher": "teacher/rank"}),
            "directions",
            band=_band(run, "features/rank"),
        ),
        Chart("how far features lie apart", _lines(run, spread), ""),
        Chart("the teacher", _lines(run, teacher), ""),
    ]


def _tuning(run: RunFolder) -> list[Chart]:
    if run.repeats:
        each = lambda name: {part.name.replace("-", " "): part.points(name) for part in run.repeats}
        return [
            Chart("top-1, hold-out", each("holdout/accuracy"), "share"),
            Chart("loss, training", each("train/loss"), "loss"),
            Chart("loss, hold-out", each("holdout/loss"), "loss"),
        ]
    accuracy = {"hold-out": "holdout/accuracy", "hold-out, average of weights": "holdout/accuracy_of_average", "test": "test/accuracy"}
    loss = {"training": "train/loss", "hold-out": "holdout/loss", "hold-out, average of weights": "holdout/loss_of_average"}
    return [Chart("top-1", _lines(run, accuracy), "share"), Chart("loss", _lines(run, loss), "loss")]


def _optimiser(run: RunFolder) -> list[Chart]:
    return [
        Chart("learning rate", _lines(run, {"learning rate": "optim/learning_rate"}), "learning rate"),
        Chart(
            "gradient norm, before clipping",
            _lines(run, {"all": "optim/gradient_norm"}),
            "gradient norm",
            log=_positive(run, "optim/gradient_norm"),
        ),
        Chart("weight decay", _lines(run, {"weight decay": "optim/weight_decay"}), "weight decay"),
        Chart("decay of the teacher's average", _lines(run, {"decay": "teacher/decay"}), "decay"),
    ]


def _depth(run: RunFolder) -> list[Chart]:
    def by_part(prefix: str) -> dict[str, Points]:
        return {name.removeprefix(prefix).replace("_", " "): run.points(name) for name in run.names(prefix) if not name.endswith("/mean")}

    gradients = by_part("norm/gradient/")
    positive = bool(gradients) and all(value > 0 for points in gradients.values() for _, value in points)
    return [
        Chart("gradient norm by depth", gradients, "gradient norm", log=positive),
        Chart("weight norm by depth", by_part("norm/weight/"), "weight norm"),
        Chart("attention distance by depth", by_part("attention/distance/"), "pixels"),
        Chart("attention entropy by depth", by_part("attention/entropy/"), "share of looking everywhere"),
    ]


def _speed(run: RunFolder) -> list[Chart]:
    phases = {title_of(name): run.points(name) for name in run.names("speed/") if name.endswith("_ms")}
    shares = {"share of the matrix rate (MFU)": "speed/mfu", "waiting for images": "speed/wait_share"}
    return [
        Chart("images a second", _lines(run, {"all processes": "speed/samples_per_second"}), "images/s"),
        Chart("where a step's time goes", phases, "ms a step"),
        Chart("shares", _lines(run, shares), "share"),
        Chart("memory, at its fullest", _lines(run, {"first process": "speed/peak_gb"}), "GB"),
    ]


def _positive(run: RunFolder, name: str) -> bool:
    return all(value > 0 for _, value in run.points(name))


# How it went.


@dataclass(frozen=True)
class Headline:
    mark: str  # "good", "bad", "open"
    words: str
    sentences: list[str]


def headline(run: RunFolder, tables: Sequence[Table]) -> Headline:
    """A sentence that says how it went, and what stands beside it."""
    seen, total = run.samples_seen, run.total_samples
    share = f"{seen:,} of {total:,} samples ({seen / total:.0%})" if total else f"{seen:,} samples"
    verdict = run.json("verdict.json") if run.kind == PRETRAINING else None
    sentences = []
    if run.kind == PRETRAINING and (course := run.points("features/linear")):
        (_, first), (at, last) = course[0], course[-1]
        sentences.append(
            f"A linear probe of its features tells {last:.1%} of held-out images their class at {int(at):,} samples; {first:.1%} before training."
        )
    elif run.kind == PRETRAINING and (course := run.points("features/rank")):
        sentences.append(
            f"Its features use {course[-1][1]:.1f} directions at {int(course[-1][0]):,} samples; {course[0][1]:.1f} before training."
        )
    sentences += [f"{words[0].upper()}{words[1:].rstrip('.')}." for table in tables for words in table.verdicts[:1]]
    if not run.rows and not run.repeats:
        return Headline("open", "This run has begun, and nothing is measured yet.", sentences)
    if verdict:
        mark = {"yes": "open" if run.notes else "good", "no": "bad"}.get(verdict.get("learned"), "open")
        return Headline(mark, _sentence(verdict["words"]), sentences)
    if run.finished and run.kind == FINE_TUNING:
        results = run.json("results.json") or {"rows": {}}
        row: Mapping[str, Any] = next((row for name, row in results["rows"].items() if name in (TUNED, SCRATCH)), {})
        told = (
            f": top-1 {_cell(row[FINETUNED])} % of {results['reported_images']:,} {'test' if results['reported_on'] == 'test' else 'held-out'} images"
            if FINETUNED in row
            else ""
        )
        times = f", {len(run.repeats)} times" if run.repeats else ""
        return Headline("open", f"Fine-tuned{times}{told}.", sentences)
    skill = run.last("holdout/skill")
    now = "" if skill is None else f"; hold-out skill {skill:+.3f}"
    return Headline("open", f"This run is at {share}{now}, and has not come to its end.", sentences)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}" + ("" if words.endswith(".") else ".")


# Transfer.


def results_below(runs: Sequence[RunFolder]) -> list[Result]:
    """Raises DataError for one that is damaged."""
    measured = [str(run.path) for run in runs if any(run.path.rglob(RESULTS))]
    return find_results(measured) if measured else []


def table_of(table: CommonTable, title: str, verdicts: Sequence[str], pictured: bool) -> Table:
    """title: what was measured on.  pictured: with the pictures that each measurement drew."""
    columns = list(table.columns.values())
    rows = [[line.name, *(_cell(column.figures.get(line.name, line.always.get(ALWAYS))) for column in columns)] for line in table.lines]
    marked = [["labels", *(column.said("labels") for column in columns)], ["draws", *(column.said("draws") for column in columns)]]
    rows_of = {line.name: ({} if line.feature_rank is None else {"feature_rank": line.feature_rank}) | line.always for line in table.lines}
    remarks = [" ".join(remark.split()) for remark in (*table.apart, *remarks_on_table(rows_of, columns))]
    remarks += [
        f"feature rank of {name}: {rank_cells(found['feature_rank'])[0]} directions"
        for name, found in rows_of.items()
        if "feature_rank" in found
    ]
    remarks += _overlaps(table.results)
    pictures = [
        Picture(CAPTIONS[name], embedded(result.folder / name))
        for result in table.results
        for name in PICTURES
        if pictured and (result.folder / name).exists()
    ]
    head = [f"top-1, % on {title}", *(column.title for column in columns)]
    return Table(title, head, [*marked, *rows] if columns else [], remarks, list(verdicts), pictures)


def _overlaps(results: Sequence[Result]) -> list[str]:
    """What is known of images seen before: once for all runs of which the same is known, and of which, where it differs."""
    known: dict[str, list[str]] = {}
    for result in results:
        if words := " ".join(((result.about.get("overlap") or {}).get("words") or "").split()):
            known.setdefault(words, []).append(run_name(result.folder, []))
    return [words if len(known) == 1 else f"{', '.join(runs)}: {words}" for words, runs in known.items()]


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure.get("accuracy") is None:
        return "–"
    interval = figure.get("ci95")
    return f"{100 * figure['accuracy']:.2f}" + (f" ±{50 * (interval[1] - interval[0]):.2f}" if interval else "")


# What it was trained on, what it took, and how to have it again.


def data_card(run: RunFolder) -> tuple[list[tuple[str, str]], list[str]]:
    """Rows of words, and notes."""
    rows, notes = [], []
    for number, word in enumerate(run.trained_on):
        of = f"[{number}]" if len(run.trained_on) > 1 else ""
        found = _set_card(run, word, ("shards" if run.kind == PRETRAINING else "train") + of)
        rows += found[0]
        notes += [f"{printable(word)}: {note}" if of else note for note in found[1]]
    if weights := (run.tree.get("data") or {}).get("weights"):
        rows.append(("weights", f"{', '.join(map(str, weights))}: how often each set was drawn from"))
    bad = run.bad_samples()
    rows.append(("bad samples", f"{int(run.last('data/bad_samples') or 0):,} could not be read while training, and were replaced"))
    skipped, spikes = (int(run.last(f"train/{name}") or 0) for name in ("skipped_steps", "loss_spikes"))
    if skipped or spikes:
        rows.append(("bad numbers", f"{skipped:,} steps were skipped, as their gradient was not finite; {spikes:,} loss spikes"))
    notes += [printable(f"{each.get('where')}: {each.get('reason')}") for each in bad[:SHOWN_BAD]]
    if len(bad) > SHOWN_BAD:
        notes.append(f"and {len(bad) - SHOWN_BAD:,} more in {run.path}/bad_samples.rank*.jsonl")
    return rows, notes


def _set_card(run: RunFolder, word: str, key: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Of one set.  key: by which the run knew its manifest."""
    found, rows, notes = run.manifest(word), [("images", printable(in_words(word)))], []
    if found is None and run.kind == PRETRAINING and is_stream(word):
        notes.append(
            "A stream of tars without an index: nobody has counted its images, and passes over them are not equal (docs/streams.md)."
        )
    elif found is None:
        notes.append("The set no longer lies there, or is no set of shards: counts and sizes are not known.")
    else:
        folder, manifest, digest = found
        sides = ", ".join(f"{count:,} from {side:,} pixels on" for side, count in manifest.short_sides)
        mean, std = (", ".join(f"{value:.3f}" for value in each) for each in (manifest.mean, manifest.std))
        rows += [
            ("count", f"{manifest.samples:,} in {counted(len(manifest.shards), 'shard')}, {sized(manifest.bytes)}"),
            (
                "classes",
                f"{len(manifest.classes):,}: {', '.join(map(printable, manifest.classes[:12]))}{', ...' if len(manifest.classes) > 12 else ''}"
                if manifest.classes
                else "no labels",
            ),
            ("short sides", sides),
            ("mean; deviation of colours", f"{mean}; {std} (0 to 1, of {manifest.mean_std_images:,} images)"),
            ("source", printable(f"{manifest.source.get('name')} ({manifest.source.get('kind')})")),
            (
                "rejects",
                f"{manifest.rejects:,} files were no readable images"
                + (f" ({folder.parent / 'rejects.jsonl'})" if manifest.rejects else ""),
            ),
            ("repeats", f"{manifest.repeats:,} were left out, byte for byte another's"),
        ]
        notes += filter(None, [flat_channels(manifest.std)])
        known = run.commit.record.get("manifests", {}).get(key) if run.commit else None
        if known and run.kind == PRETRAINING and known != digest:
            notes.append("The set that lies there now is not the one that this run was trained on: its manifest has another sha256.")
    return rows, notes


def cost(run: RunFolder) -> list[tuple[str, str]]:
    about = run.json("environment.json") or {}
    of_all = run.repeats or [run]
    rates = sorted(value for part in of_all for _, value in part.points("speed/samples_per_second"))
    rows = [("samples seen", f"{run.samples_seen:,}" + (f" of {run.total_samples:,}" if run.total_samples else ""))]
    if rates:
        rows += [
            ("time in steps", f"{clock(run.seconds)} (h:mm:ss; start, hold-out, pictures, looks at features and commits apart)"),
            ("speed", f"{rates[len(rates) // 2]:,.0f} images/s (median)"),
        ]
    for name, title, unit in (
        ("speed/mfu", "share of the matrix rate (MFU)", "%"),
        ("speed/wait_share", "waiting for images", "%"),
        ("speed/features_share", "looking at features", "%"),
        ("speed/peak_gb", "memory of the first process, at its fullest", " GB"),
    ):
        if (value := of_all[-1].last(name)) is not None:
            rows.append((title, f"{100 * value:.1f} %" if unit == "%" else f"{value:.2f}{unit}"))
    joules = sum(value for part in of_all for _, value in part.points("speed/energy_joules"))
    rows.append(("energy", f"{joules / 3.6e6:.3f} kWh, of the first machine" if joules else "not readable on this machine"))
    gpu, world = about.get("gpu"), about.get("world_size", 1)
    rows.append(("on", f"{counted(world, 'process', 'processes')}, " + (printable(gpu) if gpu else f"{about.get('cpus', '?')} CPU cores")))
    return rows


def reproduction(run: RunFolder) -> list[str]:
    """Commands, in order."""
    about = run.json("environment.json") or {}
    lines = [f"git checkout {about['commit'].removesuffix('-dirty')}"] if about.get("commit") else []
    lines += (
        [f"pip install torch=={about['torch']} torchvision=={about['torchvision']} timm=={about['timm']} deepspeed=={about['deepspeed']}"]
        if "torch" in about
        else []
    )
    return lines + [startable(command, about.get("world_size", 1)) for command in run.commands[-1:]]


def startable(command: str, processes: int) -> str:
    """A line of command.txt as one that a shell takes: behind python or DeepSpeed's launcher, without what a launcher adds itself."""
    try:
        program, *words = shlex.split(command)
    except ValueError:  # a line that a kill has cut
        return command
    start = ["python"] if processes == 1 else ["deepspeed", "--num_gpus", str(processes)]
    return shlex.join([*start, program, *(word for word in words if not word.startswith("--local_rank"))])


def reconstructions(run: RunFolder) -> list[Picture]:
    """The last picture, and the first to compare it with."""
    found = run.pictures("reconstruction")
    chosen = dict.fromkeys([*found[-1:], *found[:1]])
    return [Picture(f"after {int(path.stem.partition('-')[0]):,} samples", embedded(path)) for path in chosen]


def insides(run: RunFolder) -> list[Picture]:
    found = run.pictures("encoder")
    return [Picture(f"inside the encoder, after {int(path.stem.partition('-')[0]):,} samples", embedded(path)) for path in found[-1:]]
