"""A step of a run that stopped, taken again: the same batch, the same loss, and where numbers ceased to be finite."""

import json
import math
import shutil

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from mpp.base.errors import CheckpointError, ConfigError, DataError
from mpp.data.shards import ShardSet
from mpp.replay import main, parse
from tests.pipeline.conftest import pretrain
from tests.pipeline.test_bad_numbers import poisoned
from tests.pipeline.test_teacher import FEATURES

# mpp/pretrain.py which stops by a planted error in step 7.
STOPS = """
import mpp.train.run as run
from mpp.base.errors import run_program
from mpp.pretrain import main
update = run.Step.update
def breaking(self):
    update(self)
    if self.number == 7:
        raise ZeroDivisionError("planted")
run.Step.update = breaking
run_program(main)
"""
SMALL = ["log.pictures=0", "log.samples=true", "system.micro_batch_max=3"]


@pytest.fixture(scope="module")
def stopped(shards, tmp_path_factory):
    """A healthy run of two ranks that an error has ended in step 7; its newest commit is of step 6."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    words = [*SMALL, "data.views=1", "system.zero_stage=1"]
    assert pretrain(run, shards, *words, world=2, program=["-c", STOPS]).status == [1, 1]
    return run


@pytest.fixture(scope="module")
def diverged(shards, tmp_path_factory):
    """One whose learning rate is far too high."""
    run = tmp_path_factory.mktemp("diverged") / "run"
    finished = pretrain(run, shards, *SMALL, "optim.base_lr=1e7", "optim.warmup_samples=12", "log.every_steps=4")
    assert finished.status == [2] and "mpp/replay.py" in finished.err, finished.err[-3000:]
    return run


def replayed(dump, *words, out):
    assert main([str(dump), f"out={out}", *words]) == 0
    return json.loads((out / "replay.json").read_text())


@pytest.mark.parametrize("rank", [0, 1])
def test_the_batch_is_the_one_that_was_logged_and_its_loss_is_the_one_that_was_noted(rank, stopped, tmp_path, capsys):
    dump = stopped / "flight" / f"rank{rank}.json"
    found = replayed(dump, "images=99", out=tmp_path)
    noted = json.loads(dump.read_text())["steps"][-1]
    assert found["step"] == noted["step"] == 7 and found["weights"]["exact"] and found["weights"]["step"] == 6
    assert found["same"] == {"samples": True, "masks": True, "pixels": True}
    (name,) = found["precisions"]
    assert name == "fp32" and found["precisions"]["fp32"]["loss"] == pytest.approx(noted["loss"], rel=1e-5)
    assert found["precisions"]["fp32"]["first"] is None and all(math.isfinite(row[2]) for row in found["precisions"]["fp32"]["forward"])
    logged = [line.split("\t") for line in (stopped / f"samples.rank{rank}.tsv").read_text().splitlines()]
    crops = {int(line[1]): [int(side) for side in line[3:7]] for line in logged if 72 <= int(line[0]) < 84}
    assert {each["sample"]: each["crop"] for each in found["images"]} == crops and len(crops) == 6
    set_ = ShardSet.open(json.loads(dump.read_text())["config"]["data"]["shards"])
    assert [each["where"] for each in found["images"]] == [set_.where(each["shown"]) for each in found["images"]]
    losses = [each["loss"] for each in found["images"]]
    assert losses == sorted(losses, reverse=True) and sum(losses) / 6 == pytest.approx(noted["loss"], rel=1e-5)
    assert "samples, masks, pixels are those of the run" in capsys.readouterr().out
    with Image.open(tmp_path / "replay.png") as picture:
        assert picture.width > 1000


def test_with_one_rank_the_gradient_norm_is_that_of_the_run(diverged, tmp_path):
    found = replayed(diverged / "flight" / "rank0.json", "step=2", f"weights={diverged}/checkpoints/000000002", out=tmp_path)
    assert not found["weights"]["exact"]  # of behind that step
    dump = json.loads((diverged / "flight" / "rank0.json").read_text())
    found = replayed(diverged / "flight" / "rank0.json", "step=1", out=tmp_path)  # as the run began
    assert found["weights"] == {"source": "as the run began", "step": 0, "exact": True, "not_finite": []}
    assert found["precisions"]["fp32"]["gradient_norm"] == pytest.approx(dump["steps"][0]["gradient_norm"], rel=1e-4)
    assert found["precisions"]["fp32"]["loss"] == pytest.approx(dump["steps"][0]["loss"], rel=1e-6)


def test_a_run_that_diverged_is_seen_to_in_the_same_step_with_the_weights_it_had(diverged, tmp_path, capsys):
    dump = json.loads((diverged / "flight" / "rank0.json").read_text())
    first = next(each["step"] for each in dump["steps"] if isinstance(each["gradient_norm"], str))
    found = replayed(diverged / "flight" / "rank0.json", out=tmp_path)
    assert found["step"] == first == dump["weights"] + 1
    assert found["weights"]["source"] == str(diverged / "flight" / "weights.safetensors")
    assert found["weights"]["step"] == dump["weights"] and found["weights"]["exact"]
    assert isinstance(found["precisions"]["fp32"]["gradient_norm"], str)  # inf or nan
    assert "the weights are at fault, not an image" in capsys.readouterr().out
    assert replayed(diverged / "flight" / "rank0.json", "precision=bf16", out=tmp_path)["precisions"].keys() == {"bf16"}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_skipped_step_is_taken_again_with_the_weights_that_are_nearest(rank, shards, tmp_path, capsys):
    run = tmp_path / "run"
    words = [*SMALL, "checkpoint.every_samples=48", "log.every_steps=99", "system.zero_stage=1"]
    assert poisoned(run, shards, *words, steps="3", rank=1, world=2).status == [0, 0]
    dump = run / "flight" / f"skipped-3.rank{rank}.json"
    found = replayed(dump, out=tmp_path)
    assert found["step"] == 3 and found["rank"] == rank and found["same"] == {"samples": True, "masks": True, "pixels": True}
    # Nearer than the run's first weights, two steps before it.
    assert found["weights"] == {"source": str(run / "flight" / "weights.safetensors"), "step": 4, "exact": False, "not_finite": []}
    said = capsys.readouterr().out
    assert "after step 4; 1 step behind it: weights have moved since" in said and f"rank {rank} of 2" in said
    assert f"then: loss {'nan' if rank else json.loads(dump.read_text())['steps'][0]['loss']:.4}" in said
    other = tmp_path / "other"
    shutil.copytree(run, other)
    with safe_open(other / "flight" / "weights.safetensors", "pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(weights, other / "flight" / "weights.safetensors", {"step": "9"})  # of a later skipped step
    assert replayed(other / "flight" / dump.name, out=tmp_path)["weights"]["source"] == "as the run began"


def test_a_commit_that_is_the_step_s_own_goes_before_weights_of_the_step_behind(shards, tmp_path):
    run = tmp_path / "run"
    words = [*SMALL, "checkpoint.every_samples=48", "log.every_steps=99"]
    assert poisoned(run, shards, *words, steps="5").status == [0]
    found = replayed(run / "flight" / "skipped-5.rank0.json", out=tmp_path)
    assert found["weights"]["source"] == str(run / "checkpoints" / "000000004") and found["weights"]["exact"]


def test_with_older_weights_it_says_that_they_have_moved(stopped, tmp_path, capsys):
    older = tmp_path / "run"
    shutil.copytree(stopped, older)
    shutil.rmtree(older / "checkpoints" / "000000006")
    found = replayed(older / "flight" / "rank0.json", out=tmp_path)
    assert found["weights"]["step"] == 4 and not found["weights"]["exact"]
    said = capsys.readouterr().out
    assert "2 steps short of it: weights have moved since" in said and "with the weights of step 4 all is finite" in said


def test_what_cannot_be_replayed_is_refused_in_one_line(stopped, tmp_path):
    dump = stopped / "flight" / "rank0.json"
    with pytest.raises(ConfigError, match="the dump is missing; python mpp/replay"):
        parse([])
    with pytest.raises(ConfigError, match="cannot read the dump"):
        main([str(tmp_path / "none.json")])
    with pytest.raises(ConfigError, match=rf"cannot read the dump {stopped} \(Is a directory\); give one of {dump}, .*rank1.json$"):
        main([str(stopped)])
    (tmp_path / "other.json").write_text('{"format": 9}')
    with pytest.raises(ConfigError, match="is no dump of the flight recorder"):
        main([str(tmp_path / "other.json")])
    (tmp_path / "older.json").write_text(json.dumps(json.loads(dump.read_text()) | {"format": 1}))
    with pytest.raises(ConfigError, match=r"older.json is of another version of mpp: its format is 1, and this one reads 2"):
        main([str(tmp_path / "older.json")])
    with pytest.raises(ConfigError, match=r"step=40 is not in .*; there are 1 to 7"):
        main([str(dump), "step=40", f"out={tmp_path}"])
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        main([str(dump), "weights=nowhere", f"out={tmp_path}"])
    facts = json.loads(dump.read_text())
    facts["config"]["model"]["depth"] = 1
    (tmp_path / "shallow.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"000000006 is of another model \(encoder.vit.blocks.1.attn.proj.bias and 11 more differ\)"):
        main([str(tmp_path / "shallow.json"), f"out={tmp_path}", f"weights={stopped}/checkpoints/000000006"])
    facts = json.loads(dump.read_text())
    facts["steps"][-1]["micro_batches"][0]["samples"][0] += 1
    (tmp_path / "moved.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="are not the images of"):
        main([str(tmp_path / "moved.json"), f"out={tmp_path}", f"weights={stopped}/checkpoints/000000006"])


def test_other_pixels_are_told(stopped, tmp_path, capsys):
    facts = json.loads((stopped / "flight" / "rank0.json").read_text())
    facts["steps"][-1]["micro_batches"][0]["pixels"] = "00000000"
    (tmp_path / "changed.json").write_text(json.dumps(facts))
    found = replayed(tmp_path / "changed.json", f"weights={stopped}/checkpoints/000000006", out=tmp_path)
    assert found["same"] == {"samples": True, "masks": True, "pixels": False}
    assert "pixels DIFFER" in capsys.readouterr().out


@pytest.mark.long
def test_an_average_that_has_moved_on_is_told(shards, tmp_path, capsys):
    run = tmp_path / "run"
    words = [*FEATURES, *SMALL, "checkpoint.every_samples=48", "log.every_steps=1"]  # what is logged is heard of at once
    assert poisoned(run, shards, *words, steps="3").status == [0]
    found = replayed(run / "flight" / "skipped-3.rank0.json", out=tmp_path)
    assert found["weights"]["step"] == 2 and not found["weights"]["exact"]
    assert "after step 2; the average that it learns from is of 1 step later" in capsys.readouterr().out
    assert any(name.startswith("teacher.") for name, *_ in found["precisions"]["fp32"]["forward"])


@pytest.mark.long
def test_a_step_that_learns_from_a_teacher_has_the_teacher_it_had(shards, tmp_path):
    run = tmp_path / "run"
    assert pretrain(run, shards, *SMALL, *FEATURES, program=["-c", STOPS]).status == [1]
    found = replayed(run / "flight" / "rank0.json", out=tmp_path)
    noted = json.loads((run / "flight" / "rank0.json").read_text())["steps"][-1]
    assert found["weights"]["exact"] and found["precisions"]["fp32"]["loss"] == pytest.approx(noted["loss"], rel=1e-5)
    assert any(name.startswith("teacher.") for name, *_ in found["precisions"]["fp32"]["forward"])
