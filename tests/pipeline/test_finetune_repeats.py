"""Fine-tuning several times in one launch: what the repeats share and what they do not, resuming, and the one result."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import load_file
from sklearn.metrics import balanced_accuracy_score

from mpp.base.errors import AGAIN
from mpp.interop.read_encoder import read_encoder
from mpp.transfer.results import find_results
from tests.pipeline.conftest import finish, metrics, start, tensors
from tests.pipeline.finetune_runs import results, run_all, said, write_encoder, write_images

WORDS = [
    "encoder=given/encoder",
    "train=given/train",
    "test=given/test",
    "model={drop_path: 0.3, head_std: 0.3}",
    "augment={crop_scale: [0.3, 1], rand_augment: null, erasing: 0.5}",
    "optim={base_lr: 0.05, lr_batch: 16, layer_decay: 0.7, steps: 4, warmup_steps: 1, ema: 0.3}",
    "data={global_batch: 8, holdout_fraction: 0.25, labels_per_class: 6}",
    "system={precision: fp32, micro_batch_max: 4, workers: 0}",
    "log={every_steps: 1}",
    "checkpoint={every_samples: 8, keep: 99}",
    "seed=4",
]
LAST = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With three repeats, what is to equal the third, and two that became three."""
    folder = tmp_path_factory.mktemp("repeats")
    (folder / "given").mkdir()
    write_encoder(folder / "given/encoder", 0)
    write_images(folder / "given/train", {"ant": 24, "bee": 17, "cat": 13}, 1)
    write_images(folder / "given/test", {"ant": 3, "bee": 4, "cat": 9}, 3)
    runs = {"series": [*WORDS, "repeats=3", "run_dir=series"], "grown": [*WORDS, "repeats=2", "run_dir=grown"]}
    runs |= {f"alone{n}": [*WORDS, f"seed={4 + n}", "data.holdout_seed=4", f"run_dir=alone{n}"] for n in (0, 2)}
    run_all(folder, runs)
    return folder


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != "lock"}


def assert_same_bits(a: Path, b: Path):
    ours, theirs = tensors(a, LAST), tensors(b, LAST)
    assert ours.keys() == theirs.keys() and any(name.startswith("ema/") for name in ours)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert metrics(a) == metrics(b)
    assert (a / "predictions.safetensors").read_bytes() == (b / "predictions.safetensors").read_bytes()
    assert (a / "encoder/model.safetensors").read_bytes() == (b / "encoder/model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [0, 2])
def test_a_repeat_is_bit_equal_to_the_same_seed_alone_on_the_same_holdout(folder, number):
    assert_same_bits(folder / f"alone{number}", folder / f"series/repeat-{number}")


def test_repeats_differ_in_all_that_is_drawn_but_the_images_they_are_measured_on(folder):
    runs = [folder / f"series/repeat-{number}" for number in range(3)]
    heads = [tensors(run, 1)["weight/head.weight"] for run in runs]
    answers = [load_file(run / "predictions.safetensors") for run in runs]
    about = [json.loads((run / "measured.json").read_text()) for run in runs]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(heads[a], heads[b])
        assert not np.array_equal(answers[a]["fine-tuned/finetune/confidence"], answers[b]["fine-tuned/finetune/confidence"])
        assert np.array_equal(answers[a]["samples"], answers[b]["samples"]) and np.array_equal(answers[a]["truth"], answers[b]["truth"])
    assert [each["seed"] for each in about] == [4, 5, 6]
    assert [each["config"]["data"]["holdout_seed"] for each in about] == [4, 4, 4]
    assert {tuple(each["labels_per_class"]) for each in about} == {(6, 6, 6)} and {each["labels"] for each in about} == {18}
    for number in range(3):
        assert f"repeat {number + 1} of 3 | seed {4 + number} | 18 labels\n" in said(folder, "series")


def test_the_one_result_joins_the_repeats_draws_by_images(folder):
    found, predictions = results(folder / "series"), load_file(folder / "series/predictions.safetensors")
    alone = [load_file(folder / f"series/repeat-{n}/predictions.safetensors") for n in range(3)]
    assert {name: (value.dtype, value.shape) for name, value in predictions.items()} == {
        "fine-tuned/finetune/predicted": (np.int32, (1, 3, 16)),
        "fine-tuned/finetune/confidence": (np.float32, (1, 3, 16)),
        "majority class/always/predicted": (np.int32, (1, 1, 16)),
        "majority class/always/confidence": (np.float32, (1, 1, 16)),
        "truth": (np.int64, (16,)),
        "in_train": (np.bool_, (16,)),
        "samples": (np.int64, (16,)),
    }
    for name in ("predicted", "confidence"):
        assert np.array_equal(predictions[f"fine-tuned/finetune/{name}"][0], [each[f"fine-tuned/finetune/{name}"][0, 0] for each in alone])
    predicted, truth = predictions["fine-tuned/finetune/predicted"][0], predictions["truth"]
    assert list(found["rows"]) == ["majority class", "fine-tuned"]
    figures = found["rows"]["fine-tuned"]["finetune"]
    each = [(one == truth).mean() for one in predicted]
    assert figures["accuracy"] == pytest.approx(np.mean(each)) and len(set(each)) > 1
    assert figures["balanced_accuracy"] == pytest.approx(np.mean([balanced_accuracy_score(truth, one) for one in predicted]))
    assert [one["accuracy"] for one in found["each_repeat"]] == pytest.approx(each)
    assert [one["balanced_accuracy"] for one in found["each_repeat"]] == pytest.approx(
        [balanced_accuracy_score(truth, one) for one in predicted]
    )
    assert (found["repeats"], found["seeds"], found["labels"], found["labels_per_class"]) == (3, [4, 5, 6], 18, [6, 6, 6])
    assert [result.folder.name for result in find_results([str(folder / "series")])] == ["series"]
    assert f"mean top-1 {100 * figures['accuracy']:.2f} %" in said(folder, "series")
    assert "always naming 'cat' gives 56.2 %" in said(folder, "series")


def test_the_test_split_is_read_once_for_all_repeats(folder):
    assert len((folder / "series/test_reads.jsonl").read_text().splitlines()) == 1
    assert not list((folder / "series").glob("repeat-*/test_reads.jsonl"))
    assert results(folder / "series")["test_reads"] == 1 and "have been read 1 time, for 1 folder" in said(folder, "series")


def test_the_encoder_of_a_series_is_the_best_repeats_on_the_holdout(folder):
    run, found = folder / "series", results(folder / "series")
    best = [max(one["accuracy"] for one in each["holdout"].values()) for each in found["each_repeat"]]
    number = found["encoder_of"]["repeat"]
    assert number == best.index(max(best)) and len(set(best)) > 1
    assert contents(run / "encoder") == contents(run / f"repeat-{number}/encoder")
    assert timm.create_model(f"local-dir:{run}/encoder", pretrained=True).num_classes == 3
    assert read_encoder(run, quiet=True).digest == read_encoder(run / f"repeat-{number}", quiet=True).digest


@pytest.fixture(scope="module")
def later(folder) -> Path:
    """What is asked for afterwards, of copies of those runs."""
    copies = {"more": "grown", "done": "series", "unjoined": "series", "killed": "series", "unmeasured": "series", "other": "series"}
    for copy, run in (copies | {"balanced": "alone0"}).items():
        shutil.copytree(folder / run, folder / copy)
    for name in ("results.json", "encoder/config.json"):
        (folder / "unjoined" / name).unlink()
    for copy in ("killed", "unmeasured"):
        shutil.rmtree(folder / copy / "repeat-2")
        for name in ("results.json", "predictions.safetensors", "repeat-1/measured.json"):
            (folder / copy / name).unlink()
    for step in (3, 4):
        shutil.rmtree(folder / f"killed/repeat-1/checkpoints/{step:09d}")
    runs = {name: [*WORDS, "repeats=3", f"run_dir={name}"] for name in copies if name != "other"}
    balanced = [*WORDS, "data.holdout_seed=4", "metric=balanced_accuracy", "run_dir=balanced"]
    run_all(folder, runs | REFUSED | {"balanced": balanced})
    return folder


REFUSED = {
    "fewer": [*WORDS, "repeats=2", "run_dir=other"],
    "single": [*WORDS, "run_dir=other"],
    "several": [*WORDS, "repeats=2", "run_dir=alone0"],
    "seed": [*WORDS, "repeats=3", "seed=5", "run_dir=other"],
    "rate": [*WORDS, "repeats=4", "optim.base_lr=0.1", "run_dir=other"],
    "longer": [*WORDS, "repeats=4", "optim.steps=6", "run_dir=other"],
    "must": [*WORDS, "repeats=2", "resume=must", "run_dir=nowhere"],
    "changes": [*WORDS, "repeats=2", "optim.base_lr=0.1", "resume_changes=optim.base_lr", "run_dir=other"],
}


def test_more_repeats_are_added_to_those_that_have_finished_which_are_left_alone(later):
    for number in range(2):
        assert contents(later / f"more/repeat-{number}") == contents(later / f"grown/repeat-{number}")
    assert "repeat 2 of 3 | seed 5 | 18 labels | already finished at step 4" in said(later, "more")
    assert said(later, "more").count("step 1/4") == 1
    assert results(later / "more")["rows"] == results(later / "series")["rows"]
    assert (later / "more/predictions.safetensors").read_bytes() == (later / "series/predictions.safetensors").read_bytes()
    assert len((later / "more/test_reads.jsonl").read_text().splitlines()) == 2  # a command each


def test_a_series_that_has_finished_does_nothing(later):
    assert "all 3 repeats have finished: nothing to do" in said(later, "done")
    assert contents(later / "done") == contents(later / "series")


def test_a_joint_result_that_is_missing_is_made_without_a_look_at_the_test_split(later):
    assert "looks at" not in said(later, "unjoined")
    assert results(later / "unjoined")["rows"] == results(later / "series")["rows"]
    assert contents(later / "unjoined/encoder") == contents(later / "series/encoder")
    assert len((later / "unjoined/test_reads.jsonl").read_text().splitlines()) == results(later / "unjoined")["test_reads"] == 1


@pytest.mark.parametrize(
    ("run", "resumed"), [("killed", "resumes at step 2"), ("unmeasured", "all 4 steps are done, only measuring is left")]
)
def test_a_series_goes_on_where_it_was_killed(later, run, resumed):
    assert f"run {run}/repeat-1 | {resumed}" in said(later, run) and f"run {run}/repeat-2 | starts" in said(later, run)
    assert f"run {run}/repeat-0 |" not in said(later, run)
    for number in range(3):
        assert_same_bits(later / f"series/repeat-{number}", later / f"{run}/repeat-{number}")
    assert results(later / run)["rows"] == results(later / "series")["rows"]


def test_what_would_mix_unlike_repeats_is_refused(later):
    assert contents(later / "other") == contents(later / "series")
    words = {name: re.findall("refused: (.*)", said(later, name))[0] for name in REFUSED}
    assert "leave out other/repeat-2" in words["fewer"] and "give repeats=3" in words["fewer"]
    assert "holds repeats of a fine-tuning; give repeats=3" in words["single"]
    assert "holds a fine-tuning of its own" in words["several"]
    assert "seed=4, this run asks for 5" in words["seed"]
    assert "optim.base_lr=0.05, this run asks for 0.1" in words["rate"]
    assert "trained in 2 cycles of the learning rate and other/repeat-3 would be in 1" in words["longer"]
    assert "nowhere/repeat-*/checkpoints hold no commit" in words["must"]
    assert "resume_changes=optim.base_lr would make the repeats=2 differ" in words["changes"]


def test_another_metric_chooses_anew_from_what_was_trained(later):
    assert "all 4 steps are done, only measuring is left" in said(later, "balanced")
    found = results(later / "balanced")
    chosen = found["rows"]["fine-tuned"]["finetune"]["weights"]
    assert found["holdout"][chosen]["balanced_accuracy"] == max(each["balanced_accuracy"] for each in found["holdout"].values())
    assert found["metric"] == "balanced_accuracy"


def launched(folder: Path, run: str, *words: str, world: int = 2):
    return start([], world, [str(Path(__file__).parents[2] / "mpp/finetune.py"), *WORDS, f"run_dir={run}", *words], cwd=folder)


@pytest.mark.long
@pytest.mark.parametrize("words", [["system.zero_stage=1"], ["system.zero_stage=2"], ["system.zero_stage=3"], ["system.compile=true"]])
def test_under_every_engine_two_processes_give_each_repeat_the_bits_it_has_alone(folder, words):
    name = words[0].replace("=", "")
    assert finish(launched(folder, f"s-{name}", "repeats=2", *words), 600).status == [0, 0]
    assert finish(launched(folder, f"a-{name}", "seed=5", "data.holdout_seed=4", *words), 600).status == [0, 0]
    assert_same_bits(folder / f"a-{name}", folder / f"s-{name}/repeat-1")


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "commit"), [(signal.SIGKILL, "repeat-1/3"), (signal.SIGTERM, "repeat-1/3"), (signal.SIGTERM, "repeat-0/40")]
)
def test_two_processes_stopped_in_the_second_repeat_or_before_it_go_on_there(folder, number, commit):
    name, _, step = commit.partition("/")
    run = folder / f"signal{number}-{step}"
    words = ["repeats=3", "optim.steps=40"]
    processes = launched(folder, run.name, *words)
    while not (run / name / f"checkpoints/{int(step):09d}/COMMIT.json").exists():
        time.sleep(0.02)
    for process in processes:
        os.kill(process.pid, number)
    stopped = finish(processes)
    if number == signal.SIGTERM:
        assert stopped.status == [AGAIN, AGAIN] and "stopped as asked" in stopped.out
    again = finish(launched(folder, run.name, *words))
    assert again.status == [0, 0], again.err
    assert "repeat 1 of 3 | seed 4 | 18 labels | already finished" in again.out
    whole = finish(launched(folder, f"{run.name}-whole", *words))
    assert whole.status == [0, 0]
    for n in range(3):
        assert (run / f"repeat-{n}/encoder/model.safetensors").read_bytes() == (
            folder / f"{run.name}-whole/repeat-{n}/encoder/model.safetensors"
        ).read_bytes()
