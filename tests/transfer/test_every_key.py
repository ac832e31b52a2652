"""Every key of probing is changed once, in a probe of a few images that must then show it: a key that nothing reads fails here."""

import contextlib
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mpp.base.errors import UserError
from mpp.config.probe import ProbeConfig
from mpp.config.schema import load
from mpp.interop.encoder_folder import write_encoder
from mpp.mains import linear_probe, probe_report
from mpp.model.encoder import build_encoder
from mpp.transfer.extractors import EncoderExtractor
from tests.keys import Change, faults, keys, split
from tests.transfer.conftest import TINY, make_split

BASE = [
    "features={workers: 0, batch: 64}", "baselines=false", "rank_samples=24",
    "linear={epochs: 2, learning_rates: [0.01, 0.1], curve: false, last_layers: [], batch: 16}", "logistic.strengths=[0.01, 1]",
    "knn={k: [3, 5], temperatures: [0.07], curve: false}", "few_shot={shots: [2, 4], trials: 4, l2: [1, 100]}", "holdout_fraction=0.2",
    "widen=false",
]  # fmt: skip
MAE = "augmented=[mae]  mae={epochs: 3, warmup_epochs: 1, batch: 16, learning_rates: [0.1]}"
ATTENTIVE = "augmented=[attentive]  attentive={epochs: 3, warmup_epochs: 1, batch: 16, learning_rates: [1e-2, 1e-1], curve: false}"
FIGURES = "linear logistic knn few_shot feature_rank"
CHANGES = {
    "encoder": [Change("encoder={second}", FIGURES + " digest")],
    "beside": [Change("beside=[{second}]", "rows gains", same=FIGURES)],
    "train": [Change("train={again}", FIGURES)],
    "test": [Change("test={test}", "linear_sure reported printed")],
    "ledger": [Change("ledger=mine/reads", "ledger", "test={test}", same=FIGURES + " reported")],
    "out": [Change("out=elsewhere", "folder", same=FIGURES)],
    "seed": [Change("seed=1", "linear few_shot split")],
    "train_samples": [Change("train_samples=40", FIGURES + " train_images")],
    "test_samples": [Change("test_samples=9", "linear_sure reported", "test={test}", same="feature_rank train_images")],
    "holdout_fraction": [Change("holdout_fraction=0.3", "linear split")],
    "metric": [Change("metric=balanced_accuracy", "metric")],
    "class_weight": [Change("class_weight=balanced", "linear_sure printed", "train={uneven}", same="knn few_shot")],
    "widen": [Change("widen=true", "logistic", same="reported")],
    "repeats": [Change("repeats=2", "linear knn few_shot printed", same="reported")],
    "random_inits": [Change("random_inits=2", "seeds", "baselines=true  random_inits=1", same=FIGURES)],
    "extract_only": [Change("extract_only=true", "linear logistic knn few_shot printed rows")],
    "rank_only": [Change("rank_only=true", "linear logistic knn few_shot printed")],
    "rank_samples": [Change("rank_samples=12", "feature_rank", same="linear logistic knn few_shot")],
    "augmented": [Change("augmented=[mae]  mae={epochs: 1, warmup_epochs: 0, batch: 16}", "mae printed", same=FIGURES)],
    "baselines": [Change("baselines=true", "rows gains", same=FIGURES)],
    "near_duplicates": [Change("near_duplicates=0.05", "near printed", same=FIGURES), Change("near_duplicates=1", "near", "near_duplicates=0.05")],
    "features.layers": [Change("features.layers=[1, 2]", FIGURES + " spec")],
    "features.pooling": [Change("features.pooling=cls", FIGURES + " spec"), Change("features.pooling=both", FIGURES + " spec"), Change("features.pooling=predictor", "error")],
    "features.resolution": [Change("features.resolution=24", FIGURES + " spec printed")],
    "features.crop": [Change("features.crop=0.6", FIGURES + " spec")],
    "features.precision": [Change("features.precision=bf16", "linear_sure feature_rank spec printed")],
    "features.batch": [Change("features.batch=7", "batches")],
    "features.workers": [Change("features.workers=3", "workers", same=FIGURES)],
    "features.max_pixels": [Change("features.max_pixels=300", "error")],
    "features.pixel_side": [Change("features.pixel_side=4", "pixels", "baselines=true", same=FIGURES)],
    "features.cache": [Change("features.cache=kept", "cache", same=FIGURES)],
    "linear.learning_rates": [Change("linear.learning_rates=[0.02]", "linear", same="logistic knn few_shot")],
    "linear.curve": [Change("linear.curve=true", "linear spec", same="logistic knn few_shot")],
    "linear.last_layers": [Change("linear.last_layers=[2]", "linear spec", same="logistic knn few_shot")],
    "linear.epochs": [Change("linear.epochs=3", "linear_sure", same="logistic knn few_shot")],
    "linear.batch": [Change("linear.batch=30", "linear_sure", same="logistic knn few_shot")],
    "linear.weight_decay": [Change("linear.weight_decay=0.5", "linear_sure", same="logistic knn few_shot")],
    "logistic.strengths": [Change("logistic.strengths=[0.1]", "logistic", same="linear knn few_shot")],
    "logistic.tolerance": [Change("logistic.tolerance=0.2", "logistic", same="linear knn few_shot")],
    "logistic.passes": [Change("logistic.passes=1", "logistic", same="linear knn few_shot")],
    "knn.k": [Change("knn.k=[7]", "knn", same="linear logistic few_shot")],
    "knn.temperatures": [Change("knn.temperatures=[1]", "knn", same="linear logistic few_shot")],
    "knn.curve": [Change("knn.curve=true", "knn spec printed", same="linear logistic few_shot")],
    "few_shot.shots": [Change("few_shot.shots=[3]", "few_shot", same="linear logistic knn")],
    "few_shot.trials": [Change("few_shot.trials=3", "few_shot", same="linear logistic knn")],
    "few_shot.l2": [Change("few_shot.l2=[1e6]", "few_shot", same="linear logistic knn")],
    "mae.epochs": [Change("mae.epochs=2", "mae_sure", MAE, same=FIGURES)],
    "mae.warmup_epochs": [Change("mae.warmup_epochs=2", "mae_sure", MAE, same=FIGURES)],
    "mae.batch": [Change("mae.batch=32", "mae_sure images_per_step", MAE)],
    "mae.micro_batch_max": [Change("mae.micro_batch_max=4", "passes", MAE)],
    "mae.learning_rates": [Change("mae.learning_rates=[0.5]", "mae_sure", MAE), Change("mae.learning_rates=[0.5, 0.1]", "mae", MAE)],
    "mae.crop": [Change("mae.crop=0.5", "mae_sure", MAE, same=FIGURES), Change("mae.crop=null", "mae_sure", MAE, same=FIGURES)],
    "mae.crop_scale": [Change("mae.crop_scale=[0.5, 0.6]", "mae_sure", MAE)],
    "attentive.epochs": [Change("attentive.epochs=2", "attentive_sure", ATTENTIVE, same=FIGURES)],
    "attentive.warmup_epochs": [Change("attentive.warmup_epochs=2", "attentive_sure", ATTENTIVE, same=FIGURES)],
    "attentive.batch": [Change("attentive.batch=32", "attentive_sure images_per_step", ATTENTIVE)],
    "attentive.micro_batch_max": [Change("attentive.micro_batch_max=4", "passes", ATTENTIVE)],
    "attentive.learning_rates": [Change("attentive.learning_rates=[1e-3]", "attentive", ATTENTIVE)],
    "attentive.curve": [Change("attentive.curve=true", "attentive printed", ATTENTIVE, same=FIGURES)],
    "attentive.crop": [Change("attentive.crop=0.5", "attentive_sure", ATTENTIVE, same=FIGURES), Change("attentive.crop=null", "attentive_sure", ATTENTIVE, same=FIGURES)],
    "attentive.crop_scale": [Change("attentive.crop_scale=[0.5, 0.6]", "attentive_sure", ATTENTIVE)],
    "attentive.weight_decay": [Change("attentive.weight_decay=0.9", "attentive_sure", ATTENTIVE)],
}  # fmt: skip
ELSEWHERE = {
    "patience_seconds": "tests/pipeline/test_alive.py, on processes that stop",
    "patience_slow_seconds": "tests/processes/test_watchman.py",
    "shard_cache": "tests/pipeline/test_stores.py: it changes whence images come, and nothing of them",
    "shard_cache_gb": "tests/pipeline/test_stores.py",
}


def figures(place: Path, out: Path, cache: Path, printed: str) -> dict:
    nothing = {"rows": {"pretrained": {"about": {"feature_spec": None}}}, "encoder": {"digest": None}}  # of extraction alone
    results = json.loads((out / "results.json").read_text()) if (out / "results.json").exists() else nothing
    row = results["rows"]["pretrained"]
    sure = load_file(out / "predictions.safetensors") if (out / "predictions.safetensors").exists() else {}
    digest = lambda name: hashlib.sha256(sure[name].numpy().tobytes()).hexdigest() if name in sure else None
    probes = ("linear", "logistic", "knn", "mae", "attentive")
    found = {name: [row.get(name), digest(f"pretrained/{name}/confidence")] for name in (*probes, "few_shot", "feature_rank")}
    for name in ("mae", "attentive"):
        found["images_per_step"] = (row.get(name) or {}).get("images_per_step", found.get("images_per_step"))
        if found[name][0]:
            found[name][0].pop("seconds")
    found |= {f"{name}_sure": digest(f"pretrained/{name}/confidence") for name in probes}
    found |= {name: results.get(name) for name in ("train_images", "reported_on")}
    words = re.sub(r"[0-9.]+ images/s|\(seconds: .*\)|[0-9.]+ s\b", "", printed.replace(str(out), "OUT"))
    return found | {
        "digest": results["encoder"]["digest"],
        "rows": list(results["rows"]),
        "gains": len(results.get("gains", [])),
        "metric": [results.get("metric"), [each["metric"] for each in results.get("verdict", [])]],
        "seeds": {name: (line.get("linear") or {}).get("seeds") for name, line in results["rows"].items()},
        "reported": [results.get("reported_on"), results.get("reported_images")],
        "split": [results.get(name) for name in ("fit_images", "holdout_images")] + [digest("samples")],
        "spec": row["about"]["feature_spec"],
        "pixels": results["rows"].get("raw pixels", {}).get("about"),
        "cache": sorted(path.name for path in place.glob("kept/*/features.json"))
        + [path.parent.name for path in cache.glob("*/features.json")],
        "ledger": [path.name for path in place.glob("mine/*")],
        "near": (results.get("overlap") or {}).get("near_duplicates"),
        "printed": words,
        "folder": out.name,
    }


@pytest.fixture(scope="module")
def observed(tmp_path_factory) -> dict[tuple[str, str], dict]:
    """(beside, words) -> observations; the reference runs twice, the second time as ("again", "")."""
    place = tmp_path_factory.mktemp("keys")
    for name, seed in (("first", 5), ("second", 6)):
        write_encoder(place / name, build_encoder(TINY, seed).vit.state_dict(), TINY, (0.5,) * 3, (0.5,) * 3, name)
    sets = {
        name: make_split(place / name, count=count, seed=seed)
        for name, count, seed in (("train", 60, 1), ("again", 60, 2), ("test", 21, 3))
    }
    sets["uneven"] = make_split(place / "uneven", count=75, seed=4, uneven=True)
    known = {f"{{{name}}}": str(place / name) for name in ("second", "again", "test", "uneven")}
    rows = [row for changes in CHANGES.values() for row in changes]
    names = [("", ""), ("again", ""), *((row.beside, "") for row in rows), *((row.beside, row.words) for row in rows)]
    everything: dict[tuple[str, str], dict] = {}
    batches, workers, passes = [], [], []
    loader, tokens = torch.utils.data.DataLoader, EncoderExtractor.tokens
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(place):

        def counting(*given, **named):
            batches.append(named["batch_sampler"].micro_batch)
            workers.append(named["num_workers"])
            return loader(*given, **named | {"num_workers": 0, "multiprocessing_context": None, "prefetch_factor": None})

        for drawing in ("draw_choices", "draw_answers"):  # which take most of the time, and no key
            patch.setattr(probe_report, drawing, lambda *_: [])
        patch.setattr("mpp.data.loader.DataLoader", counting)
        patch.setattr(EncoderExtractor, "tokens", lambda self, images, layers: passes.append(len(images)) or tokens(self, images, layers))
        for number, (beside, words) in enumerate(dict.fromkeys(names)):
            text = split("" if beside == "again" else beside) + split(words)
            for name, value in known.items():
                text = [word.replace(name, value) for word in text]
            cache = place / f"tables{number}" if "features.cache" in words or beside == "again" else place / "tables"
            own = [] if "features.cache" in words else [f"features.cache={cache}"]
            own = (
                own
                if "features.batch" not in words and "features.workers" not in words
                else [f"features.cache={place / f'tables{number}'}"]
            )
            batches.clear(), workers.clear(), passes.clear()
            text = [f"encoder={place / 'first'}", f"train={sets['train']}", f"out=out{number}", *BASE, *own, *text]
            config, printed = load(ProbeConfig, None, text), io.StringIO()
            try:
                with contextlib.redirect_stdout(printed):
                    assert linear_probe.probe(config, text) == 0
                found = figures(place, place / str(config.out), cache, printed.getvalue())
            except UserError as error:
                found = {"error": str(error)}
            everything[beside, words] = found | {"batches": list(batches), "workers": list(workers), "passes": sorted(set(passes))}
    return everything


def test_every_key_has_a_row():
    assert keys(ProbeConfig) == CHANGES.keys() | ELSEWHERE.keys()


def test_every_key_changes_what_it_says(observed):
    assert "error" not in observed["", ""], observed["", ""]
    apart = {name for name in observed["", ""] if observed["", ""][name] != observed["again", ""].get(name)}
    assert apart <= {"folder", "cache", "printed", "batches", "workers", "passes"}
    refused = {name: found["error"] for name, found in observed.items() if "error" in found}
    assert refused.keys() == {("", "features.max_pixels=300"), ("", "features.pooling=predictor")}, refused
    assert not (found := faults(CHANGES, observed)), "\n".join(found)
    assert set(observed["", "features.workers=3"]["workers"]) == {3}
    assert np.isfinite(list(observed["", ""]["feature_rank"][0].values())).all()
