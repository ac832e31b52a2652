"""Every field of fine-tuning's config is changed once, in a whole run: what it is said to change becomes another, everything else stays."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from mpp.config.finetune import FinetuneConfig
from tests.keys import keys
from tests.pipeline.conftest import metrics, tensors
from tests.pipeline.finetune_runs import checkpoints, results, run_all, said, write_encoder, write_images

REFERENCE = [
    "encoder=given/encoder",
    "train=given/train",
    "test=given/test",
    "model={drop_path: 0.3, head_std: 0.3}",
    "augment={crop_scale: [0.3, 1], rand_augment: rand-m5-mstd0.5-inc1, erasing: 0.5, mixup: 0.6, cutmix: 1.5, mix_share: 0.9}",
    "optim={base_lr: 0.05, lr_batch: 16, final_lr: 0.01, layer_decay: 0.7, eps: 1e-3, clip_norm: 0.3, steps: 6, warmup_steps: 1, ema: 0.3}",
    "data={global_batch: 8, holdout_fraction: 0.25}",
    "system={precision: fp32, micro_batch_max: 4, workers: 0}",
    "log={every_steps: 1}",
    "checkpoint={every_samples: 8, keep: 99}",
]

# What is looked at in a run, from its beginning to its end.
MEASURED = {"look", "holdout", "test"}
AFTER_STEPS = {"weights", "average", *MEASURED}
AFTER_GRADIENT = {"loss", "norm", *AFTER_STEPS}
FROM_THE_START = {"start", *AFTER_GRADIENT}


@dataclass(frozen=True)
class Row:
    """changed: a word, `key=` being the field's own; differs: what then is another, beside `maybe`; given: words for both runs; says: what only
    the changed run prints."""

    changed: object
    differs: frozenset | set = frozenset()
    given: tuple[str, ...] = ()
    says: str = ""
    maybe: frozenset | set = frozenset()
    becomes: dict = field(default_factory=dict)  # of what differs, the value


IN_EPOCHS = ("optim.steps=null", "optim.warmup_steps=null", "optim.epochs=1", "optim.warmup_epochs=0.4")
SGD = ("optim.name=sgd",)
LARGE = ("train=given/large", "data.holdout_fraction=0", "data.max_pixels=600")
EVERY_STEP = {"checkpoints", "start"}  # of which only the kept ones are looked at

TABLE = {
    "encoder": Row("given/another", FROM_THE_START),
    "init": Row("random", FROM_THE_START | {"row"}, says="random initialisation", becomes={"row": "from scratch"}),
    "train": Row("given/train2", AFTER_GRADIENT),
    "test": Row("given/test2", {"test"}),
    "ledger": Row("mine/reads", says=r"have been read 1 time, for 1 folder \(ledger mine/reads\)"),
    "run_dir": Row("elsewhere"),
    "seed": Row(5, FROM_THE_START),
    "metric": Row("balanced_accuracy", maybe={"test", "weights"}, says="by balanced accuracy"),
    "resume": Row("must", says="refused: .*holds no commit"),
    "resume_changes": Row("optim.name", says="refused: .*only keys of optim can"),
    "system.gradient_precision": Row("bf16", {"norm"}, ("system.zero_stage=1",), maybe=AFTER_GRADIENT - {"norm"}),
    "model.resolution": Row([8, 16], FROM_THE_START | {"export"}),
    "model.patch_size": Row(8, FROM_THE_START | {"export"}),
    "model.pooling": Row("cls", AFTER_GRADIENT | {"export"}),
    "model.norm": Row("pooled", FROM_THE_START | {"export"}),
    "model.head_std": Row(0.2, FROM_THE_START),
    "model.drop_path": Row(0.1, AFTER_GRADIENT),
    "augment.crop_scale": Row([0.2, 0.9], AFTER_GRADIENT),
    "augment.crop_ratio": Row([0.5, 1.5], AFTER_GRADIENT),
    "augment.flip": Row("false", AFTER_GRADIENT),
    "augment.vertical_flip": Row("true", AFTER_GRADIENT),
    "augment.turns": Row("true", AFTER_GRADIENT),
    "augment.rand_augment": Row("null", AFTER_GRADIENT),
    "augment.erasing": Row(0.9, AFTER_GRADIENT),
    "augment.mixup": Row(0.3, AFTER_GRADIENT),
    "augment.cutmix": Row(0.7, AFTER_GRADIENT),
    "augment.mix_share": Row(0.3, AFTER_GRADIENT),
    "augment.cutmix_share": Row(0.05, AFTER_GRADIENT),
    "augment.smoothing": Row(0.2, AFTER_GRADIENT),
    "optim.name": Row("sgd", AFTER_STEPS),
    "optim.base_lr": Row(0.04, AFTER_STEPS | {"rate", "peak"}, becomes={"peak": 0.02}),
    "optim.lr_batch": Row("null", AFTER_STEPS | {"rate", "peak"}, becomes={"peak": 0.05}),
    "optim.final_lr": Row(0.02, AFTER_STEPS | {"rate"}),
    "optim.layer_decay": Row(0.9, AFTER_STEPS),
    "optim.betas": Row([0.9, 0.99], AFTER_STEPS),
    "optim.eps": Row(1e-2, AFTER_STEPS),
    "optim.momentum": Row(0.5, AFTER_STEPS, SGD),
    "optim.weight_decay": Row(0.2, AFTER_STEPS),
    "optim.clip_norm": Row(0.1, AFTER_STEPS),
    "optim.epochs": Row(1.6, AFTER_STEPS | {"rate", "counts", "checkpoints"}, IN_EPOCHS, becomes={"counts": (41, 13, 12, 64)}),
    "optim.warmup_epochs": Row(0.6, {"weights", "average", "holdout", "test", "rate"}, IN_EPOCHS),
    "optim.steps": Row(7, AFTER_STEPS | {"rate", "counts", "checkpoints"}, becomes={"counts": (41, 13, 12, 56)}),
    "optim.warmup_steps": Row(2, AFTER_STEPS | {"rate"}),
    "optim.class_weight": Row("balanced", AFTER_GRADIENT, says="the loss weighs classes: ant 0.7.., bee 1.05, cat 1.3."),
    "optim.ema": Row("null", {"average", "look", "holdout"}, maybe={"test"}),
    "data.holdout_fraction": Row(0.4, AFTER_GRADIENT | {"counts"}, becomes={"counts": (32, 22, 12, 48)}),
    "data.holdout_seed": Row(3, AFTER_GRADIENT),
    "data.label_fraction": Row(0.5, AFTER_GRADIENT | {"counts"}, becomes={"counts": (20, 13, 12, 48)}),
    "data.labels_per_class": Row(6, AFTER_GRADIENT | {"counts"}, becomes={"counts": (18, 13, 12, 48)}),
    "data.global_batch": Row(10, AFTER_GRADIENT | {"rate", "peak", "counts"}, becomes={"peak": 0.03125, "counts": (41, 13, 12, 60)}),
    "data.streams": Row(2, AFTER_GRADIENT),
    "data.block": Row(2, AFTER_GRADIENT),
    "data.test_crop": Row(0.6, MEASURED | {"export"}),
    "data.max_pixels": Row(100, says="refused: .*the limit is 100"),
    "data.max_bad_fraction": Row(1, says="top-1", given=LARGE),
    "system.precision": Row("bf16", AFTER_GRADIENT, says="bf16"),
    "system.micro_batch_max": Row(8, AFTER_GRADIENT, says="micro-batch 8 x accumulation 1"),
    "system.workers": Row(1, says="1 loader process"),
    "system.images": Row("ram", says="images decoded once, in RAM", given=("augment.rand_augment=null",)),
    "system.decode": Row("device", says="refused: .*augment.rand_augment=null"),
    "system.zero_stage": Row(1, maybe=AFTER_GRADIENT, says="ZeRO 1"),
    "system.compile": Row("true", says="compiled"),
    "system.cuda_graphs": Row("true", says="compiled"),
    "system.recompute": Row("selective", says="computed again: True"),
    "system.fused_attention": Row("false", maybe=AFTER_GRADIENT, says="fused attention: False"),
    "system.deepspeed": Row("{zero_optimization: {overlap_comm: nonsense}}", says="refused: DeepSpeed refuses system.deepspeed"),
    "log.every_steps": Row(3, {"loss", "norm", "rate"}),
    "log.holdout_every_epochs": Row(2, {"look"}, becomes={"look": {}}),
    "checkpoint.every_minutes": Row(1e-9, EVERY_STEP, ("checkpoint.every_samples=null",), becomes={"checkpoints": [1, 2, 3, 4, 5, 6]}),
    "checkpoint.every_samples": Row(24, EVERY_STEP, becomes={"checkpoints": [3, 6]}),
    "checkpoint.keep": Row(2, EVERY_STEP, becomes={"checkpoints": [5, 6]}),
    "checkpoint.keep_every_samples": Row(16, {"checkpoints"}, ("checkpoint.keep=2",), becomes={"checkpoints": [2, 4, 5, 6]}),
    "checkpoint.keep_at_samples": Row([16], {"checkpoints"}, ("checkpoint.keep=2",), becomes={"checkpoints": [2, 5, 6]}),
}

ELSEWHERE = {
    "repeats": "tests/pipeline/test_finetune_repeats.py",
    "fit": "tests/pipeline/test_finetune.py",
    "system.matrix_tflops": "tests/pipeline/test_speed_figures.py, on runs that are long enough",
    "system.max_skipped_steps": "tests/pipeline/test_bad_numbers.py, on steps that are not finite",
    "system.patience_seconds": "tests/pipeline/test_alive.py, on processes that stop",
    "system.patience_slow_seconds": "tests/processes/test_watchman.py",
    "system.disk_patience_seconds": "tests/disk/test_patience.py",
    "system.cache": "tests/pipeline/test_stores.py: it changes whence images come, and nothing of them",
    "system.cache_gb": "tests/pipeline/test_stores.py",
    "checkpoint.background": "tests/train/test_saving.py: it changes when a commit exists, and nothing of it",
    "checkpoint.give_up_minutes": "tests/train/test_saving.py, on disks that take nothing",
    "checkpoint.stop_after_minutes": "tests/train/test_saving.py, against the clock",
}


def test_the_table_has_every_field_and_no_other():
    assert sorted([*TABLE, *ELSEWHERE]) == sorted(keys(FinetuneConfig))


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory) -> Path:
    """With the runs that the collected tests ask for."""
    folder = tmp_path_factory.mktemp("fields")
    (folder / "given").mkdir()
    write_encoder(folder / "given/encoder", 0)
    write_encoder(folder / "given/another", 1)
    for name, seed, smallest in (("train", 1, 12), ("train2", 2, 12), ("large", 5, 22)):
        write_images(folder / "given" / name, {"ant": 24, "bee": 17, "cat": 13}, seed, smallest)
    for name, seed in (("test", 3), ("test2", 4)):
        write_images(folder / "given" / name, {"ant": 3, "bee": 4, "cat": 5}, seed)
    wanted = {
        item.callspec.params["key"] for item in request.session.items if "key" in getattr(getattr(item, "callspec", None), "params", {})
    }
    runs = {}
    for key, row in TABLE.items():
        if key in wanted:
            runs[base_of(row)] = [*REFERENCE, f"run_dir={base_of(row)}", *row.given]
            runs[key] = [*REFERENCE, f"run_dir={key}", *row.given, f"{key}={row.changed}"]
    run_all(folder, runs | {"again": [*REFERENCE, "run_dir=again"]})
    return folder


def base_of(row: Row) -> str:
    return "reference" + "".join(re.sub(r"\W+", "_", f" {word}") for word in row.given)


def seen(run: Path) -> dict:
    """What is looked at in a finished run."""
    if not (run / "results.json").exists():
        return {}
    written, found = metrics(run), results(run)
    kept = checkpoints(run)
    of = lambda step, kind: {name: tensor for name, tensor in tensors(run, step).items() if name.startswith(kind)}
    _, row = found["rows"].items()
    return {
        "start": of(1, "weight/") if 1 in kept else None,
        "loss": written[1].get("train/loss") if 1 in written else None,
        "norm": written[1].get("optim/gradient_norm") if 1 in written else None,
        "rate": {step: values["optim/learning_rate"] for step, values in written.items() if "optim/learning_rate" in values},
        "peak": found["learning_rate"],
        "weights": of(kept[-1], "weight/"),
        "average": of(kept[-1], "ema/"),
        "look": {step: values for step, values in holdouts(written).items() if step != max(written)},
        "holdout": {name: each["loss"] for name, each in found["holdout"].items()},
        "test": row[1]["finetune"]["loss"],
        "row": row[0],
        "counts": (
            found["train_images"],
            found["holdout"].get("weights", {}).get("images"),
            found["reported_images"],
            found["samples_seen"],
        ),
        "export": {k: v for k, v in json.loads((run / "encoder/config.json").read_text()).items() if k != "mpp"},
        "checkpoints": kept,
    }


def holdouts(written: dict) -> dict:
    return {
        step: {k: v for k, v in values.items() if k.startswith("holdout/loss")}
        for step, values in written.items()
        if "holdout/loss" in values
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def test_the_same_words_give_the_same_run(folder):
    """So that a difference is the field's."""
    run_all(folder, {"once": [*REFERENCE, "run_dir=once"]})
    once, again = seen(folder / "once"), seen(folder / "again")
    assert [name for name in once if not same(once[name], again[name])] == [] and once


@pytest.mark.long  # a run each
@pytest.mark.parametrize("key", TABLE)
def test_a_field_changes_what_it_is_said_to_change_and_nothing_else(folder, key):
    row = TABLE[key]
    base, changed = seen(folder / base_of(row)), seen(folder / (str(row.changed) if key == "run_dir" else key))
    if row.says:
        assert re.search(row.says, said(folder, key)), said(folder, key)
        assert not re.search(row.says, said(folder, base_of(row)))
    if not (base and changed):
        refused = [name for name, found in ((base_of(row), base), (key, changed)) if not found]
        assert row.says and len(refused) == 1 and "refused: " in said(folder, refused[0]), said(folder, refused[0])
        return
    differs = {name for name in base if not same(base[name], changed[name])}
    assert differs - set(row.maybe) == set(row.differs) - set(row.maybe), said(folder, key)
    assert differs or row.says or key == "run_dir"
    for name, value in row.becomes.items():
        assert changed[name] == pytest.approx(value) if isinstance(value, float) else changed[name] == value, (name, changed[name])


@pytest.mark.parametrize("key", ["log.every_steps"])
def test_a_logged_loss_is_the_mean_since_the_line_before(folder, key):
    every, third = metrics(folder / "reference"), metrics(folder / key)
    assert [step for step, values in third.items() if "train/loss" in values] == [3, 6]
    for last in (3, 6):
        mean = sum(every[step]["train/loss"] for step in range(last - 2, last + 1)) / 3
        assert third[last]["train/loss"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("key", ["data.max_bad_fraction"])
def test_a_resumed_run_goes_on_counting_bad_samples_and_seconds(folder, key):
    whole = folder / key
    shutil.copytree(whole, folder / "resumed")
    for step in (4, 5, 6):
        shutil.rmtree(folder / "resumed" / "checkpoints" / f"{step:09d}")
    run_all(folder, {"resumed": [*REFERENCE, *TABLE[key].given, f"{key}=1", "run_dir=resumed"]})
    assert "resumes at step 3" in said(folder, "resumed")
    of_step, ours = metrics(whole), metrics(folder / "resumed")
    bad = [of_step[step]["data/bad_samples"] for step in range(1, 7)]
    assert 0 < bad[2] < bad[5] and bad == [ours[step]["data/bad_samples"] for step in range(1, 7)]
    assert results(folder / "resumed")["seconds"] == pytest.approx(results(whole)["seconds"], abs=3)
    assert results(whole)["seconds"] > 20
    assert same(seen(folder / "resumed")["weights"], seen(whole)["weights"])


def test_without_a_test_split_the_holdout_is_reported_and_without_a_holdout_the_average(folder):
    words = [*REFERENCE, "data.holdout_fraction=0", "run_dir=no_holdout"]
    run_all(folder, {"no_holdout": words, "no_test": [*REFERENCE, "test=null", "run_dir=no_test"]})
    without, reported = results(folder / "no_holdout"), results(folder / "no_test")
    assert without["rows"]["fine-tuned"]["finetune"]["weights"] == "average"
    assert (without["reported_on"], without["holdout"], without["train_images"]) == ("test", {}, 54)
    assert (reported["reported_on"], reported["reported_images"], reported["test_reads"]) == ("holdout of train", 13, 0)
