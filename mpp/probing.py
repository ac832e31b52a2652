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
from mpp.config.probe import FeatureConfig, ProbeConfig
from mpp.data.labelled import LabelledImages, check_splits, is_array, open_labelled, remarks_on
from mpp.errors import ConfigError
from mpp.files import make_folder
from mpp.interop.loaded_encoder import LoadedEncoder, digest_of
from mpp.interop.read_encoder import read_encoder
from mpp.machine import allow_open_files
from mpp.model.backbone import Backbone
from mpp.monitor.rank import effective_rank
from mpp.rng import INIT, seed_of
from mpp.transfer.extraction import extract
from mpp.transfer.extractors import EncoderExtractor, Extractor, PixelExtractor
from mpp.transfer.features import FeatureSpec, Variant, check_resolution, needed_by, own_variant, probe_variants
from mpp.transfer.in_the_loop import Online, answer, train_online
from mpp.transfer.metrics import figures, paired_bootstrap
from mpp.transfer.protocol import Answers, Chosen, choose, report, usable_shots
from mpp.transfer.results import RESULTS, draw_answers, draw_choices, find_results, write_predictions, write_results
from mpp.transfer.split import CHOOSE, RANK, REPORT, Split, hold_out, subset
from mpp.transfer.table import TEST_READS, format_table, log_test_read
from mpp.watch import watch
from mpp.world import World, from_first, join_processes, together

PRETRAINED, RANDOM, PIXELS = "pretrained", "random init", "raw pixels"


@dataclass
class Row:
    """One line of the table."""

    extractor: Extractor
    variants: list[Variant]  # what the linear probe chooses from; the first is what all others use
    about: dict[str, Any]  # for results.json
    chosen: Chosen | None = None  # in rank 0
    online: dict[str, Online] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)


def probe(config: ProbeConfig, words: Sequence[str]) -> int:
    """Measure and write results.json; words: the command line, to be noted.  Raises UserError."""
    started = time.perf_counter()
    out = Path(config.out) if config.out else default_out(config.encoder, config.train)
    world = join_processes(config.patience_seconds, config.patience_slow_seconds, out)
    allow_open_files()

    # What is measured on what.
    loaded = read_encoder(config.encoder)
    train, test = open_splits(config)
    cache = Path(config.features.cache) if config.features.cache else out / "features"
    together(world, lambda: refuse_other_images(out, train, test) if world.first and config.out is None else None)
    together(world, lambda: make_folder(out, "out") if world.first else None)
    rows = table_rows(config, loaded, world)
    main_row = rows[PRETRAINED]
    count = min(config.rank_samples, config.train_samples or len(train)) if config.rank_only else config.train_samples
    samples = subset(len(train), count, config.seed)
    say(world, f"encoder   {loaded.source} ({config.encoder}), {main_row.about['parameters']:,} parameters")
    say(
        world,
        f"features  {main_row.variants[0]} of {main_row.extractor.spec.resolution} px, {config.features.precision}, {world.device.type}",
    )

    # Who sees which images, before any is looked at: what too few labels forbid is told now.
    labels = train.labels[samples]
    pool, reported, split = divide(labels, train.classes, test is not None, config)
    remarks = [] if config.rank_only else remarks_on(train, test)
    if split is not None and (left_out := usable_shots(config.few_shot, labels[split.fit], train.classes)[1]):
        remarks.append(left_out)
    for remark in remarks:
        say(world, f"note      {remark}")

    # Training features: each image once, over all processes.
    extractors = {name: row.extractor for name, row in rows.items()}
    tables = extract(train, samples, extractors, config.features, cache, world)
    for name, table in tables.items():
        say(world, f"train     {config.train}: {table}: {name}")
    about: dict[str, Any] = {"train_images": len(samples)}

    # Everything is chosen on train.
    if split is not None:
        about |= {"fit_images": len(split.fit), "holdout_images": len(split.choose), "classes": train.classes}
        for name, row in rows.items():
            watch.moved(f"choosing for {name}", slow=True)
            if world.first:
                row.chosen = choose(tables[name].features, labels, train.classes, split, row.variants, config, world.device)
                say(world, f"chosen    {name}: {row.chosen.summary()}")
        for protocol in config.augmented:
            for name, row in rows.items():
                if isinstance(row.extractor, EncoderExtractor):
                    row.online[protocol] = train_online(
                        protocol, row.extractor, train, samples, labels, len(train.classes), split, row.variants[0], config, world
                    )
                    said = row.online[protocol].about
                    say(world, f"trained   {name}: {protocol}, {said['augmentation']}: no cached features, {said['seconds']:.0f} s")
    watch.moved("reporting", slow=True)
    ranked = pool[subset(len(pool), config.rank_samples, config.seed, RANK)]
    about["rank_images"] = len(ranked)
    for name, row in rows.items():
        if world.first:
            own = tables[name].features.of(row.variants[0])[torch.from_numpy(ranked)]
            row.figures["feature_rank"] = effective_rank(own.to(world.device))

    # Only now are the images looked at on which figures are reported.
    if not config.rank_only:
        ids, measured, images = samples[reported], train, reported
        shown = {name: table.features for name, table in tables.items()}
        about |= {"reported_on": "holdout of train", "test_reads": 0}
        where = f"a hold-out of train ({len(reported)} images that nothing was fitted or chosen on); no test split was read"
        if test is not None:
            reads = from_first(world, lambda: log_read(out, words, loaded, test, config))
            ids = subset(len(test), config.test_samples, config.seed, 1)
            seen = extract(test, ids, extractors, config.features, cache, world)
            say(world, f"test      {config.test}: {seen[PRETRAINED]}")
            measured, images, shown = test, np.arange(len(ids)), {name: table.features for name, table in seen.items()}
            times = f"{reads} time{'s' if reads > 1 else ''}"
            where = f"{config.test} ({len(ids)} of {len(test)} images; this folder has read the split {times}, see {out}/{TEST_READS})"
            about |= {"reported_on": "test", "test_reads": reads}
        about["reported_images"] = len(ids)
        truth = measured.labels[ids]
        for name, row in rows.items():
            if row.chosen is not None:
                found, row.answers = report(row.chosen, shown[name], images, truth)
                row.figures |= found
            for probe, online in row.online.items():
                assert isinstance(row.extractor, EncoderExtractor)
                row.answers[probe] = answer(online, row.extractor, measured, ids, config.features, world)
                given = row.answers[probe]
                known = torch.from_numpy(truth.astype(np.int64))
                row.figures[probe] = figures(given.predicted, known, len(train.classes), given.confidence) | online.about
        say(world, f"figures   top-1 in %, 95 % intervals, on {where}")
    if not world.first:
        return 0

    text.say()
    text.say_lines(format_table({name: row.figures for name, row in rows.items()}))
    results: dict[str, Any] = {
        "command": shlex.join(["mpp/linear_probe.py", *words]),
        "kind": "probe",
        "encoder": {"path": config.encoder, "source": loaded.source, "digest": loaded.digest},
        "rows": {name: row.figures | {"about": row.about} for name, row in rows.items()},
        **about,
        "data": {
            name: None if images is None else {"path": str(images.path), "identity": images.identity, "images": len(images)}
            for name, images in (("train", train), ("test", test))
        },
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "holdout_fraction": config.holdout_fraction,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "processes": world.size,
    }
    if not config.rank_only:
        results["gains"] = gains(rows, truth, config.seed)
        for line in results["gains"]:
            text.say(line["words"])
        answers = {name: row.answers for name, row in rows.items()}
        write_predictions(out, answers, truth, ids)
        figured = results["rows"]
        place = "test" if test is not None else "hold-out of train"
        results["pictures"] = draw_choices(out, figured, about["holdout_images"])
        results["pictures"] += draw_answers(out, PRETRAINED, "linear", figured, answers, truth, train.classes, place)
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_results(out, results)
    text.say()
    text.say(
        f"{results['seconds']} s; {out}/results.json" + (f", {', '.join(results.get('pictures', []))}" if results.get("pictures") else "")
    )
    return 0


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


def open_splits(config: ProbeConfig) -> tuple[LabelledImages, LabelledImages | None]:
    """Raises DataError for what cannot be probed on."""
    train = open_labelled(config.train, "train")
    test = open_labelled(config.test, "test") if config.test and not config.rank_only else None
    if not config.rank_only:
        check_splits(train, test, "; without labels only the feature rank can be had: rank_only=true")
    return train, test


def table_rows(config: ProbeConfig, loaded: LoadedEncoder, world: World) -> dict[str, Row]:
    """The lines of the table, in order: baselines, the encoder, those beside it."""
    encoders = {PRETRAINED: loaded} | {source: read_encoder(source) for source in config.beside}
    rows = {name: encoder_row(found.net, found.digest, found, config, world) for name, found in encoders.items()}
    if not config.baselines:
        return rows
    spec = rows[PRETRAINED].extractor.spec
    pixels = PixelExtractor(spec.resolution, spec.crop, spec.mean, spec.std, config.features.pixel_side)
    fresh = loaded.fresh(seed_of(config.seed, INIT, 0)).eval()  # as a run with this seed starts
    baselines = {
        PIXELS: Row(pixels, [pixels.variant], {"feature_spec": pixels.spec.as_dict(), "features": str(pixels.variant), "parameters": 0}),
        RANDOM: encoder_row(fresh, digest_of(fresh), loaded, config, world),
    }
    baselines[RANDOM].about["source"] = f"random initialisation, seed {config.seed}"
    return baselines | rows


def encoder_row(net: torch.nn.Module, digest: str, loaded: LoadedEncoder, config: ProbeConfig, world: World) -> Row:
    backbone, asked = Backbone(net).eval(), config.features
    own = own_variant(backbone, asked.layers, asked.pooling)
    rank_only = config.rank_only
    variants = probe_variants(own, backbone, config.linear.curve and not rank_only, () if rank_only else config.linear.last_layers)
    spec = spec_of(backbone, digest, loaded, variants, asked)
    about = {
        "source": loaded.source,
        "encoder": digest,
        "feature_spec": spec.as_dict(),
        "features": str(own),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }
    return Row(EncoderExtractor(backbone, spec, world.device), variants, about)


def spec_of(backbone: Backbone, digest: str, loaded: LoadedEncoder, variants: Sequence[Variant], asked: FeatureConfig) -> FeatureSpec:
    resolution = asked.resolution or loaded.image_size
    check_resolution(backbone, resolution)
    return FeatureSpec(digest, *needed_by(variants), resolution, asked.crop, loaded.mean, loaded.std, asked.precision)


def log_read(out: Path, words: Sequence[str], loaded: LoadedEncoder, test: LabelledImages, config: ProbeConfig) -> int:
    command = ["mpp/linear_probe.py", *words]
    return log_test_read(out, command=command, encoder=loaded.source, test=str(config.test), test_identity=test.identity)


def gains(rows: Mapping[str, Row], truth: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """How much better the encoder is than each other row on the same images, by probe."""
    found = []
    for other, row in rows.items():
        for probe in [] if other == PRETRAINED else row.answers:
            if probe in rows[PRETRAINED].answers:
                ours, theirs = (rows[name].answers[probe].predicted.numpy() == truth for name in (PRETRAINED, other))
                difference = paired_bootstrap(ours, theirs, seed)
                low, high = difference["ci95"]
                text = f"gain      {probe} over {other}: {100 * difference['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
                found.append({"over": other, "probe": probe, "words": text} | difference)
    return found


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


def say(world: World, line: str) -> None:
    if world.first:
        text.say(line)
