"""What mpp/linear_probe.py does, top to bottom.

Every hyper-parameter comes from a hold-out of train; the test split is read once, at the end, and each read is logged.  Without test= the
figures are on a further hold-out of train that no choice has seen.
"""

import platform
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from tqdm import tqdm

import mpp
from mpp import text
from mpp.config.probe import ProbeConfig
from mpp.data.fingerprints import content_id
from mpp.data.labelled import LabelledImages, check_splits, is_array, open_labelled, remarks_on
from mpp.errors import ConfigError
from mpp.files import make_folder, write_atomically
from mpp.interop.loaded_encoder import LoadedEncoder, digest_of
from mpp.interop.read_encoder import read_encoder
from mpp.machine import allow_open_files
from mpp.monitor import rank
from mpp.rng import INIT, seed_of
from mpp.transfer.extraction import Extracted, centre_crops, extract
from mpp.transfer.extractors import PixelExtractor
from mpp.transfer.ledger import Reads, log_test_read
from mpp.transfer.metrics import difference
from mpp.transfer.near_duplicates import PICTURE, find_near, sheet
from mpp.transfer.overlap import Overlap, find_overlap
from mpp.transfer.probes.contract import Measured, Probe, Train
from mpp.transfer.protocol import AllAnswers, answers_to, choose, report
from mpp.transfer.results import RESULTS, draw_answers, draw_choices, find_results, write_predictions, write_results
from mpp.transfer.rows import Line, Row, encoder_row, majority
from mpp.transfer.split import CHOOSE, RANK, REPORT, Split, hold_out, subset
from mpp.transfer.table import MAJORITY, PIXELS, PRETRAINED, RANDOM, by_column, format_table, remarks_on_table
from mpp.transfer.verdict import Judged, judge, verdict
from mpp.watch import watch
from mpp.world import World, from_first, join_processes, together


@dataclass(frozen=True)
class Division:
    """Who sees which images: rows of the features of train."""

    samples: np.ndarray  # int64 [n], ids of train: the images used
    pool: np.ndarray  # int64: rows that may be looked at before everything is chosen
    reported: np.ndarray  # int64: rows that figures are on (none with a test split)
    splits: list[Split]  # of the pool, one a repeat; none for the rank alone

    def __str__(self) -> str:
        return f"{len(self.splits[0].both):,} labels" + (f", drawn {len(self.splits)} times" if len(self.splits) > 1 else "")


@dataclass
class Probing:
    """What is measured on what, and by whom."""

    config: ProbeConfig
    words: Sequence[str]  # the command line
    out: Path
    cache: Path
    world: World
    loaded: LoadedEncoder
    train: LabelledImages
    test: LabelledImages | None
    division: Division
    rows: dict[str, Row]  # by name, in order
    lines: dict[str, Line] = field(default_factory=dict)  # of the table, in order, once figures are known
    about: dict[str, Any] = field(default_factory=dict)  # for results.json
    reads: Reads | None = None  # of the test split
    overlap: Overlap | None = None  # in rank 0: which of the images that figures are on have been seen before

    @property
    def samples(self) -> np.ndarray:
        return self.division.samples

    @property
    def labels(self) -> np.ndarray:
        """integers [n]."""
        return self.train.labels[self.samples]

    def extract(self, images: LabelledImages, samples: np.ndarray) -> dict[str, Extracted]:
        """Collective: by row, each image once, over all processes."""
        extractors = {name: row.extractor for name, row in self.rows.items()}
        return extract(images, samples, extractors, self.config.features, self.cache, self.world)

    def say(self, line: str) -> None:
        if self.world.first:
            text.say(line)


@dataclass
class Reported:
    """The images that figures are on."""

    images: LabelledImages
    samples: np.ndarray  # int64, ids: a row of the tables each
    rows: np.ndarray  # int64 [m]: those that count
    tables: dict[str, Extracted]

    @property
    def ids(self) -> np.ndarray:
        return self.samples[self.rows]

    @property
    def truth(self) -> torch.Tensor:
        """int64 [m]."""
        return torch.from_numpy(self.images.labels[self.ids].astype(np.int64))


def probe(config: ProbeConfig, words: Sequence[str]) -> int:
    """Measure and write results.json; words: the command line, to be noted.  Raises UserError."""
    started = time.perf_counter()
    job = prepare(config, words)
    for remark in [] if config.rank_only else [*remarks_on(job.train, job.test), *undone(job)]:
        job.say(f"note      {remark}")

    tables = job.extract(job.train, job.samples)
    for name, table in tables.items():
        job.say(f"train     {config.train}: {table}: {name}")
    for name, row in job.rows.items():
        if isinstance(row.extractor, PixelExtractor):
            row.own = row.extractor.told_apart(tables[name].features.values)
            row.about["features"] = str(row.own)

    # Everything is chosen on train.
    if job.division.splits:
        choose_rows(job, tables)
    watch.moved("reporting", slow=True)
    spread_rows(job, tables)

    # Only now are the images looked at on which figures are reported.
    shown = None if config.rank_only else show(job, tables)
    if shown is not None:
        report_rows(job, shown)
    if job.world.first:
        write(job, shown, started)
    return 0


def prepare(config: ProbeConfig, words: Sequence[str]) -> Probing:
    out = Path(config.out) if config.out else default_out(config.encoder, config.train)
    world = join_processes(config.patience_seconds, config.patience_slow_seconds, out)
    allow_open_files()
    loaded = read_encoder(config.encoder)
    train, test = open_splits(config)
    cache = Path(config.features.cache) if config.features.cache else out / "features"
    together(world, lambda: refuse_other_images(out, train, test) if world.first and config.out is None else None)
    together(world, lambda: make_folder(out, "out") if world.first else None)
    # Who sees which images, before any is looked at: what too few labels forbid is told now.
    division = divide(train.labels, train.classes, test is not None, config)
    job = Probing(config, words, out, cache, world, loaded, train, test, division, table_rows(config, loaded, world))
    main_row = job.rows[PRETRAINED]
    job.say(f"encoder   {loaded.source} ({config.encoder}), {main_row.about['parameters']:,} parameters")
    job.say(f"features  {main_row.own} of {main_row.extractor.spec.resolution} px, {config.features.precision}, {world.device.type}")
    job.about |= {"train_images": len(job.samples), "repeats": config.repeats, "metric": config.metric, "class_weight": config.class_weight}
    return job


def open_splits(config: ProbeConfig) -> tuple[LabelledImages, LabelledImages | None]:
    """Raises DataError for what cannot be probed on."""
    train = open_labelled(config.train, "train")
    test = open_labelled(config.test, "test") if config.test and not config.rank_only else None
    if not config.rank_only:
        check_splits(train, test, "; without labels only the feature rank can be had: rank_only=true")
    return train, test


def table_rows(config: ProbeConfig, loaded: LoadedEncoder, world: World) -> dict[str, Row]:
    """What the lines of the table are made of, in order: baselines, the encoder, those beside it."""
    row_of = lambda line, net, digest, found: encoder_row(line, net, digest, found, config.cached(), config.features, world)
    encoders = {PRETRAINED: loaded} | {source: read_encoder(source) for source in config.beside}
    rows = {name: row_of(name, found.net, found.digest, found) for name, found in encoders.items()}
    if not config.baselines:
        return rows
    spec = rows[PRETRAINED].extractor.spec
    pixels = PixelExtractor(spec.resolution, spec.crop, spec.mean, spec.std, config.features.pixel_side)
    about = {"feature_spec": pixels.spec.as_dict(), "features": str(pixels.variant), "parameters": 0}
    baselines = {PIXELS: Row(PIXELS, pixels, pixels.variant, about)}
    for seed in range(config.seed, config.seed + config.random_inits):
        fresh = loaded.fresh(seed_of(seed, INIT, 0)).eval()  # as a run with this seed starts
        row = row_of(RANDOM, fresh, digest_of(fresh), loaded)
        row.about["source"] = f"random initialisation, seed {seed}"
        baselines[RANDOM if seed == config.seed else f"{RANDOM}, seed {seed}"] = row
    return baselines | rows


def divide(labels: np.ndarray, classes: Sequence[str], tested: bool, config: ProbeConfig) -> Division:
    """labels: integers, of all of train.  Raises DataError, naming the classes, where some have too few images.

    Each repeat draws its own train_samples of train and its own hold-out to choose on; figures are on the same images in all of them.
    """
    count, seeds = config.train_samples, range(config.seed, config.seed + config.repeats)
    first = subset(len(labels), min(config.rank_samples, count or len(labels)) if config.rank_only else count, config.seed)
    everything = np.arange(len(first))
    if config.rank_only:
        return Division(first, everything, np.arange(0), [])
    remedies = ["give more images of them"]
    if not tested:
        remedies.append("give a test split (test=), which saves one hold-out")
    if count is not None:
        remedies.append(f"raise train_samples={count}")
    remedy = ", ".join(remedies)
    kept, reported = everything, np.arange(0)
    if not tested:
        kept, reported = hold_out(labels[first], config.holdout_fraction, config.seed, REPORT, classes, remedy)
    free = np.setdiff1d(np.arange(len(labels)), first[reported])  # ids that a repeat may draw
    drawn = [first[kept], *(free[subset(len(free), len(kept), seed)] for seed in seeds[1:])]
    samples = np.unique(np.concatenate([*drawn, first[reported]]))
    left = "" if tested else " left, once those that figures are reported on are apart,"
    splits = []
    for ids, seed in zip(drawn, seeds, strict=True):
        fit, chosen_on = hold_out(labels[ids], config.holdout_fraction, seed, CHOOSE, classes, remedy, left)
        rows = np.searchsorted(samples, ids)
        splits.append(Split(rows[fit], rows[chosen_on]))
    reported = np.searchsorted(samples, first[reported])
    return Division(samples, np.setdiff1d(np.arange(len(samples)), reported), reported, splits)


def undone(job: Probing) -> list[str]:
    """What the probes have to say about these labels.  Raises DataError."""
    config, probes = job.config, (*job.config.cached(), *job.config.online())
    said = [probe.remark(job.labels[split.fit], job.train.classes) for split in job.division.splits for probe in probes]
    if config.class_weight and (unweighted := [probe.title for probe in probes if not probe.takes_weights]):
        said.append(f"class_weight={config.class_weight} means nothing to {', '.join(unweighted)}")
    return list(dict.fromkeys(filter(None, said)))


def choose_rows(job: Probing, tables: Mapping[str, Extracted]) -> None:
    """Collective.  Probes on features are fitted in rank 0, those with the encoder in the loop by all."""
    config, world, splits = job.config, job.world, job.division.splits
    job.about |= {"fit_images": len(splits[0].fit), "holdout_images": len(splits[0].choose), "classes": job.train.classes}
    shown = config.cached() + config.online()
    with tqdm(total=len(splits) * len(job.rows) * len(shown), leave=False, disable=None if world.first else True) as bar:

        def say(line: str) -> None:
            bar.clear()
            job.say(line)

        for number, split in enumerate(splits):
            seed = config.seed + number
            again = f", repeat {number + 1} of {len(splits)}" if len(splits) > 1 else ""
            for name, row in job.rows.items():
                watch.moved(f"choosing for {name}{again}", slow=True)
                views = row.views(job.train, job.samples, config.features, seed, world)
                train = Train(
                    tables[name].features, row.own, job.labels, job.train.classes, split, seed, world.device,
                    config.metric, config.class_weight == "balanced", config.widen, views=views,
                )  # fmt: skip
                told = partial(_tell, bar, f"{name}{again}")
                row.chosen.append([choose(config.cached(), train, row.backbone, told)] if world.first else [])
                if world.first:
                    say(f"chosen    {name}{again}: {row.chosen[-1][0].summary()}")
                for probe in config.online() if row.encoder is not None else []:
                    row.chosen[-1].append(choose([probe], train, row.backbone, told))
                    say(f"trained   {name}{again}: {row.chosen[-1][-1].fitted[probe.key].summary()}")


def _tell(bar: tqdm, name: str, probe: Probe) -> None:
    bar.set_description(f"{name}: {probe.title}")
    bar.update()


def spread_rows(job: Probing, tables: Mapping[str, Extracted]) -> None:
    """What is known of the features without a label; of several seeds, the first one's."""
    pool = job.division.pool
    ranked = torch.from_numpy(pool[subset(len(pool), job.config.rank_samples, job.config.seed, RANK)])
    job.about["rank_images"] = len(ranked)
    for name, row in job.rows.items():
        if job.world.first and row.line not in job.lines:
            found = rank.spread(tables[name].features.of(row.own)[ranked].to(job.world.device))
            job.lines[row.line] = Line(row.about, {"feature_rank": found})


def show(job: Probing, tables: dict[str, Extracted]) -> Reported:
    """Collective: the test split, whose read is logged before it happens, or rows of train that are held out."""
    config, test, reported = job.config, job.test, job.division.reported
    if test is None:
        job.about |= {"reported_on": "holdout of train", "test_reads": 0, "test_reads_folders": 0, "reported_images": len(reported)}
        job.overlap = together(job.world, lambda: seen_before(job, job.train, job.samples[reported]) if job.world.first else None)
        return Reported(job.train, job.samples, reported, tables)
    ids = subset(len(test), config.test_samples, config.seed, 1)
    command = ["mpp/linear_probe.py", *job.words]
    note = partial(log_test_read, job.out, test, len(ids), ledger=config.ledger, command=command, encoder=job.loaded.source)
    job.reads = from_first(job.world, lambda: note(named=str(config.test)))
    job.overlap = together(job.world, lambda: seen_before(job, test, ids) if job.world.first else None)
    seen = job.extract(test, ids)
    job.say(f"test      {config.test}: {seen[PRETRAINED]}")
    job.about |= {
        "reported_on": "test",
        "test_reads": job.reads.times,
        "test_reads_folders": job.reads.folders,
        "reported_images": len(ids),
    }
    return Reported(test, ids, np.arange(len(ids)), seen)


def seen_before(job: Probing, images: LabelledImages, ids: np.ndarray) -> Overlap:
    """Of these images (int64 [m], ids), on which figures will be."""
    split, limit = job.division.splits[0], job.config.near_duplicates
    chosen_on = job.samples[split.fit], job.samples[split.choose]
    fitted = job.samples[job.division.pool]
    found = find_overlap(images, ids, job.train, fitted, [job.config.encoder, *job.config.beside], chosen_on)
    if limit is None:
        return found
    near = find_near(images, ids, job.train, fitted, limit, found.train, job.world.device)
    write_atomically(job.out / PICTURE, sheet(near, images, job.train))
    return replace(found, near=near)


def report_rows(job: Probing, shown: Reported) -> None:
    """Collective."""
    said: dict[str, list[list[AllAnswers]]] = {}
    for name, row in job.rows.items():
        views = row.views(shown.images, shown.samples, job.config.features, job.config.seed, job.world)
        images = Measured(shown.tables[name].features, shown.rows, views)
        repeats = [{column: one for chosen in parts for column, one in answers_to(chosen, images).items()} for parts in row.chosen]
        said.setdefault(row.line, []).append(repeats)
    if not job.world.first:
        return
    truth, classes = shown.truth, job.train.classes
    for name, runs in said.items():
        line = job.lines[name]
        found, line.answers = report(runs, truth, len(classes))
        line.figures |= found
        seconds = [chosen.seconds for row in job.rows.values() if row.line == name for parts in row.chosen for chosen in parts]
        line.figures["seconds"] = {key: round(sum(each.get(key, 0.0) for each in seconds), 3) for each in seconds for key in each}
    job.lines = {MAJORITY: majority(truth, classes)} | job.lines
    where = f"a hold-out of train ({len(shown.rows)} images that nothing was fitted or chosen on); no test split was read"
    if job.reads is not None:
        where = f"{job.config.test}; {job.reads.words()}"
        if job.reads.note:
            job.say(f"note      {job.reads.note}")
    job.say(f"figures   in %, ± half of a 95 % interval, on {where}")
    job.say(f"          choices by {job.config.metric.replace('_', ' ')} on {job.about['holdout_images']} held out of {job.division}")


def compared(job: Probing, truth: torch.Tensor) -> dict[str, Any]:
    """What the encoder's line shows beside each other one: a verdict in words, and the paired difference in every column.

    Images that train holds, too, are left out: there the better memory wins.
    """
    fresh = torch.ones(len(truth), dtype=torch.bool) if job.overlap is None else torch.from_numpy(~job.overlap.train)
    if not fresh.any():
        return {"verdict": [], "gains": []}
    truth = truth[fresh]
    judged = {
        name: Judged(name, by_column(line.figures), {column: given.of(fresh) for column, given in line.answers.items()})
        for name, line in job.lines.items()
    }
    labels, config = len(job.train), job.config
    some = config.train_samples is not None and config.train_samples < labels and config.repeats == 1
    one_draw = f"one draw of {config.train_samples:,} of {labels:,} labels: another may say the contrary (repeats=5)" if some else ""
    ours = judged[PRETRAINED]
    found = verdict(judged, truth, config.metric, one_draw)
    found += [each for name in config.beside if (each := judge(ours, judged[name], truth, config.metric, one_draw))]
    gains = [
        {"over": name, "probe": column} | difference(ours.answers[column].predicted, given.predicted, truth, config.metric)
        for name, other in judged.items()
        if name != PRETRAINED
        for column, given in other.answers.items()
        if column in ours.answers
    ]
    return {"verdict": found, "gains": gains}


def write(job: Probing, shown: Reported | None, started: float) -> None:
    """The table, results.json, predictions and pictures; shown: None for the rank alone.  started: by time.perf_counter."""
    config, out = job.config, job.out
    figures = {name: line.figures for name, line in job.lines.items()}
    text.say()
    text.say_lines(format_table(figures, classes=job.train.classes))
    results: dict[str, Any] = {
        "command": shlex.join(["mpp/linear_probe.py", *job.words]),
        "kind": "probe",
        "encoder": {
            "path": config.encoder,
            "source": job.loaded.source,
            "digest": job.loaded.digest,
            "pretraining": job.loaded.pretraining,
        },
        "rows": {name: line.figures | {"about": line.about} for name, line in job.lines.items()},
        **job.about,
        "data": {
            name: None
            if images is None
            else {"path": str(images.path), "identity": images.identity, "content": content_id(images.prints), "images": len(images)}
            for name, images in (("train", job.train), ("test", job.test))
        },
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "holdout_fraction": config.holdout_fraction,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if job.world.device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "processes": job.world.size,
    }
    pictures: list[str] = []
    text.say()
    for remark in remarks_on_table(figures):
        text.say(remark)
    seen: list[str] = []
    if shown is not None:
        assert job.overlap is not None
        answers = {name: line.answers for name, line in job.lines.items()}
        results["overlap"], seen = job.overlap.report(answers, shown.truth, len(job.train.classes))
        results |= compared(job, shown.truth)
        if shared := int(job.overlap.train.sum()):
            of = f"{len(shown.truth):,} images"
            text.say(
                f"verdict   on the {len(shown.truth) - shared:,} of {of} that train does not hold:"
                if shared < len(shown.truth)
                else "verdict   none: train holds all these images"
            )
        for found in results["verdict"]:
            text.say(f"verdict   {found['words']}")
        if not config.baselines:
            text.say("verdict   without raw pixels and random initialisations (baselines=true) nothing is said of pretraining")
        text.say("          training from scratch is measured by mpp/finetune.py init=random, and laid beside by mpp/results.py")
    for line in [*seen, *rank.notes(figures)]:
        text.say(line)
    if shown is not None and job.overlap is not None:
        write_predictions(out, answers, shown.truth, shown.ids, job.overlap.train)
        place = "test" if job.test is not None else "hold-out of train"
        pictures = draw_choices(out, results["rows"], job.about["holdout_images"])
        crops = {
            name: centre_crops(shown.images, shown.ids, row.encoder.spec, config.features)
            for name, row in job.rows.items()
            if row.encoder is not None and row.line != RANDOM
        }
        pictures += draw_answers(out, PRETRAINED, "linear", results["rows"], answers, shown.truth.numpy(), job.train.classes, place, crops)
        pictures += [PICTURE] if job.overlap and job.overlap.near else []
        results["pictures"] = pictures
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_results(out, results)
    text.say()
    text.say(", ".join([f"{results['seconds']} s; {out}/results.json", *pictures]))


def default_out(encoder: str, train: str) -> Path:
    """RUN/transfer/DATA, for RUN itself and for RUN/encoder; for encoders that lie elsewhere runs/NAME/transfer/DATA."""
    path, data = Path(encoder), train
    if not is_array(train):
        parts = Path(train).resolve().parts
        data = parts[-2] if parts[-1] in ("train", "val", "test") else parts[-1]
    if path.is_dir():
        run = path.parent if path.name == "encoder" else path
    else:
        run = Path("runs") / plain_name(encoder)
    return run / "transfer" / plain_name(data)


def refuse_other_images(out: Path, train: LabelledImages, test: LabelledImages | None) -> None:
    """Raises ConfigError where `out`, not asked for, holds a probe of other data, whose folder has the same name: its figures would be lost."""
    if not (out / RESULTS).exists():
        return
    data = find_results([str(out / RESULTS)])[0].about.get("data") or {}
    for key, images in (("train", train), ("test", test)):
        before = data.get(key)
        if before and images is not None and before["identity"] != images.identity:
            raise ConfigError(
                f"out={out} holds figures of {key}={before['path']}, other images than {key}={images.path}; "
                "give out= another folder, or delete that one"
            )


def plain_name(words: str) -> str:
    return re.sub(r"[^\w.-]+", "-", words).strip("-.") or "data"


def versions() -> dict[str, str]:
    return {
        "mpp": mpp.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
    }
