"""Which of the images that figures are on have been seen before: counts against plain sets, and nothing unknown counted as none."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mpp import linear_probe
from mpp.data.fingerprints import overlap as same_images
from mpp.data.joined_shards import shared_out
from mpp.data.labelled import open_labelled
from mpp.data.shards import ShardSet
from mpp.data.write_shards import Sample, write_manifest, write_shard
from mpp.train.commit import write_commit
from mpp.transfer.overlap import FINETUNING, PRETRAINING, Overlap, find_overlap, trained_on
from mpp.transfer.probes.contract import Answers
from tests.transfer.test_linear_probe import QUICK


def images(prints, identity="x", **options):
    source = {"source": options}
    return SimpleNamespace(prints=np.array(prints, dtype=np.uint64), identity=identity, manifest=source)


@given(st.data())
def test_counts_are_those_of_plain_sets(data):
    some = lambda most: data.draw(st.lists(st.integers(0, most), min_size=1, max_size=12))
    train, test = images(some(9), "train"), images(some(9), "test")
    ids, fitted = (np.array(data.draw(st.lists(st.integers(0, len(of.prints) - 1), unique=True))) for of in (test, train))
    ids, fitted = ids.astype(np.int64), fitted.astype(np.int64)
    found = find_overlap(test, ids, train, fitted, [], (fitted[::2], fitted[1::2]))
    assert found.train.tolist() == [test.prints[i] in set(train.prints[fitted].tolist()) for i in ids]
    held, fit = train.prints[fitted[1::2]].tolist(), set(train.prints[fitted[::2]].tolist())
    assert found.choices == (sum(each in fit for each in held), len(held))


def test_a_hold_out_of_train_is_compared_with_the_rest():
    train = images([7, 8, 7, 9, 8, 7])
    found = find_overlap(train, np.array([2, 3]), train, np.array([0, 1, 4, 5]), [])
    assert found.train.tolist() == [True, False]
    assert found.words() == "overlap   1 of 2 hold-out images are also in the rest of train, byte for byte"


def test_copies_that_were_stored_in_another_way_are_said_to_go_unseen():
    found = find_overlap(images([1], "a"), np.array([0]), images([2], "b", resize=256), np.array([0]), [])
    assert "0 of 1 test images are also in train (stored resized or encoded in another way: copies go unseen)" in found.words()


def test_accuracies_without_the_images_of_train_are_of_the_others_alone():
    rng = np.random.default_rng(0)
    truth, mask = rng.integers(0, 3, 50), rng.random(50) < 0.3
    given = {
        row: {"knn": Answers(torch.from_numpy(rng.integers(0, 3, 50)), torch.from_numpy(rng.random(50, np.float32)))} for row in ("a", "b")
    }
    about, lines = Overlap("test image", mask).report(given | {"raw": {}}, torch.from_numpy(truth), 3)
    assert set(about["without"]) == {"a", "b"} and about["train"] == mask.sum() and about["images"] == 50
    for place, row in enumerate("ab"):
        right = (given[row]["knn"].predicted.numpy() == truth)[~mask]
        found = about["without"][row]["knn"]
        assert (found["accuracy"], found["images"]) == (pytest.approx(right.mean()), (~mask).sum())
        assert (
            lines[1 + place] == f"without   {row}: k-NN {100 * right.mean():.2f}, on the {(~mask).sum()} test images that are not in train"
        )
    assert json.dumps(about)
    nobody = Overlap("test image", np.zeros(50, bool)).report(given, torch.from_numpy(truth), 3)
    assert nobody[0]["without"] == {} and len(nobody[1]) == 1
    everybody = Overlap("test image", np.ones(50, bool)).report(given, torch.from_numpy(truth), 3)
    assert everybody[0]["without"] == {} and "no image is left that is not in train" in everybody[1][1]


def make_run(run: Path, config: dict, manifests: dict, program: str | None = None) -> Path:
    """A run with a checkpoint, as far as its record is looked at."""
    folder = run / "checkpoints" / "000000003"
    folder.mkdir(parents=True)
    (folder / "rank00000.safetensors").write_bytes(b"weights")
    files = {"rank00000.safetensors": {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}}
    record = {"step": 3, "samples_seen": 3, "config": config, "manifests": manifests, "files": files}
    commit = write_commit(folder, record | ({"program": program} if program else {}))
    (run / "encoder").mkdir()
    (run / "encoder" / "config.json").write_text(json.dumps({"mpp": {"commit": commit.seal}}))
    return run


@pytest.fixture
def pretrained(tmp_path, splits):
    """A run on a copy of the train split, of which it held out the last 20."""
    shutil.copytree(splits["train"], tmp_path / "place" / "shards" / "train")
    identity = ShardSet.open(splits["train"]).identity
    return make_run(tmp_path / "place" / "runs" / "a", {"data": {"shards": "shards/train", "holdout_samples": 20}}, {"shards": identity})


def only(found: list):
    (one,) = found
    return one


@pytest.mark.parametrize("part", ["", "encoder", "checkpoints/000000003"])
def test_a_run_tells_what_it_was_pretrained_on_from_wherever_it_is_looked_at(pretrained, splits, part):
    found = only(trained_on(str(pretrained / part)))
    assert (found.what, found.path, found.held_out, found.problem) == (PRETRAINING, "shards/train", 20, "")
    train = ShardSet.open(splits["train"])
    assert found.images.prints.tolist() == train.prints.tolist()
    seen = only(find_overlap(train, np.arange(90, 110), train, np.arange(90), [str(pretrained / part)]).seen)
    assert (seen.count, seen.held_out) == (20, 10)
    assert seen.words(20, main=True) == "20 of 20 in the pretraining set (shards/train, 10 of them in its hold-out)"


def test_a_run_on_several_sources_tells_each_with_its_own_hold_out(tmp_path, splits):
    train, other = ShardSet.open(splits["train"]), ShardSet.open(splits["other"])
    config = {"data": {"shards": [str(splits["train"]), str(splits["other"])], "holdout_samples": 20}}
    manifests = {"shards[0]": train.identity, "shards[1]": other.identity, "shards": "of both"}
    run = make_run(tmp_path / "run", config, manifests)
    found = trained_on(str(run))
    assert [each.path for each in found] == [str(splits["train"]), str(splits["other"])] and not any(each.problem for each in found)
    assert [each.held_out for each in found] == shared_out(20, [len(train), len(other)])
    seen = find_overlap(train, np.arange(len(train)), train, np.arange(1), [str(run)]).seen
    assert seen[0].count == len(train)
    manifests["shards[1]"] = "another"
    changed = trained_on(str(make_run(tmp_path / "changed", config, manifests)))
    assert changed[0].images is not None and changed[1].images is None and "holds other images now" in changed[1].problem


def test_the_hold_out_of_another_set_is_no_part_of_the_pretraining_set(tmp_path, splits):
    train = ShardSet.open(splits["train"])
    config = {"data": {"shards": str(splits["train"]), "holdout_samples": 20, "holdout_shards": "other"}}
    found = only(trained_on(str(make_run(tmp_path / "run", config, {"shards": train.identity}))))
    assert found.held_out == 0


def test_what_has_moved_or_changed_is_said_and_not_counted(pretrained, splits, tmp_path):
    place = tmp_path / "place" / "shards"
    shutil.rmtree(place / "train")
    test = ShardSet.open(splits["test"])
    check = lambda: find_overlap(test, np.arange(5), test, np.arange(5), [str(pretrained)])
    gone = check()
    assert only(gone.seen).count is None
    assert "the pretraining set (shards/train) could not be checked: it is no longer there" in gone.words()
    shutil.copytree(splits["other"], place / "train")
    changed = check()
    assert only(changed.seen).count is None and "could not be checked: " in changed.words() and "holds other images now" in changed.words()
    (place / "train" / "manifest.json").write_text("{}")
    assert only(check().seen).count is None
    about, _ = check().report({}, np.zeros(5, int), 3)
    assert about["encoders"][0]["images"] is None and about["encoders"][0]["problem"]


def test_a_fine_tuned_run_tells_its_train_set_and_what_its_encoder_was_pretrained_on(pretrained, splits, tmp_path, monkeypatch):
    monkeypatch.setattr("mpp.transfer.overlap.read_encoder", lambda path, quiet: SimpleNamespace(digest=f"digest of {Path(path).name}"))
    identity = ShardSet.open(splits["test"]).identity
    config = {"train": str(splits["test"]), "encoder": "runs/a", "init": "pretrained"}
    manifests = {"train": identity, "encoder": "digest of a"}
    tuned = make_run(tmp_path / "place" / "runs" / "tuned", config, manifests, "finetune")
    first, second = trained_on(str(tuned / "encoder"))
    assert (first.what, first.images.identity) == (FINETUNING, identity)
    assert second.what == "the pretraining set of runs/a, from which it began" and second.images is not None
    scratch = make_run(tmp_path / "place" / "scratch", config | {"init": "random"}, manifests, "finetune")
    assert [each.what for each in trained_on(str(scratch))] == [FINETUNING]
    other = make_run(tmp_path / "place" / "other", config, manifests | {"encoder": "another"}, "finetune")
    assert trained_on(str(other))[1].images is None and "is now another encoder" in trained_on(str(other))[1].problem
    moved = make_run(tmp_path / "place" / "moved", config | {"encoder": "runs/b"}, manifests, "finetune")
    assert "runs/b is no longer there" in trained_on(str(moved))[1].problem


def test_a_run_that_began_from_another_was_trained_on_what_that_one_was(pretrained, splits, tmp_path):
    test = ShardSet.open(splits["test"])
    config = {"data": {"shards": str(splits["test"]), "holdout_samples": 1}, "init_from": "runs/a"}
    later = make_run(tmp_path / "place" / "later", config, {"shards": test.identity})
    train = ShardSet.open(splits["train"])
    found = find_overlap(train, np.arange(4), test, np.arange(4), [str(later)])
    assert [each.count for each in found.seen] == [0, 4]
    assert "4 of 4 in the pretraining set of runs/a, from which it began (shards/train" in found.words().replace(
        str(tmp_path / "place") + "/", ""
    )


def test_what_others_were_trained_on_is_not_known(tmp_path, encoder_folder, pretrained):
    (tmp_path / "checkpoint.pth").write_bytes(b"")
    for encoder in ("timm:vit_base_patch16_224", str(tmp_path / "checkpoint.pth"), str(encoder_folder)):
        found = only(trained_on(encoder))
        assert found.images is None and not found.path and found.problem
        assert "; the pretraining set is not known (" in Overlap("test image", np.zeros(3, bool), find([encoder]), encoder).words()
    assert trained_on("timm:vit_base_patch16_224@random") == []
    (pretrained / "encoder" / "config.json").write_text('{"mpp": {"commit": "of another run"}}')
    assert only(trained_on(str(pretrained / "encoder"))).images is None


def find(encoders):
    empty = images([])
    return find_overlap(empty, np.arange(0), images([1]), np.arange(1), encoders).seen


def test_every_encoder_of_the_table_is_looked_up_and_named(pretrained, splits):
    test, train = ShardSet.open(splits["test"]), ShardSet.open(splits["train"])
    found = find_overlap(train, np.arange(3), test, np.arange(3), [str(pretrained), "timm:x", str(pretrained)])
    assert [each.encoder for each in found.seen] == [str(pretrained), "timm:x"]
    assert "3 of 3 in the pretraining set (shards/train), byte for byte; the pretraining set of timm:x is not known" in found.words()


def test_the_program_counts_shared_images_and_says_what_is_left_without_them(tmp_path, splits, encoder_folder, make_mixed, capsys):
    test, shared = make_mixed(tmp_path / "mixed", ["test", "train"], [30, 12])
    words = [f"encoder={encoder_folder}", f"train={splits['train']}", f"test={test}", f"out={tmp_path / 'out'}", *QUICK, "baselines=false"]
    assert linear_probe.main(words) == 0
    shown, about = capsys.readouterr().out, json.loads((tmp_path / "out" / "results.json").read_text())
    found = about["overlap"]
    assert (found["train"], found["images"], found["encoders"][0]["images"]) == (12, 42, None)
    assert {each["images"] for each in about["verdict"]} == {30}  # where train is known by heart, nothing is shown
    assert "overlap   12 of 42 test images are also in train, byte for byte; the pretraining set is not known (" in shown
    answers = load_file(tmp_path / "out" / "predictions.safetensors")
    assert np.array_equal(answers["in_train"].numpy(), shared)
    for probe in ("linear", "logistic", "knn"):
        right = (answers[f"pretrained/{probe}/predicted"][0, 0] == answers["truth"]).numpy()
        assert found["without"]["pretrained"][probe]["accuracy"] == pytest.approx(right[~shared].mean())
    assert shown.count("without   pretrained: linear ") == 1 and "on the 30 test images that are not in train" in shown


def test_the_program_compares_its_hold_out_with_the_rest(tmp_path, encoder_folder, make_mixed, capsys):
    train, _ = make_mixed(tmp_path / "mixed", ["train", "train", "test"], [60, 60, 30])
    assert linear_probe.main([f"encoder={encoder_folder}", f"train={train}", f"out={tmp_path / 'out'}", *QUICK, "baselines=false"]) == 0
    held = load_file(tmp_path / "out" / "predictions.safetensors")["samples"].numpy()
    prints = open_labelled(str(train), "train").prints
    expected = same_images(prints[held], np.delete(prints, held)).sum()
    assert 0 < expected < len(held)
    assert f"overlap   {expected} of {len(held)} hold-out images are also in the rest of train" in capsys.readouterr().out


@pytest.fixture
def make_mixed(splits):
    """make_mixed(folder, names, counts): shards of the first images of each of these splits, and which of them are of train."""

    def make(folder, names, counts):
        sets = [ShardSet.open(splits[name]) for name in names]
        chosen = [(each, sample) for each, count in zip(sets, counts, strict=True) for sample in range(count)]
        samples = [Sample(key, "png", of.read(i), *of.size_of(i), int(of.labels[i])) for key, (of, i) in enumerate(chosen)]
        folder.mkdir()
        write_manifest(
            folder,
            split="mixed",
            shards=[write_shard(folder, "000000.tar", samples)],
            classes=sets[0].classes,
            colours=np.ones((3, 256), np.int64),
            colour_images=1,
            rejects=0,
            source={"name": "mixed"},
        )
        return folder, np.repeat([name == "train" for name in names], counts)

    return make
