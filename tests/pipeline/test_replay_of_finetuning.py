"""A step of fine-tuning, taken again: the batch that the trainer saw, its loss, and the module that went wrong."""

import json

import pytest
import torch

from mpp.config.finetune import FinetuneConfig
from mpp.data.labelled import open_labelled
from mpp.mains.replay import batches_again, read_dump
from mpp.mains.replay_job import FinetuningJob
from mpp.replay import main
from tests.pipeline.conftest import finish, start
from tests.pipeline.finetune_runs import write_encoder, write_images

# mpp/finetune.py: the second repeat notes what its model is given, and stops by a planted error in its step 5.
NOTES = """
import os, sys
import torch
import mpp.mains.finetune as finetune
import mpp.train.run as run
from mpp.base.errors import run_program
from mpp.finetune import main
folder, seen, update, prepare = sys.argv.pop(1), [], run.Step.update, finetune.inputs_and_targets
def noting(batch, *rest):
    found = prepare(batch, *rest)
    seen.append(({name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}, *(each.clone() for each in found)))
    return found
def breaking(self):
    update(self)
    if self.run.config.seed == 8 and self.number == 5:
        torch.save(seen, f"{folder}/rank{os.environ['RANK']}.pt")
        raise ZeroDivisionError("planted")
    if self.run.config.seed == 7 and self.last:
        seen.clear()
finetune.inputs_and_targets, run.Step.update = noting, breaking
run_program(main)
"""
# The same, with a weight that becomes NaN behind step 3.
POISONED = """
import torch
import mpp.train.run as run
from mpp.base.errors import run_program
from mpp.finetune import main
update = run.Step.update
def poisoning(self):
    update(self)
    if self.number == 3:
        with torch.no_grad():
            self.run.engine.module.blocks[1].mlp.fc1.weight[0, 0] = float("nan")
run.Step.update = poisoning
run_program(main)
"""
WORDS = [
    "data={global_batch: 12, holdout_fraction: 0.2, label_fraction: 0.5}",
    "system={micro_batch_max: 4, workers: 0, precision: fp32}",
    "optim={steps: 6, warmup_steps: 1, base_lr: 0.02, class_weight: balanced}",
    "augment={erasing: 0.9}",
    "model={drop_path: 0.3, head_std: 0.5}",
    "seed=7",
]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """An encoder, and images of two classes, of one more than of the other."""
    folder = tmp_path_factory.mktemp("given")
    write_images(folder / "train", {"cat": 30, "dog": 24}, seed=3)
    write_encoder(folder / "encoder", seed=5)
    return [f"encoder={folder / 'encoder'}", f"train={folder / 'train'}"]


@pytest.fixture(scope="module")
def stopped(given, tmp_path_factory):
    """The second of two repeats, on two ranks, which an error has ended in step 5; its newest commit is of step 4."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    words = [*given, *WORDS, f"run_dir={run}", "repeats=2", "checkpoint={every_samples: 24, background: false}", "system.zero_stage=1"]
    finished = finish(start(words, world=2, program=["-c", NOTES, str(run.parent)]))
    assert finished.status == [1, 1], finished.err[-3000:]
    return run / "repeat-1"


@pytest.fixture(scope="module")
def poisoned(given, tmp_path_factory):
    run = tmp_path_factory.mktemp("poisoned") / "run"
    words = [*given, *WORDS, f"run_dir={run}", "system.max_skipped_steps=1", "log.every_steps=99"]
    finished = finish(start(words, program=["-c", POISONED]))
    assert finished.status == [2] and f"mpp/replay.py {run}/flight/rank0.json" in finished.err, finished.err[-3000:]
    return run


def replayed(dump, *words, out):
    assert main([str(dump), f"out={out}", *words]) == 0
    return json.loads((out / "replay.json").read_text())


@pytest.mark.parametrize("rank", [0, 1])
def test_every_batch_is_the_one_that_the_trainer_saw_byte_for_byte(rank, stopped):
    dump = read_dump(stopped / "flight" / f"rank{rank}.json", None)
    assert isinstance(dump.config, FinetuneConfig)
    job = FinetuningJob(dump.config, stopped)
    seen = torch.load(stopped.parent.parent / f"rank{rank}.pt")
    again = [batch for noted in dump.facts["steps"] for batch in batches_again(dump, job, noted)]
    assert len(again) == len(seen) == 5 * 3
    for ours, (theirs, images, targets) in zip(again, seen, strict=True):
        assert theirs.keys() <= ours.keys() and {"image", "pose", "label", "erase", "noise", "share", "paste"} <= theirs.keys()
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
        inputs = job.inputs(ours)
        assert torch.equal(inputs[0], images) and torch.equal(inputs[1], targets)
    assert len({int(sample) for batch in again for sample in batch["sample"]}) > 12


@pytest.mark.parametrize("rank", [0, 1])
def test_the_loss_is_the_one_that_was_noted_and_images_are_named_with_their_labels(rank, stopped, tmp_path, capsys):
    dump = stopped / "flight" / f"rank{rank}.json"
    found = replayed(dump, "images=99", out=tmp_path)
    noted = json.loads(dump.read_text())["steps"][-1]
    assert found["step"] == noted["step"] == 5 and found["weights"]["exact"] and found["weights"]["step"] == 4
    assert found["same"] == {"samples": True, "labels": True, "pixels": True}
    assert found["precisions"]["fp32"]["loss"] == pytest.approx(noted["loss"], rel=1e-5)
    assert sum(each["loss"] for each in found["images"]) / 6 == pytest.approx(noted["loss"], rel=1e-5)
    images = open_labelled(json.loads(dump.read_text())["config"]["train"], "train")
    for each in found["images"]:
        assert each["where"] == images.where(each["shown"]) and each["label"] == images.classes[images.labels[each["shown"]]]
    samples = {each["sample"]: each for each in found["images"]}
    mixed = [each for each in found["images"] if "share" in each]
    assert len(mixed) == 6 and all(each["mixed_with"] != each["sample"] for each in mixed)
    assert all(samples[each["mixed_with"]]["mixed_with"] == each["sample"] for each in mixed)
    said = capsys.readouterr().out
    assert "samples, labels, pixels are those of the run" in said
    assert f"{mixed[0]['share']:.0%} {mixed[0]['label']}, the rest of sample {mixed[0]['mixed_with']}" in said


def test_a_weight_that_is_not_finite_is_found_and_the_module_that_uses_it(poisoned, tmp_path, capsys):
    for dump in ("skipped-4.rank0.json", "rank0.json"):
        found = replayed(poisoned / "flight" / dump, out=tmp_path)
        assert found["step"] == 4 and found["weights"]["exact"] and found["weights"]["step"] == 3
        assert found["weights"]["not_finite"] == ["classifier.blocks.1.mlp.fc1.weight"]
        first = found["precisions"]["fp32"]["first"]
        assert (first["name"], first["kind"], first["given_finite"]) == ("classifier.blocks.1.mlp.fc1", "Linear", True)
        said = capsys.readouterr().out
        assert "classifier.blocks.1.mlp.fc1.weight holds numbers that are not finite" in said
        assert "the weights are at fault, not an image" in said


def test_the_first_step_has_the_weights_and_the_gradient_that_the_run_began_with(poisoned, tmp_path):
    noted = json.loads((poisoned / "flight" / "rank0.json").read_text())["steps"][0]
    found = replayed(poisoned / "flight" / "rank0.json", "step=1", out=tmp_path)
    assert found["weights"] == {"source": "as the run began", "step": 0, "exact": True, "not_finite": []}
    assert found["precisions"]["fp32"]["loss"] == pytest.approx(noted["loss"], rel=1e-6)
    assert found["precisions"]["fp32"]["gradient_norm"] == pytest.approx(noted["gradient_norm"], rel=1e-4)


def test_what_is_shown_is_what_the_model_was_given(stopped):
    dump = read_dump(stopped / "flight" / "rank0.json", None)
    job = FinetuningJob(dump.config, stopped)
    batch = batches_again(dump, job, dump.facts["steps"][0])[0]
    whole = torch.zeros_like(batch["paste"])
    plain = batch | {"erase": whole, "share": torch.ones(len(whole)), "paste": whole, "pose": torch.zeros_like(batch["pose"])}
    assert torch.equal(job.pictures(plain), batch["image"])
    pasted = plain | {"paste": whole + torch.tensor([0, 0, 8, 16]), "share": torch.full((len(whole),), 0.5)}
    left, right = job.pictures(pasted)[0].split(8, dim=2)
    assert torch.equal(left, batch["image"][1][:, :, :8]) and torch.equal(right, batch["image"][0][:, :, 8:])


def test_changed_labels_and_another_encoder_are_told(stopped, tmp_path, capsys):
    facts = json.loads((stopped / "flight" / "rank0.json").read_text())
    facts["steps"][-1]["micro_batches"][0]["labels"] = "00000000"
    facts["depends_on"]["encoder"] = "0" * 64
    (tmp_path / "changed.json").write_text(json.dumps(facts))
    words = f"weights={stopped}/checkpoints/000000004"
    assert replayed(tmp_path / "changed.json", words, out=tmp_path)["same"] == {"samples": True, "labels": False, "pixels": True}
    said = capsys.readouterr().out
    assert "labels DIFFER" in said and "holds other weights than when the run began" in said
