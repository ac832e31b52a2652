"""What mpp/report.py does: one run on one page, or several beside each other, each a file that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path

from mpp.base.errors import UserError
from mpp.base.progress import Progress
from mpp.base.text import counted, printable, say, sized
from mpp.disk.files import write_atomically
from mpp.mains.results import by_first, differences, in_words, tables_of, verdicts
from mpp.monitor.figures import figure_of
from mpp.pages.charts import Chart
from mpp.pages.page import (
    Picture,
    Table,
    charts_of,
    cost,
    data_card,
    drawn_of,
    embedded,
    headline,
    insides,
    reconstructions,
    render,
    reproduction,
    results_below,
    table_of,
)
from mpp.pages.run_folder import PRETRAINING, RunFolder, differing, open_run
from mpp.train.progress import clock
from mpp.transfer.common_table import CommonTable
from mpp.transfer.table import PRETRAINED, TUNED

REPORT, COMPARISON = "report.html", "comparison.html"
COMPARED = (
    "holdout/skill",
    "holdout/loss",
    "train/loss",
    "features/linear",
    "features/knn",
    "features/rank",
    "holdout/accuracy",
    "speed/samples_per_second",
)
PROBES = ("linear", "finetune", "knn")  # by which runs are compared in pairs: the first that several of them have


def report(folders: Sequence[str], out: str | None) -> int:
    """out: the file; None: RUN/report.html of one run, comparison.html here of several.  Raises UserError, DataError."""
    runs = [open_run(Path(folder)) for folder in folders]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError(f"{' '.join(folders)} names a run twice; give each once")
    file = Path(out) if out else runs[0].path / REPORT if len(runs) == 1 else Path(COMPARISON)
    with Progress("drawing the page", at_once=True):
        text = page_of_run(runs[0]) if len(runs) == 1 else page_of_several(runs)
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: there is no folder {file.parent}; make it first")
    write_atomically(file, text.encode())
    say(f"report {file} ({sized(len(text))}; open it in a browser, it needs no network)")
    return 0


def measured(runs: Sequence[RunFolder], pictured: bool) -> tuple[list[Table], list[CommonTable]]:
    """The tables over all that was measured of these runs, and what they are made of.  Raises DataError for damaged results."""
    found, made = tables_of(results_below(runs), [str(run.path) for run in runs]), []
    for joined in found:
        said = [each["words"] if len(runs) == 1 else f"{each['of']}: {each['words']}" for each in verdicts(joined.lines)]
        made.append(table_of(joined, in_words(joined.results[0]), said, pictured))
    return made, found


def page_of_run(run: RunFolder) -> str:
    tables, _ = measured([run], pictured=True)
    data, data_notes = data_card(run)
    about = run.json("environment.json") or {}
    model = run.tree.get("model") or {}
    recipe = [run.tree[part].get("name") for part in ("mask", "corruption", "target", "decoder") if isinstance(run.tree.get(part), dict)]
    what = [
        *([f"{model['arch']}, {model['image_size']} px, patches of {model['patch_size']}"] if "arch" in model else []),
        *filter(None, [" × ".join(filter(None, recipe))]),
    ]
    return render(
        "run.html.j2",
        run=run,
        what=" · ".join(what) or printable(run.tree.get("encoder")),
        headline=headline(run, tables),
        charts=charts_of(run),
        pictures=reconstructions(run),
        insides=insides(run),
        tables=tables,
        own=(str(run.path), PRETRAINED, TUNED),
        data=data,
        data_notes=data_notes,
        cost=cost(run),
        commands=reproduction(run),
        dirty=str(about.get("commit", "")).endswith("-dirty"),
        keys=run.settings(),
        environment=[(name, str(value)) for name, value in about.items()],
    )


def page_of_several(runs: Sequence[RunFolder]) -> str:
    names = names_of(runs)
    tables, joined = measured(runs, pictured=False)
    shared = [name for name in COMPARED if any(run.points(name) for run in runs)]
    over = lambda by_time: drawn_of(
        [chart_of(runs, names, name, by_time) for name in shared if not by_time or name != "speed/samples_per_second"]
    )
    pictures = [(name, found[-1]) for name, run in zip(names, runs, strict=True) if (found := run.pictures("reconstruction"))]
    return render(
        "compare.html.j2",
        runs=runs,
        names=names,
        own=(),
        overview=overview(runs, names),
        notes=[(name, note) for name, run in zip(names, runs, strict=True) for note in run.notes],
        warnings=warnings(runs),
        differing=differing(list(runs)),
        over_samples=over(False),
        over_time=over(True),
        tables=tables,
        differences=paired(joined),
        pictures=[Picture(f"{name}, after {int(path.stem.partition('-')[0]):,} samples", embedded(path)) for name, path in pictures],
    )


def names_of(runs: Sequence[RunFolder]) -> list[str]:
    """Folder names where these tell the runs apart, else paths."""
    short = [run.name for run in runs]
    return short if len(set(short)) == len(runs) else [str(run.path) for run in runs]


def chart_of(runs: Sequence[RunFolder], names: Sequence[str], figure: str, by_time: bool) -> Chart:
    known = figure_of(figure)
    short = max(run.clock[-1][1] for run in runs) < 2 * 3600
    place = lambda run, samples: run.hours_at(samples) * (60 if short else 1) if by_time else samples
    lines = {name: [(place(run, samples), value) for samples, value in run.points(figure)] for name, run in zip(names, runs, strict=True)}
    title = known.title if known else figure
    return Chart(
        title, lines, known.unit if known else "", x=("minutes in steps" if short else "hours in steps") if by_time else "samples seen"
    )


def overview(runs: Sequence[RunFolder], names: Sequence[str]) -> Table:
    rows = []
    for name, run in zip(names, runs, strict=True):
        seen = f"{run.samples_seen:,}" + ("" if run.finished else f" of {run.total_samples:,}" if run.total_samples else "")
        rates = sorted(value for _, value in run.points("speed/samples_per_second"))
        figures = [run.last(figure) for figure in ("holdout/skill", "holdout/loss", "features/linear", "features/rank")]
        told = [f"{value:.4g}" if value is not None else "–" for value in figures]
        rows.append([name, seen, clock(run.seconds), f"{rates[len(rates) // 2]:,.0f}" if rates else "–", *told])
    return Table(
        "",
        ["run", "samples seen", "time in steps", "images/s", "hold-out skill", "hold-out loss", "features, linear", "features, rank"],
        rows,
    )


def warnings(runs: Sequence[RunFolder]) -> list[str]:
    """What makes curves of these runs no fair comparison."""
    found = []
    if len({run.kind for run in runs}) > 1:
        found.append("Some of these runs pretrain and some fine-tune: their losses are not comparable.")
    targets = {str(run.tree.get("target") or {}) for run in runs if run.kind == PRETRAINING}
    if len(targets) > 1:
        found.append("These runs have different targets: their losses and skills are not comparable; features and transfer are.")
    images = {str((run.commit.record.get("manifests") or {}).get("shards")) for run in runs if run.commit and run.kind == PRETRAINING}
    if len(images) > 1:
        found.append("These runs were trained on different images: hold-out figures are of different images, too.")
    return found


def paired(tables: Sequence[CommonTable]) -> list[Table]:
    """Differences to the first run (of several seeds: their mean) on the same images, by the first of PROBES that several runs have."""
    made = []
    for joined in tables:
        for found in by_first(next((each for probe in PROBES if (each := differences(joined.lines, probe))), [])):
            rows = [
                [
                    each["b"], each["probe"], f"{100 * each['difference']:+.2f}", f"{100 * each['ci95'][0]:+.2f} to {100 * each['ci95'][1]:+.2f}",
                    f"{each['p']:.2g}", " + ".join(each["ci95_covers"]),
                ]
                for each in found
            ]  # fmt: skip
            head = [f"{found[0]['a']} less ...", "by", f"points of {found[0]['metric'].replace('_', ' ')}", "95 % interval", "p", "covers"]
            title = f"Paired differences on {in_words(joined.results[0])}: {counted(len(found), 'pair')} on the same images"
            made.append(Table(title, head, rows))
    return made
