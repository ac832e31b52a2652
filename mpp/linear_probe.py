"""How well a pretrained encoder transfers, with everything frozen: one table of linear, k-NN and few-shot probes and feature rank.

    python mpp/linear_probe.py encoder=RUN train=SHARDS/train test=SHARDS/test [key=value ...]

Beside the encoder stand two baselines under the same protocol: the same architecture at random initialisation, and raw pixels.  Every
hyper-parameter comes from a hold-out of train; the test split is read once, at the end, and each read is logged.  Without test= the
figures are on a further hold-out of train that no choice has seen.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import mpp
from mpp.config import ProbeConfig, dump, load
from mpp.data.shards import ShardSet
from mpp.errors import ConfigError, DataError, Parser, run_program
from mpp.files import make_folder, write_atomically
from mpp.model.encoder import Encoder
from mpp.monitor.rank import effective_rank
from mpp.rng import INIT, seed_of
from mpp.train.export import read_encoder
from mpp.transfer.features import EncoderExtractor, Extractor, Features, PixelExtractor, extract, feature_spec, probe_variants
from mpp.transfer.protocol import Chosen, choose, report
from mpp.transfer.split import CHOOSE, RANK, REPORT, Split, hold_out, subset
from mpp.transfer.table import format_table, log_test_read

PRETRAINED, RANDOM, PIXELS = "pretrained", "random init", "raw pixels"


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="mpp/linear_probe.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="encoder=RUN train=SHARDS [test=SHARDS] ...; --print-config shows all"
    )
    parser.add_argument("--config", help="a YAML file of the same keys")
    parser.add_argument("--print-config", action="store_true", help="show the merged config and stop")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # launchers pass it
    options = parser.parse_intermixed_args(words)
    config = load(ProbeConfig, options.config, options.words)
    if options.print_config:
        print(dump(config), end="")
        return 0
    if int(os.environ.get("RANK", "0")):
        return 0  # probing is one process's work, whatever launched it
    for key in ("encoder", "train"):
        if not getattr(config, key):
            raise ConfigError(f"{key}= is missing; python mpp/linear_probe.py encoder=RUN train=SHARDS/train [test=SHARDS/test]")

    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = read_encoder(config.encoder)
    encoder = Encoder(loaded.net)  # type: ignore[arg-type]
    train, test = open_shards(config.train, config.test, config.rank_only)
    spec = feature_spec(
        encoder,
        layers=config.features.layers,
        pooling=config.features.pooling,
        resolution=config.features.resolution or loaded.image_size,
        crop=config.features.crop,
        mean=loaded.mean,
        std=loaded.std,
        precision=config.features.precision,
    )
    last = () if config.rank_only else config.linear.last_layers
    variants = probe_variants(spec, len(encoder.vit.blocks), encoder.vit.cls_token is not None, last)
    extractors: dict[str, Extractor] = {PRETRAINED: EncoderExtractor(encoder, spec, variants, device)}
    if config.baselines:
        fresh = Encoder(loaded.fresh(seed_of(config.seed, INIT, 0)))  # type: ignore[arg-type]  # as a run with this seed starts
        pixels = PixelExtractor(spec, config.features.pixel_side)
        extractors = {PIXELS: pixels, RANDOM: EncoderExtractor(fresh, spec, variants, device), **extractors}
    choices = {name: list(extractor.columns) for name, extractor in extractors.items()}

    def features_of(shards: ShardSet, samples: np.ndarray) -> dict[str, Features]:
        return extract(
            shards,
            samples,
            extractors,
            resolution=spec.resolution,
            crop=spec.crop,
            precision=spec.precision,
            batch=config.features.batch,
            workers=config.features.workers if config.features.workers is not None else min(16, max(1, (os.cpu_count() or 1) - 1)),
            max_pixels=config.features.max_pixels,
            device=device,
        )

    out = Path(config.out) if config.out else default_out(Path(config.encoder))
    make_folder(out, "out")
    count = min(config.rank_samples, config.train_samples or len(train)) if config.rank_only else config.train_samples
    samples = subset(len(train), count, config.seed)
    print(f"encoder   {loaded.source} ({config.encoder})")
    print(f"features  {variants[0]} (of 0 to {len(encoder.vit.blocks) - 1}), {spec.resolution} px, {spec.precision}, on {device.type}")
    features = features_of(train, samples)
    print(f"train     {config.train}: {len(samples)} of {len(train)} images", flush=True)

    # Feature rank is of images the probes may see, the same ones in every row.
    rows: dict[str, dict[str, Any]] = {name: {} for name in extractors}
    about: dict[str, Any] = {"train_images": len(samples)}
    if config.rank_only:
        ranked = np.arange(len(samples))
    else:
        labels = train.labels[samples]
        pool = np.arange(len(samples))
        if test is None:  # figures come from a part of train that neither fits nor chooses
            pool, reported = hold_out(labels, config.holdout_fraction, config.seed, REPORT)
        fit, chosen_on = hold_out(labels[pool], config.holdout_fraction, config.seed, CHOOSE)
        split = Split(pool[fit], pool[chosen_on])
        ranked = pool[subset(len(pool), config.rank_samples, config.seed, RANK)]
        chosen: dict[str, Chosen] = {}
        for name in extractors:
            chosen[name] = choose(
                features[name],
                labels,
                train.classes,
                split,
                choices[name],
                linear=config.linear,
                knn=config.knn,
                shots=config.few_shot,
                seed=config.seed,
                device=device,
            )
            row = chosen[name]
            few = "".join(f", {f.shots}-shot l2 {f.l2:g}" for f in row.few_shot)
            print(f"chosen    {name}: {row.linear.variant}, lr {row.linear.learning_rate:g}; k {row.knn.k}{few}", flush=True)
    for name in extractors:
        rows[name]["feature_rank"] = effective_rank(features[name].of(choices[name][0])[ranked].to(device))
    about["rank_images"] = len(ranked)

    if not config.rank_only:
        about |= {"fit_images": len(split.fit), "holdout_images": len(split.choose), "classes": train.classes}
        if test is None:
            where, images = (
                f"a hold-out of train ({len(reported)} images that nothing was fitted or chosen on); no test split was read",
                reported,
            )
            measured, truth = {n: Features(t.values[reported], t.columns) for n, t in features.items()}, labels[reported]
            about |= {"reported_on": "holdout of train", "test_reads": 0}
        else:
            reads = log_test_read(
                out, command=[parser.prog, *words], encoder=loaded.source, test=str(config.test), test_manifest_hash=test.manifest_hash
            )
            images = subset(len(test), config.test_samples, config.seed, 1)
            measured, truth = features_of(test, images), test.labels[images]
            times = f"{reads} time{'s' if reads > 1 else ''}"
            where = (
                f"{config.test} ({len(images)} of {len(test)} images; this folder has read the split {times}, see {out}/test_reads.jsonl)"
            )
            about |= {"reported_on": "test", "test_reads": reads}
        about["reported_images"] = len(images)
        for name in extractors:
            rows[name] |= report(chosen[name], measured[name], truth)
        print(f"figures   top-1 in %, 95 % intervals, on {where}")
    print()
    print(format_table(rows))
    results = {
        "command": shlex.join([parser.prog, *words]),
        "encoder": {
            "path": config.encoder,
            "source": loaded.source,
            "model": loaded.model.model_dump(mode="json") if loaded.model else None,
        },
        "feature_spec": spec.as_dict(),
        "rows": rows,
        **about,
        "manifests": {"train": train.manifest_hash, "test": test.manifest_hash if test is not None else None},
        "config": config.model_dump(mode="json"),
        "versions": {
            "mpp": mpp.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_atomically(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    print(f"\n{results['seconds']} s; {out / 'results.json'}")
    return 0


def open_shards(train_path: str, test_path: str | None, rank_only: bool) -> tuple[ShardSet, ShardSet | None]:
    """The opened splits.  Raises DataError for unlabelled ones, other classes, or one split given twice."""
    train = ShardSet.open(train_path)
    if rank_only:
        return train, None
    test = ShardSet.open(test_path) if test_path else None
    for key, path, shards in (("train", train_path, train), ("test", test_path, test)):
        if shards is not None and not shards.labelled:
            raise DataError(
                f"{key}={path} holds no labels; probing needs them; make them with data_prep/make_shards.py SOURCE OUT --labels; "
                "without labels only the feature rank can be had: rank_only=true"
            )
    if test is not None and test.manifest_hash == train.manifest_hash:
        raise DataError(
            f"test={test_path} is the same split as train={train_path}; give another, or leave test= out for a hold-out of train"
        )
    if test is not None and test.classes != train.classes:
        odd = sorted(set(test.classes) ^ set(train.classes))
        raise DataError(
            f"test={test_path} has {len(test.classes)} classes and train={train_path} {len(train.classes)}, and they must be the same in the "
            f"same order; {f'only one of them has {odd[0]!r}' if odd else 'here the order differs'}; make both with one data_prep/make_shards.py"
        )
    return train, test


def default_out(encoder: Path) -> Path:
    """RUN/transfer, for RUN itself and for RUN/encoder."""
    return (encoder.parent if encoder.name == "encoder" else encoder) / "transfer"


if __name__ == "__main__":
    run_program(main)
