"""What mpp/linear_probe.py does, top to bottom.

Every hyper-parameter comes from a hold-out of train; the test split is read once, at the end, and each read is logged.  Without test= the
figures are on a further hold-out of train that no choice has seen.
"""

import platform
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import mpp
from mpp import text
from mpp.config.probe import ProbeConfig
from mpp.data.labelled import LabelledImages, check_splits, is_array, open_labelled, remarks_on
from mpp.errors import ConfigError
from mpp.files import make_folder
from mpp.interop.loaded_encoder import LoadedEncoder, digest_of
from mpp.interop.read_encoder import read_encoder
from mpp.machine import allow_open_files
from mpp.monitor.rank import effective_rank
from mpp.rng import INIT, seed_of
from mpp.transfer.extraction import Extracted, extract
from mpp.transfer.extractors import PixelExtractor
from mpp.transfer.probes.contract import Measured, Train
from mpp.transfer.protocol import choose, report
from mpp.transfer.results import RESULTS, draw_answers, draw_choices, find_results, write_predictions, write_results
from mpp.transfer.rows import Row, encoder_row, gains
from mpp.transfer.split import CHOOSE, RANK, REPORT, Split, hold_out, subset
from mpp.transfer.table import PIXELS, PRETRAINED, RANDOM, TEST_READS, format_table, log_test_read
from mpp.watch import watch
from mpp.world import World, from_first, join_processes, together


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
    samples: np.ndarray  # int64 [n], ids of train: the images used
    rows: dict[str, Row]  # by name, in order
    about: dict[str, Any] = field(default_factory=dict)  # for results.json

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
    def truth(self) -> np.ndarray:
        """integers [m]."""
        return self.images.labels[self.ids]


def probe(config: ProbeConfig, words: Sequence[str]) -> int:
    """Measure and write results.json; words: the command line, to be noted.  Raises UserError."""
    started = time.perf_counter()
    job = prepare(config, words)

    # Who sees which images, before any is looked at: what too few labels forbid is told now.
    pool, reported, split = divide(job.labels, job.train.classes, job.test is not None, config)
    for remark in [] if split is None else [*remarks_on(job.train, job.test), *undone(job, split)]:
        job.say(f"note      {remark}")

    tables = job.extract(job.train, job.samples)
    for name, table in tables.items():
        job.say(f"train     {config.train}: {table}: {name}")

    # Everything is chosen on train.
    if split is not None:
        choose_rows(job, tables, split)
    watch.moved("reporting", slow=True)
    rank_rows(job, tables, pool)

    # Only now are the images looked at on which figures are reported.
    shown = None if config.rank_only else show(job, tables, reported)
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
    count = min(config.rank_samples, config.train_samples or len(train)) if config.rank_only else config.train_samples
    samples = subset(len(train), count, config.seed)
    job = Probing(config, words, out, cache, world, loaded, train, test, samples, table_rows(config, loaded, world))
    main_row = job.rows[PRETRAINED]
    job.say(f"encoder   {loaded.source} ({config.encoder}), {main_row.about['parameters']:,} parameters")
    job.say(f"features  {main_row.own} of {main_row.extractor.spec.resolution} px, {config.features.precision}, {world.device.type}")
    job.about["train_images"] = len(samples)
    return job


def open_splits(config: ProbeConfig) -> tuple[LabelledImages, LabelledImages | None]:
    """Raises DataError for what cannot be probed on."""
    train = open_labelled(config.train, "train")
    test = open_labelled(config.test, "test") if config.test and not config.rank_only else None
    if not config.rank_only:
        check_splits(train, test, "; without labels only the feature rank can be had: rank_only=true")
    return train, test


def table_rows(config: ProbeConfig, loaded: LoadedEncoder, world: World) -> dict[str, Row]:
    """The lines of the table, in order: baselines, the encoder, those beside it."""
    row_of = lambda net, digest, found: encoder_row(net, digest, found, config.cached(), config.features, world)
    encoders = {PRETRAINED: loaded} | {source: read_encoder(source) for source in config.beside}
    rows = {name: row_of(found.net, found.digest, found) for name, found in encoders.items()}
    if not config.baselines:
        return rows
    spec = rows[PRETRAINED].extractor.spec
    pixels = PixelExtractor(spec.resolution, spec.crop, spec.mean, spec.std, config.features.pixel_side)
    fresh = loaded.fresh(seed_of(config.seed, INIT, 0)).eval()  # as a run with this seed starts
    baselines = {
        PIXELS: Row(pixels, pixels.variant, {"feature_spec": pixels.spec.as_dict(), "features": str(pixels.variant), "parameters": 0}),
        RANDOM: row_of(fresh, digest_of(fresh), loaded),
    }
    baselines[RANDOM].about["source"] = f"random initialisation, seed {config.seed}"
    return baselines | rows


def divide(labels: np.ndarray, classes: Sequence[str], tested: bool, config: ProbeConfig) -> tuple[np.ndarray, np.ndarray, Split | None]:
    """Rows of train that probes may see, rows that figures are reported on (none with a test split), and how the former are divided.

    labels: integers [n].  Raises DataError, naming the classes, where some have too few images.
    """
    pool, reported = np.arange(len(labels)), np.arange(0)
    if config.rank_only:
        return pool, reported, None
    remedies = ["give more images of them"]
    if not tested:
        remedies.append("give a test split (test=), which saves one hold-out")
    if config.train_samples is not None:
        remedies.append(f"raise train_samples={config.train_samples}")
    remedy = ", ".join(remedies)
    if not tested:
        pool, reported = hold_out(labels, config.holdout_fraction, config.seed, REPORT, classes, remedy)
    left = "" if tested else " left, once those that figures are reported on are apart,"
    fit, chosen_on = hold_out(labels[pool], config.holdout_fraction, config.seed, CHOOSE, classes, remedy, left)
    return pool, reported, Split(pool[fit], pool[chosen_on])


def undone(job: Probing, split: Split) -> list[str]:
    """What the probes have to say about these labels.  Raises DataError."""
    said = [probe.remark(job.labels[split.fit], job.train.classes) for probe in (*job.config.cached(), *job.config.online())]
    return [remark for remark in said if remark]


def choose_rows(job: Probing, tables: Mapping[str, Extracted], split: Split) -> None:
    """Collective.  Probes on features are fitted in rank 0, those with the encoder in the loop by all."""
    config, world = job.config, job.world
    job.about |= {"fit_images": len(split.fit), "holdout_images": len(split.choose), "classes": job.train.classes}

    def seen_by(name: str, row: Row) -> Train:
        views = row.views(job.train, job.samples, config.features, config.seed, world)
        return Train(tables[name].features, row.own, job.labels, job.train.classes, split, config.seed, world.device, views=views)

    for name, row in job.rows.items():
        watch.moved(f"choosing for {name}", slow=True)
        if world.first:
            row.chosen.append(choose(config.cached(), seen_by(name, row), row.backbone))
            row.figures["seconds"] = row.chosen[0].seconds
            job.say(f"chosen    {name}: {row.chosen[0].summary()}")
    for probe in config.online():
        for name, row in job.rows.items():
            if row.encoder is not None:
                row.chosen.append(choose([probe], seen_by(name, row), row.backbone))
                job.say(f"trained   {name}: {row.chosen[-1].fitted[probe.key].summary()}")


def rank_rows(job: Probing, tables: Mapping[str, Extracted], pool: np.ndarray) -> None:
    """pool: int64, rows of train that may be looked at."""
    ranked = pool[subset(len(pool), job.config.rank_samples, job.config.seed, RANK)]
    job.about["rank_images"] = len(ranked)
    for name, row in job.rows.items():
        if job.world.first:
            row.figures["feature_rank"] = effective_rank(tables[name].features.of(row.own)[torch.from_numpy(ranked)].to(job.world.device))


def show(job: Probing, tables: dict[str, Extracted], reported: np.ndarray) -> Reported:
    """Collective: the test split, whose read is logged before it happens, or the rows `reported` of train."""
    config, test = job.config, job.test
    if test is None:
        job.about |= {"reported_on": "holdout of train", "test_reads": 0, "reported_images": len(reported)}
        return Reported(job.train, job.samples, reported, tables)
    command = ["mpp/linear_probe.py", *job.words]
    reads = from_first(
        job.world,
        lambda: log_test_read(job.out, command=command, encoder=job.loaded.source, test=str(config.test), test_identity=test.identity),
    )
    ids = subset(len(test), config.test_samples, config.seed, 1)
    seen = job.extract(test, ids)
    job.say(f"test      {config.test}: {seen[PRETRAINED]}")
    job.about |= {"reported_on": "test", "test_reads": reads, "reported_images": len(ids)}
    return Reported(test, ids, np.arange(len(ids)), seen)


def report_rows(job: Probing, shown: Reported) -> None:
    """Collective."""
    for name, row in job.rows.items():
        views = row.views(shown.images, shown.samples, job.config.features, job.config.seed, job.world)
        for chosen in row.chosen:
            found, answers = report(chosen, Measured(shown.tables[name].features, shown.rows, views), shown.truth)
            row.figures |= found
            row.answers |= answers
    where = f"a hold-out of train ({len(shown.rows)} images that nothing was fitted or chosen on); no test split was read"
    if job.test is not None:
        reads = text.counted(job.about["test_reads"], "time")
        where = f"{job.config.test} ({len(shown.rows)} of {len(job.test)} images; this folder has read the split {reads}, see {job.out}/{TEST_READS})"
    job.say(f"figures   top-1 in %, 95 % intervals, on {where}")


def write(job: Probing, shown: Reported | None, started: float) -> None:
    """The table, results.json, predictions and pictures; shown: None for the rank alone.  started: by time.perf_counter."""
    config, out = job.config, job.out
    text.say()
    text.say_lines(format_table({name: row.figures for name, row in job.rows.items()}))
    results: dict[str, Any] = {
        "command": shlex.join(["mpp/linear_probe.py", *job.words]),
        "kind": "probe",
        "encoder": {
            "path": config.encoder,
            "source": job.loaded.source,
            "digest": job.loaded.digest,
            "pretraining": job.loaded.pretraining,
        },
        "rows": {name: row.figures | {"about": row.about} for name, row in job.rows.items()},
        **job.about,
        "data": {
            name: None if images is None else {"path": str(images.path), "identity": images.identity, "images": len(images)}
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
    if shown is not None:
        results["gains"] = gains(job.rows, shown.truth, config.seed)
        for line in results["gains"]:
            text.say(line["words"])
        answers = {name: row.answers for name, row in job.rows.items()}
        write_predictions(out, answers, shown.truth, shown.ids)
        place = "test" if job.test is not None else "hold-out of train"
        pictures = draw_choices(out, results["rows"], job.about["holdout_images"])
        pictures += draw_answers(out, PRETRAINED, "linear", results["rows"], answers, shown.truth, job.train.classes, place)
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
