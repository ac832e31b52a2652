"""The labelled images of a fine-tuning before it begins: each check once where it is well, and once where it is not."""

import functools

import numpy as np
import pytest

from mpp.checks import labelled
from mpp.config.finetune import FinetuneConfig
from mpp.data.finetune_set import FinetuneSet, open_finetune_set
from mpp.mains.finetune_job import chooser
from mpp.transfer.split import CHOOSE, hold_out
from tests.pipeline.finetune_runs import write_images


def config_of(train, test=None, **more) -> FinetuneConfig:
    data = {"holdout_fraction": 0.25} | more.pop("data", {})
    known = {"encoder": "any", "train": str(train), "test": test and str(test), "data": data}
    return FinetuneConfig.model_validate(known | more)


def sets_of(config: FinetuneConfig) -> FinetuneSet:
    divide = functools.partial(hold_out, fraction=config.data.holdout_fraction, seed=0, use=CHOOSE, remedy="")
    return open_finetune_set(config, (16, 16), (0.5, 0.5, 0.5), divide, chooser(config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    given = tmp_path_factory.mktemp("given")
    write_images(given / "train", {"ant": 48, "bee": 16, "cat": 4}, seed=0)
    write_images(given / "test", {"ant": 5, "bee": 5, "cat": 2}, seed=1)
    return given


def test_classes_are_counted_as_they_are_trained_on(folders):
    config = config_of(folders / "train", folders / "test")
    skewed, test = labelled.labels(sets_of(config), config)
    assert f"train={folders}/train: 68 images of 3 classes, 17 of them held out; trained on are 51, 3 to 36 a class" in skewed.found
    assert skewed.verdict == "warning" and "class_weight=balanced" in skewed.fix
    assert test.found == f"test={folders}/test: 12 images of the same classes, read once, at the end"
    for remedy in ({"optim": {"class_weight": "balanced"}}, {"metric": "balanced_accuracy"}, {"data": {"labels_per_class": 3}}):
        known = config_of(folders / "train", **remedy)
        fine, none = labelled.labels(sets_of(known), known)
        assert (fine.verdict, none.found) == ("ok", "no test= is given: figures are on what is held out of train"), remedy


def test_what_is_unusual_about_labels_is_a_warning_of_its_own(folders, tmp_path):
    write_images(tmp_path / "train", {"ant": 8, "bee": 8}, seed=0)
    (tmp_path / "train" / "cat").mkdir()
    config = config_of(tmp_path / "train")
    *_, remark = labelled.labels(sets_of(config), config)
    assert remark.verdict == "warning" and "cat" in remark.found and remark.fix


@pytest.mark.parametrize(("fraction", "tested", "verdict"), [(0.25, False, "warning"), (0.25, True, "ok"), (0, True, "ok")])  # fmt: skip
def test_few_held_out_images_that_are_all_there_is_to_report_on_are_a_warning(folders, fraction, tested, verdict):
    config = config_of(folders / "train", folders / "test" if tested else None, data={"holdout_fraction": fraction})
    found = labelled.hold_out(sets_of(config), config)
    assert found.verdict == verdict and ("none (data.holdout_fraction=0)" in found.found) == (fraction == 0)


@pytest.mark.parametrize(("held", "points", "verdict"), [(99, 10, "warning"), (100, 10, "ok"), (400, 5, "ok")])
def test_how_well_an_accuracy_will_be_known_is_told(folders, monkeypatch, held, points, verdict):
    """Of p = 1/2 the half of a 95 % interval is 1.96 x 0.5 / sqrt(n)."""
    config = config_of(folders / "train")
    sets = sets_of(config)
    assert sets.holdout is not None
    monkeypatch.setattr(type(sets.holdout), "ids", property(lambda self: np.arange(held)))
    found = labelled.hold_out(sets, config)
    assert found.verdict == verdict and f"{held} images" in found.found and f"±{points} points" in found.found
    assert round(196 * 0.5 / held**0.5) == points


@pytest.mark.parametrize("where", ["trained on", "held out"])
def test_damaged_images_are_found_wherever_in_train_they_are_and_test_is_not_looked_at(folders, tmp_path, where):
    write_images(tmp_path / "train", {"ant": 20, "bee": 20}, seed=0)
    write_images(tmp_path / "test", {"ant": 2, "bee": 2}, seed=0)
    config = config_of(tmp_path / "train", tmp_path / "test")
    sets = sets_of(config)
    assert sets.holdout is not None
    assert labelled.readable(sets).found == "40 images of train were looked at, and can be read"
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert labelled.readable(sets_of(config)).verdict == "ok"
    broken = sets.training.ids[3] if where == "trained on" else sets.holdout.ids[2]
    name = sets.source("train").where(int(broken))
    path = next(
        each for each in (tmp_path / "train").rglob("*.png") if str(each) in name or name.endswith(f"{each.parent.name}/{each.name}")
    )
    path.write_bytes(path.read_bytes()[:40])
    found = labelled.readable(sets_of(config))
    assert found.verdict == "FAILED" and found.found.startswith("1 of 40 images") and path.name in found.found
    assert found.fix == "mend that file, or take it away"


def test_repeats_that_start_alike_are_told_together(tmp_path):
    folders = [tmp_path / f"repeat-{number}" for number in range(4)]
    words = ["already finished at step 9: nothing to do"] * 2 + ["resumes at step 4", "starts"]
    found = labelled.starts(words, 9, folders).found
    assert (
        found
        == "repeat-0, repeat-1: already finished at step 9: nothing to do; repeat-2: resumes at step 4; repeat-3: starts; 9 steps in each"
    )
    assert labelled.starts(["starts"], 9, [tmp_path]).found == "starts, 9 steps in all"
