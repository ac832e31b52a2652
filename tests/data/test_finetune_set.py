"""Every word about data and augmentation arrives where it is used."""

import functools

import numpy as np

from mpp.config.finetune import FinetuneConfig
from mpp.config.schema import load
from mpp.data.augment import Augment, Centre
from mpp.data.finetune_set import open_finetune_set
from mpp.data.mixing import Mixing
from mpp.transfer.split import CHOOSE, few_labels, hold_out

AUGMENT = (
    "augment={crop_scale: [0.3, 0.9], crop_ratio: [0.6, 1.5], flip: false, rand_augment: null, erasing: 0.6, mixup: 0.7, cutmix: 1.7, "
    "mix_share: 0.8, cutmix_share: 0.3}"
)


def opened(train, test, *words: str):
    config = load(FinetuneConfig, None, [f"train={train}", f"test={test}", "seed=4", "data.test_crop=0.7", "data.max_pixels=5000", *words])
    hold = functools.partial(hold_out, fraction=config.data.holdout_fraction, seed=4, use=CHOOSE)
    few = functools.partial(few_labels, seed=4, fraction=config.data.label_fraction, per_class=config.data.labels_per_class)
    return open_finetune_set(config, (8, 16), (0.5, 0.5, 0.5), hold, few)


def test_training_crops_are_made_as_asked_for_and_measured_ones_are_plain_centres(tiny_shards, make_shards, tmp_path):
    sets = opened(tiny_shards, make_shards(tmp_path / "test", [8]), AUGMENT, "data.holdout_fraction=0.3")
    training, holdout, test = sets.training, sets.holdout, sets.test
    assert training.augment == Augment(size=(8, 16), scale=(0.3, 0.9), ratio=(1.2, 3.0), flip=False)  # twice as wide as high
    posed = opened(tiny_shards, make_shards(tmp_path / "other", [8]), "augment={vertical_flip: true, turns: true}").training
    assert (posed.augment.flip, posed.augment.vertical_flip, posed.augment.turns) == (True, True, True)
    assert training.mixing == Mixing(mixup=0.7, cutmix=1.7, mixed=0.8, cut=0.3)
    assert (training.erasing, training.recolour, training.seed) == (0.6, None, 4)
    for measured in (holdout, test):
        assert measured.augment == Centre((8, 16), share=0.7)
        assert (measured.erasing, measured.recolour, measured.mixing) == (0.0, None, None)
    assert {data.pixels.max_pixels for data in (training, holdout, test)} == {5000}
    assert len(holdout.ids) == 12 and len(training.ids) == 28 and len(test.ids) == 8
    assert not set(holdout.ids) & set(training.ids)


def test_few_labels_are_of_what_the_holdout_leaves(tiny_shards, make_shards, tmp_path):
    test = make_shards(tmp_path / "test", [8])
    some = opened(tiny_shards, test, "data.holdout_fraction=0.3", "data.label_fraction=0.5")
    assert np.bincount(some.training.labels[some.training.ids]).tolist() == [4, 4, 4, 4]
    each = opened(tiny_shards, test, "data.holdout_fraction=0.3", "data.labels_per_class=3")
    assert np.bincount(each.training.labels[each.training.ids]).tolist() == [3, 3, 3, 3]
    assert len(some.holdout.ids) == len(each.holdout.ids) == 12


def test_without_mixing_or_colours_there_are_none(tiny_shards, make_shards, tmp_path):
    plain = opened(
        tiny_shards, make_shards(tmp_path / "test", [8]), "augment={mixup: 0, cutmix: 0, rand_augment: null, erasing: 0}"
    ).training
    assert (plain.mixing, plain.recolour, plain.erasing) == (None, None, 0.0)
    assert opened(tiny_shards, tmp_path / "test").training.recolour is not None


def test_another_draw_takes_other_labels_and_holds_out_the_same(tiny_shards, make_shards, tmp_path):
    words = ["data.holdout_fraction=0.3", "data.labels_per_class=3"]
    sets = opened(tiny_shards, make_shards(tmp_path / "test", [8]), *words)
    few = functools.partial(few_labels, per_class=3)
    again, other = sets.redrawn(4, functools.partial(few, seed=4)), sets.redrawn(5, functools.partial(few, seed=5))
    assert np.array_equal(again.training.ids, sets.training.ids) and again.training.seed == 4
    assert not np.array_equal(other.training.ids, sets.training.ids) and other.training.seed == 5
    assert np.bincount(other.labels).tolist() == [3, 3, 3, 3]
    assert not set(other.training.ids) & set(sets.holdout.ids)
    assert other.holdout is sets.holdout and other.test is sets.test
    alone = opened(tiny_shards, tmp_path / "test", *words, "data.holdout_fraction=0")
    assert len(alone.redrawn(4, functools.partial(few, seed=4)).training.ids) == 12
