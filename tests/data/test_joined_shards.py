import json
import math
import pickle

import numpy as np
import pytest
import torch

from mpp.base.errors import ConfigError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.batch_plan import plan_batch
from mpp.data.crop_dataset import CropDataset
from mpp.data.joined_shards import JoinedShards, open_holdout, open_shards, shared_out, short_names, within
from mpp.data.loader import batches
from mpp.data.mixed_order import MixedOrder
from mpp.data.order import OrderSampler
from mpp.data.pixels import MemoryPixels, StoredPixels
from mpp.data.shards import ShardSet
from mpp.data.training_set import open_training_set
from mpp.processes.peers import ALONE
from tests.data.masked_images import AUGMENT, MASKING, same

MODEL = [
    "optim.warmup_samples=1",
    "model={image_size: 16, patch_size: 4, arch: vit_tiny_patch16_224}",
    "data={global_batch: 6, holdout_samples: 7, streams: 6}",
]


@pytest.fixture(scope="module")
def words(make_shards, tmp_path_factory) -> tuple[str, ...]:
    place = tmp_path_factory.mktemp("sources")
    photos, scans = make_shards(place / "photos" / "train", [9, 8, 6]), make_shards(place / "scans" / "train", [5, 7], smallest=32)
    return str(photos), str(scans)


@pytest.fixture
def joined(words) -> JoinedShards:
    return open_shards(words, held_out=7)


def config(words, *more) -> PretrainConfig:
    return load(PretrainConfig, None, [*MODEL, f"data.shards={json.dumps(list(words))}", *more])


def test_ids_run_through_what_is_trained_on_set_after_set_and_then_through_what_is_held_out(joined, words):
    photos, scans = map(ShardSet.open, words)
    # 7 of 23 + 12: one of each, and of the other 5 by size 3.29 and 1.71, so 3 and 2.
    places = [(photos, own) for own in range(19)] + [(scans, own) for own in range(9)]
    places += [(photos, own) for own in range(19, 23)] + [(scans, own) for own in range(9, 12)]
    assert len(joined) == len(places) == 35 and joined.trained == (19, 9)
    for sample, (source, own) in enumerate(places):
        name = "photos" if source is photos else "scans"
        assert joined.read(sample) == source.read(own)
        assert joined.size_of(sample) == source.size_of(own)
        assert joined.where(sample) == f"{name}: {source.where(own)}"
        assert joined.name_of(sample) == f"{name}/{source.name_of(own)}"
        assert joined.labels[sample] == joined.labels_of(np.array([sample]))[0] == source.labels[own]
        assert joined.prints[sample] == source.prints[own]
        assert joined.index["width"][sample] == source.index[own]["width"]
    rows = joined.index[range(15, 34)]
    assert rows.tolist() == [source.index[own].tolist() for source, own in places[15:34]] == joined.index[np.arange(15, 34)].tolist()
    with pytest.raises(IndexError):
        joined.read(35)


def test_sources_json_says_which_id_is_whose(joined, words):
    told = json.loads(joined.as_json())
    photos, scans = map(ShardSet.open, words)
    for sample in range(len(joined)):
        one = next(each for each in told if each["first"] <= sample < each["first"] + each["samples"])
        assert (one["source"], one["shards"]) in {("photos", words[0]), ("scans", words[1])}
        source = photos if one["source"] == "photos" else scans
        assert one["manifest"] == source.manifest_hash
        assert joined.read(sample) == source.read(one["first_there"] + sample - one["first"])


def test_the_shards_of_the_whole_are_those_of_its_stretches(joined):
    assert joined.samples_per_shard.tolist() == [9, 8, 2, 5, 4, 4, 3] and joined.shards_of_each == (3, 2)
    three = np.array([9, 8, 6])
    assert [within(three, *stretch).tolist() for stretch in ((10, 7), (0, 0), (8, 10))] == [[7], [], [1, 8, 1]]


def test_mean_and_deviation_are_those_of_all_samples_together(words):
    sources = [ShardSet.open(word) for word in words]  # of 23 and 12
    for source, mean, std in zip(sources, (0.2, 0.6), (0.1, 0.3), strict=True):
        source.mean, source.std = [mean] * 3, [std] * 3
    joined = JoinedShards(sources, ("a", "b"), (4, 3))
    mean = (23 * 0.2 + 12 * 0.6) / 35
    assert joined.mean == pytest.approx([mean] * 3)
    assert joined.std == pytest.approx([math.sqrt((23 * (0.1**2 + 0.2**2) + 12 * (0.3**2 + 0.6**2)) / 35 - mean**2)] * 3)


def test_classes_are_those_of_the_sources_where_all_have_the_same(joined, make_shards, tmp_path):
    assert joined.labelled and joined.classes == [f"class {label}" for label in range(4)]
    paths = [str(make_shards(tmp_path / name / "train", [5], classes=classes)) for name, classes in (("a", 3), ("b", 2))]
    other = open_shards(tuple(paths))
    assert not other.labelled and other.classes == []


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (("shards/photos/train", "shards/scans/train"), ("photos", "scans")),
        (("a", "b"), ("a", "b")),
        (("shards/photos/train", "/data/old/scans/train"), ("photos", "scans")),
        (("/data/a/x", "/data/b/a/x/", "/data/c/x"), ("a", "b/a", "c")),
        (("/data/photos/train", "/data/scans/all"), ("photos/train", "scans/all")),
        (("x/train", "x/train/more"), ("x/train", "x/train/more")),
        (("s3://bucket/p/train", "s3://other/p/train"), ("bucket", "other")),
    ],
)
def test_names_are_what_the_paths_do_not_share(given, names):
    assert short_names(given) == names


@pytest.mark.parametrize(
    ("count", "sizes", "shares"), [(10, [70, 30], [7, 3]), (1024, [70_000, 30_000], [716, 308]), (3, [1, 1000, 5], [1, 1, 1]), (7, [5, 5, 5], [3, 2, 2])]
)  # fmt: skip
def test_a_hold_out_is_shared_by_size_with_one_of_each(count, sizes, shares):
    assert shared_out(count, sizes) == shares


def test_the_natural_order_of_a_training_set_gives_each_image_of_each_source_once_an_epoch_and_none_that_is_held_out(words):
    asked = config(words, "data.global_batch=4", "data.streams=4")  # of 28 images
    sets = open_training_set(asked)
    order = sets.order(asked, plan_batch(4, 4, 1, 4))
    assert not isinstance(order, MixedOrder) and (order.samples, order.steps_per_epoch) == (28, 7)
    for epoch in range(3):
        steps = range(7 * epoch, 7 * epoch + 7)
        assert sorted(np.concatenate([order.sample_ids(order.places(step, 0, 1))[1] for step in steps]).tolist()) == list(range(28))
    assert list(sets.holdout.pool) == list(range(28, 35)) and sets.training.pool == range(28)
    said = "sources by size: photos 19 (67.86%), scans 9 (32.14%); each image once an epoch, 5.0 times in all | held out: 4 of photos, 3 of scans"
    asked = config(words, "optim.total_samples=140")
    assert sets.sources_words(asked, order) == [said]


def test_a_training_set_by_weight_has_the_mixed_order_over_its_own_sources(words):
    asked = config(words, "data.weights=[1, 2]", "optim.total_samples=540", "data.views=2", "data.global_batch=12")
    sets = open_training_set(asked)
    order = sets.order(asked, plan_batch(12, 6, 1, 12, 2))
    ids = np.concatenate([order.sample_ids(order.places(step, 0, 1))[1] for step in range(40)])
    assert (ids < 19).sum() == 80 and (ids >= 19).sum() == 160 and ids.max() == 27
    (said,) = sets.sources_words(asked, order)
    assert said.startswith(
        "sources by weight: photos 33.33% of each step, its 19 seen 4.7 times; scans 66.67% of each step, its 9 seen 20.0 times"
    )


def test_a_hold_out_of_its_own_may_be_several_sets_and_takes_the_first_of_each(words, tiny_shards):
    asked = load(PretrainConfig, None, [*MODEL, f"data.shards={tiny_shards}", f"data.holdout_shards={json.dumps(list(words))}"])
    sets = open_training_set(asked)
    names = [sets.held_out.name_of(sample) for sample in sets.holdout.pool]
    firsts = [ShardSet.open(word) for word in words]
    assert names == [f"photos/{firsts[0].name_of(own)}" for own in range(4)] + [f"scans/{firsts[1].name_of(own)}" for own in range(3)]
    assert sets.training.pool == range(40)
    assert [len(each) for each in open_holdout(words, ALONE, 7).sources] == [23, 12]
    assert list(sets.manifests) == ["shards", "holdout_shards[0]", "holdout_shards[1]", "holdout_shards"]


@pytest.mark.parametrize(
    ("more", "words_of_it"),
    [
        ("data.holdout_samples=1", "holdout_samples=1 must be at least 2, one of each source"),
        ("data.holdout_samples=34", "takes 12 of each 12 images of .*scans/train, which leaves none to train on"),
        ("data.holdout_samples=35", "must be fewer than the 35 samples of"),
        ("data.weights=[1]", "are 1, and shards names 2 sets; give one weight for each"),
        ("data.weights=[1, 0]", "greater than 0"),
        ("data.shards=[{0}, {1}, {0}]", "names the same images twice, .*photos/train and .*photos/train"),
        ("data.holdout_shards=[{1}]", "scans/train are the images that are trained on"),
    ],
)
def test_what_cannot_be_joined_is_refused_in_one_line(words, more, words_of_it):
    with pytest.raises(ConfigError, match=words_of_it) as error:
        open_training_set(config(words, more.format(*words)))
    assert "\n" not in str(error.value)


def test_one_word_in_a_list_is_that_word_and_its_set_as_it_is(words):
    assert config(words[:1]).data.shards == words[0]
    assert isinstance(open_shards(words[0]), ShardSet)


def test_a_copy_that_was_pickled_reads_the_same(joined):
    again = pickle.loads(pickle.dumps(joined))
    assert [again.read(sample) for sample in range(35)] == [joined.read(sample) for sample in range(35)]
    assert again.manifest_hash == joined.manifest_hash


def test_the_hash_of_all_tells_their_order(joined, words):
    assert open_shards(words[::-1], held_out=7).manifest_hash != joined.manifest_hash == open_shards(words).manifest_hash


def test_images_that_sources_share_are_counted_and_those_that_leak_into_the_hold_out(joined, make_shards, tmp_path):
    # Images are drawn by their number, so of two sets of 12 and 9 the first 9 are the same; a third, of other sizes, shares none.
    paths = [
        str(make_shards(tmp_path / name / "train", [count], smallest=least))
        for name, count, least in (("a", 12, 24), ("b", 9, 24), ("c", 9, 40))
    ]
    both = open_shards(tuple(paths), held_out=6)
    assert both.trained == (10, 7, 7)
    assert both.remarks == [
        "note: 9 images of b are also in another source, byte for byte; 2 of 6 that are held out are trained on, too, so that hold-out figures look better "
        "than they are"
    ]
    assert open_shards((paths[0], paths[2]), held_out=6).remarks == []
    asked = config(paths, "data.holdout_samples=6")
    assert open_training_set(asked).remarks == both.remarks


def test_open_files_are_shared_by_shards_and_what_comes_next_is_told_to_each_set(joined, monkeypatch):
    assert joined.keep_open(2) == 2 and [each.open_files for each in joined.sources] == [2, 2]  # both may be of one
    assert joined.keep_open(5) == 5 and [each.open_files for each in joined.sources] == [3, 2]
    with monkeypatch.context() as patch:
        patch.setattr("resource.getrlimit", lambda _: (7, 7))
        assert joined.keep_open(5) == 2 and [each.open_files for each in joined.sources] == [1, 1]  # half of 7, by their shards
    told: list[tuple[int, list[int]]] = []
    for number, source in enumerate(joined.sources):
        monkeypatch.setattr(source, "ahead", lambda samples, number=number: told.append((number, list(samples))))
    StoredPixels(joined, 10**6).ahead([0, 20, 29, 34])
    assert told == [(0, [0, 20]), (1, [1, 11])]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_all_sources_are_those_of_ram_and_of_loader_processes(words, workers):
    joined = open_shards(words, held_out=7)
    asked = config(words, "data.weights=[1, 2]")
    stored = CropDataset(StoredPixels(joined, 10**6), AUGMENT, 5, range(28), masking=MASKING)
    plan = plan_batch(6, 6, 1, 3)
    order = open_training_set(asked).order(asked, plan)
    memory = CropDataset(MemoryPixels(joined, range(28), 10**6, 2, 1), AUGMENT, 5, range(28), masking=MASKING)
    expected = list(batches(stored, OrderSampler(order, plan, 0, 1, 0, 6), 0, False))
    for data in (stored, memory):
        found = list(batches(data, OrderSampler(order, plan, 0, 1, 0, 6), workers, False))
        assert len(found) == 12 and all(same(one, other) for one, other in zip(expected, found, strict=True))
    assert all(not torch.any(batch["replaced"]) for batch in expected)
