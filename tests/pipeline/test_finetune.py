"""Fine-tuning as a whole program: what it writes, resuming, several processes, few labels."""

import json
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.numpy import load_file

from mpp.config.small import tuning
from mpp.data.fingerprints import content_id
from mpp.data.shards import ShardSet
from mpp.mains.finetune_end import Tuned, measured
from mpp.processes.world import World
from mpp.transfer.split import CHOOSE, few_labels, hold_out
from tests.pipeline.conftest import Finished, finish, metrics, start, succeed, tensors

TINY = [
    "model={resolution: [8, 16], drop_path: 0.2, head_std: 0.01}",
    "augment={crop_scale: [0.5, 1]}",
    "data={global_batch: 12, holdout_fraction: 0.25, test_crop: 1.0}",
    "optim={base_lr: 1e-3, lr_batch: null, epochs: 3, warmup_epochs: 1, ema: 0.9}",
    "log={every_steps: 1}",
    "checkpoint={every_samples: 24, keep: 9}",
    "system={precision: fp32, micro_batch_max: 12, workers: 0}",
]
STEP, LAST = 4, 9  # 36 of 48 images in steps of 12: 3 an epoch


@pytest.fixture(scope="module")
def pretrained(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("pretrained") / "run"
    succeed(run, shards, "optim.total_samples=24", "optim.warmup_samples=0", "log.pictures=0")
    return run


def finetune(pretrained, run, shards, *words: str, world: int = 1) -> Finished:
    program = ["mpp/finetune.py", *TINY, f"encoder={pretrained}", f"train={shards}", f"run_dir={run}", *words]
    finished = finish(start([], world, program))
    assert finished.status == [0] * world, finished.err[-3000:]
    return finished


@pytest.fixture(scope="module")
def uninterrupted(pretrained, shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, finetune(pretrained, run, shards)


def forget_after(run, step):
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)


def assert_same_bits(a, b, last=LAST):
    ours, theirs = tensors(a, last), tensors(b, last)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_resumed_run_is_bit_identical_its_average_too(uninterrupted, pretrained, shards, tmp_path):
    whole, run = uninterrupted[0], tmp_path / "run"
    shutil.copytree(whole, run)
    forget_after(run, STEP)
    assert f"resumes at step {STEP}" in finetune(pretrained, run, shards).out
    assert {name.partition("/")[0] for name in tensors(run, LAST)} == {"weight", "exp_avg", "exp_avg_sq", "ema"}
    assert_same_bits(whole, run)
    assert metrics(whole) == metrics(run)
    assert (whole / "predictions.safetensors").read_bytes() == (run / "predictions.safetensors").read_bytes()


def test_layers_learn_at_their_own_rates(uninterrupted):
    """AdamW moves a weight by about the rate, so after some steps embeddings have moved decay^3 as far as the head (2 blocks between them)."""
    run, _ = uninterrupted
    before, after = tensors(run, 2), tensors(run, 4)
    moved = lambda name: (after[f"weight/{name}"] - before[f"weight/{name}"]).abs().median().item()
    assert moved("patch_embed.proj.weight") == pytest.approx(moved("head.weight") * 0.65**3, rel=0.5)
    assert moved("blocks.1.attn.qkv.weight") == pytest.approx(moved("head.weight") * 0.65, rel=0.3)


def test_the_results_say_what_was_measured_and_can_be_counted_again(uninterrupted, shards):
    run, finished = uninterrupted
    found = json.loads((run / "results.json").read_text())
    predictions = load_file(run / "predictions.safetensors")
    _, held = hold_out(ShardSet.open(shards).labels, 0.25, 0, CHOOSE)
    assert "measured 12 of 12 images, 0 repeated" in finished.out
    assert found["pictures"] == ["confusion.png", "reliability.png", "mistakes.png"]
    assert all((run / picture).read_bytes().startswith(b"\x89PNG") for picture in found["pictures"])
    assert np.array_equal(predictions["truth"], ShardSet.open(shards).labels[held])
    assert {name: (value.dtype, value.shape) for name, value in predictions.items()} == {
        "fine-tuned/finetune/predicted": (np.int32, (1, 1, 12)),
        "fine-tuned/finetune/confidence": (np.float32, (1, 1, 12)),
        "majority class/always/predicted": (np.int32, (1, 1, 12)),
        "majority class/always/confidence": (np.float32, (1, 1, 12)),
        "truth": (np.int64, (12,)),
        "in_train": (np.bool_, (12,)),
        "samples": (np.int64, (12,)),
    }
    assert np.array_equal(predictions["samples"], held)
    top1 = found["rows"]["fine-tuned"]["finetune"]
    assert top1["accuracy"] == (predictions["fine-tuned/finetune/predicted"] == predictions["truth"]).mean()
    assert (found["reported_on"], found["test_reads"], found["train_images"], found["samples_seen"]) == ("holdout of train", 0, 36, 108)
    images = ShardSet.open(shards)
    assert found["data"] == {"train": {"path": str(shards), "identity": images.identity, "content": content_id(images.prints)}}
    (seen,) = found["overlap"]["encoders"]
    assert (found["overlap"]["train"], found["overlap"]["holdout_in_fit"]["images"]) == (0, 0)
    assert (seen["encoder"], seen["set"], seen["images"]) == (found["encoder"]["path"], "the pretraining set", 12)
    best = max(found["holdout"].values(), key=lambda each: each["accuracy"])
    assert found["holdout"][top1["weights"]]["accuracy"] == best["accuracy"] == top1["accuracy"]


def test_timm_opens_what_was_fine_tuned_with_its_head(uninterrupted, shards):
    run, _ = uninterrupted
    model = timm.create_model(f"local-dir:{run}/encoder", pretrained=True).eval()
    assert (model.num_classes, model.patch_embed.grid_size, model.pretrained_cfg["label_names"]) == (2, (2, 4), ["dark", "light"])
    chosen = json.loads((run / "results.json").read_text())["rows"]["fine-tuned"]["finetune"]["weights"]
    kept = tensors(run, LAST)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[f"{'weight' if chosen == 'weights' else 'ema'}/{name}"]), name


@pytest.mark.slow
def test_two_processes_see_the_same_samples_mixed_alike_and_agree_to_rounding(pretrained, shards, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["model.drop_path=0"]
    finetune(pretrained, one, shards, *words)
    finished = finetune(pretrained, two, shards, *words, "system.micro_batch_max=2", world=2)
    assert "micro-batch 2 x accumulation 3" in finished.out and "12 of 12 images, 0 repeated" in finished.out
    for step, values in metrics(one).items():
        for name in ("train/loss", "optim/gradient_norm"):
            if name in values:
                assert metrics(two)[step][name] == pytest.approx(values[name], rel=1e-4), (step, name)


@pytest.mark.slow
def test_the_vit_protocol_from_scratch_on_few_labels_and_a_test_split_read_once(pretrained, make_shards, tmp_path):
    run = tmp_path / "run"
    train, test = make_shards(tmp_path / "train", [24, 24], classes=2), make_shards(tmp_path / "test", [9, 8], classes=2)
    words = ["optim={name: sgd, base_lr: 0.03, lr_batch: null, layer_decay: 1, weight_decay: 0, clip_norm: 1, steps: 4, warmup_steps: 1}"]
    words += ["augment={rand_augment: null, erasing: 0, mixup: 0, cutmix: 0, smoothing: 0}", "init=random", f"test={test}"]
    words += ["data.labels_per_class=6", "model.head_std=0", "checkpoint.every_samples=12"]
    finished = finetune(pretrained, run, train, *words)
    assert "12 labelled images of 2 classes" in finished.out and "measured 17 of 17 images, 0 repeated" in finished.out
    first = next(iter(metrics(run).values()))
    assert first["train/loss"] == pytest.approx(np.log(2), abs=1e-6)  # a zero head
    found = json.loads((run / "results.json").read_text())
    assert (found["reported_on"], found["test_reads"], list(found["rows"])) == ("test", 1, ["majority class", "from scratch"])
    # Images have their key's pixels, so those of the test split are the first of train; 12 of these and the hold-out were used.
    kept, held = hold_out(ShardSet.open(train).labels, 0.25, 0, CHOOSE)
    used = {*kept[few_labels(ShardSet.open(train).labels[kept], 0, per_class=6)].tolist(), *held.tolist()}
    shared = [sample in used for sample in range(17)]
    assert (found["overlap"]["train"], found["overlap"]["images"], found["overlap"]["encoders"]) == (sum(shared), 17, [])
    answers = load_file(run / "predictions.safetensors")
    right = (answers["from scratch/finetune/predicted"][0, 0] == answers["truth"])[~np.array(shared)]
    assert found["overlap"]["without"]["from scratch"]["finetune"]["accuracy"] == pytest.approx(right.mean())
    assert f"overlap {sum(shared)} of 17 test images are also in train, byte for byte" in finished.out
    assert len((run / "test_reads.jsonl").read_text().splitlines()) == 1
    again = tmp_path / "again"
    shutil.copytree(run, again)
    forget_after(again, 2)
    finetune(pretrained, again, train, *words)
    assert {name.partition("/")[0] for name in tensors(again, 4)} == {"weight", "momentum_buffer"}
    assert_same_bits(run, again, 4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_on_two_processes_resume_to_the_same_bits(stage, pretrained, shards, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    words = [f"system.zero_stage={stage}", "model.drop_path=0"]
    finetune(pretrained, run, shards, *words, world=2)
    shutil.copytree(run, again)
    forget_after(again, STEP)
    finetune(pretrained, again, shards, *words, world=2)
    assert_same_bits(run, again)


def test_a_finished_run_says_so_and_measures_nothing_again(uninterrupted, pretrained, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    finished = finetune(pretrained, run, shards)
    assert (
        "already finished at step 9: nothing to do; a larger optim.epochs trains it on" in finished.out and "measured" not in finished.out
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_a_finished_run_is_extended_on_request_and_resumes_inside_the_extension(uninterrupted, pretrained, shards, tmp_path):
    run, killed = tmp_path / "run", tmp_path / "killed"
    shutil.copytree(uninterrupted[0], run)
    longer = ["optim.epochs=7", "checkpoint.keep=99"]
    finished = finetune(pretrained, run, shards, *longer)
    assert "resumes at step 9" in finished.out and "extended at 108 samples" in finished.out
    rate = lambda step: (
        1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + np.cos(np.pi * (12 * (step - 10) - 14) / 130))
    )  # 144 further samples, 14 of warm-up
    for step in (12, 15, 21):
        assert metrics(run)[step]["optim/learning_rate"] == pytest.approx(rate(step), rel=1e-9)
    shutil.copytree(run, killed)
    forget_after(killed, 14)
    assert "resumes at step 14" in finetune(pretrained, killed, shards, *longer).out
    assert_same_bits(run, killed, 21)
    assert metrics(run) == metrics(killed)


@pytest.mark.long
def test_a_run_killed_between_its_last_step_and_its_results_is_measured(uninterrupted, pretrained, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run)
    found = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(found | {"commit": "of another run of the same length"}))
    finished = finetune(pretrained, run, shards)
    assert "all 9 steps are done, only measuring is left" in finished.out and "measured 12 of 12 images" in finished.out
    assert json.loads((run / "results.json").read_text())["rows"] == found["rows"]


def test_a_preset_settles_what_is_left_open_by_the_number_of_labels_and_a_run_that_goes_on_has_the_same(pretrained, shards, tmp_path):
    run, words = (
        tmp_path / "run",
        ["fit=small", "data.global_batch=16", "optim.warmup_epochs=0", "checkpoint={every_samples: 16, keep: 99}"],
    )
    base = [*TINY[:2], "data={holdout_fraction: 0.25}", "optim={epochs: 2, ema: 0.9}", *TINY[4:5], "system={precision: fp32, workers: 0}"]
    asked = ["mpp/finetune.py", *base, f"encoder={pretrained}", f"train={shards}", f"run_dir={run}", *words]
    first = finish(start([], 1, asked))
    assert first.status == [0] and "fit small: 36 labels | 2 passes in batches of 16 | pairs not mixed" in first.out
    config = yaml.safe_load((run / "config.yaml").read_text())
    settled = tuning(36, epochs=2, batch=16)
    assert config["optim"]["base_lr"] == settled["optim.base_lr"] == 1.1e-3 and config["augment"]["mixup"] == 0
    assert (config["data"]["global_batch"], config["optim"]["epochs"], config["optim"]["warmup_epochs"]) == (
        16,
        2,
        0,
    )  # words have the last say
    last, before = max(metrics(run)), tensors(run, max(metrics(run)))
    spelt = ["mpp/finetune.py", "--config", str(run / "config.yaml"), "fit=null", f"run_dir={tmp_path / 'spelt'}"]
    assert finish(start([], 1, spelt)).status == [0]
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in tensors(tmp_path / "spelt", last).items()
    )  # what it says is what it does
    forget_after(run, 2)
    assert "resumes at step 2" in finish(start([], 1, asked)).out
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(run, last).items())


def test_everything_is_measured_by_the_same_loader_processes(monkeypatch):
    world = World(0, 1, 1, torch.device("cpu"))
    run = SimpleNamespace(plan=SimpleNamespace(micro_batch=8), workers=1, world=world, engine=Mock())
    repeat, loader = SimpleNamespace(run=run, job=SimpleNamespace(loaded=Mock())), object()
    tuned, asked = Tuned(repeat, loader, None, "arch", {}), []
    monkeypatch.setattr("mpp.mains.finetune_end.measure", lambda predict, **words: asked.append((words["data"], words["kept"])))
    holdout, test = object(), object()
    for data in (holdout, holdout, test, holdout):
        measured(tuned, data)
    assert asked == [(data, loader) for data in (holdout, holdout, test, holdout)]
