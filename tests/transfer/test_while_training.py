"""Features looked at during pretraining: which images, when, and figures that others compute alike."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from mpp.base.errors import ConfigError, DataError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.training_set import open_training_set
from mpp.monitor.rank import spread
from mpp.processes.world import World
from mpp.transfer.probes.contract import Train
from mpp.transfer.split import Split
from mpp.transfer.while_training import BATCH, LEAST_IMAGES, OWN, SHARE, FeatureLooks, cadence, choose, least_squares, unlooked_words
from tests.train.test_several_ranks import Ranks

CPU = torch.device("cpu")
TINY = [
    "model={arch: vit_tiny_patch16_224, image_size: 16, patch_size: 8, width: 12, depth: 1, heads: 3}",
    "data={global_batch: 4, holdout_samples: 12}",
    "evaluate={every_steps: 1, images: 40}",
]


def config_of(shards, *words) -> PretrainConfig:
    return load(PretrainConfig, None, [*TINY, f"data.shards={shards}", *words])


def looks_of(config, world=None) -> FeatureLooks:
    return FeatureLooks(config, choose(config, open_training_set(config), cadence(config)[1]), world or World(0, 1, 1, CPU))


def given(table):
    """An encoder that gives these rows, in batches, whatever it is shown."""
    parts = iter(table.split(BATCH))
    return lambda images: next(parts)


def colours(images):
    """Stands for an encoder: what is left of an image at 4 x 4 pixels."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


@pytest.mark.parametrize(("total", "batch"), [(192_000, 128), (102_400, 32), (400_000_000, 4096), (1_000_000, 256), (40_000, 64)])
def test_looks_cost_a_hundredth_of_the_samples_at_most_and_are_five_to_twenty(total, batch):
    every, images = cadence(
        load(PretrainConfig, None, [f"optim.total_samples={total}", f"data.global_batch={batch}", "optim.warmup_samples=0"])
    )
    looks = total // batch // every
    assert images <= 4000 and 5 <= looks <= 21
    assert looks * images <= 1.05 * SHARE * total


def test_a_short_run_is_not_looked_at_and_none_is_where_nobody_wants_it():
    short = ["optim.total_samples=16000", "data.global_batch=100", "optim.warmup_samples=0"]
    assert 16_000 * SHARE / 5 < LEAST_IMAGES and cadence(load(PretrainConfig, None, short)) == (0, 0)
    assert unlooked_words(load(PretrainConfig, None, short)) == [
        "features are not looked at: a hundredth of optim.total_samples=16000 is less than 5 looks at 64 images; say how often with evaluate.every_steps, "
        f"such as {16_000 // load(PretrainConfig, None, short).data.global_batch // 5}"
    ]
    assert unlooked_words(load(PretrainConfig, None, ["evaluate.images=0"])) == unlooked_words(load(PretrainConfig, None, [])) == []
    assert cadence(load(PretrainConfig, None, ["evaluate.images=0"])) == (0, 0)
    with pytest.raises(
        ConfigError, match=r"evaluate\.train=there would never be looked at: .*total_samples=16000.* evaluate\.every_steps, such as 32"
    ):
        cadence(load(PretrainConfig, None, [*short, "evaluate.train=there"]))
    assert cadence(load(PretrainConfig, None, [*short, "evaluate.every_steps=7", "evaluate.images=30"])) == (7, 30)


def test_those_asked_about_are_held_out_and_the_bank_is_trained_on(tiny_shards):
    config = config_of(tiny_shards)
    sets = open_training_set(config)
    chosen = choose(config, sets, 32)
    assert set(chosen.asked) <= set(sets.holdout.pool) and set(chosen.bank) <= set(sets.training.pool)
    assert len(chosen.asked) == 8 and len(chosen.bank) == min(24, len(sets.training.pool))
    again = choose(config_of(tiny_shards, "seed=1"), sets, 32)
    assert not np.array_equal(again.bank, chosen.bank)


def test_without_labels_only_rank_and_deviation_are_told_on_held_out_images(make_shards, tmp_path):
    shards = make_shards(tmp_path / "unlabelled", [30, 30], classes=0)
    looks = looks_of(config_of(shards))
    assert not len(looks.chosen.bank) and "without labels" in looks.words
    assert set(looks.look(colours)) == {"features/rank", "features/mean_cosine", "features/deviation"}


def test_other_labelled_images_are_told_by_their_own_and_unlabelled_ones_are_refused(tiny_shards, make_shards, tmp_path):
    other = make_shards(tmp_path / "other", [40], classes=2)
    chosen = looks_of(config_of(tiny_shards, f"evaluate.train={other}")).chosen
    assert chosen.of_asked.path == chosen.of_bank.path == other
    assert not set(chosen.asked) & set(chosen.bank) and len(chosen.asked) == 10 and len(chosen.bank) == 30
    unlabelled = make_shards(tmp_path / "none", [40], classes=0)
    with pytest.raises(DataError, match=r"evaluate\.train=.* holds no labels; make them with"):
        looks_of(config_of(tiny_shards, f"evaluate.train={unlabelled}"))


def test_figures_are_those_of_the_features_and_the_same_on_any_number_of_processes(tiny_shards, monkeypatch):
    config = config_of(tiny_shards)
    alone = looks_of(config)
    found = alone.look(colours)
    assert set(found) == {f"features/{name}" for name in ("rank", "mean_cosine", "deviation", "knn", "linear")}
    asked = colours(alone.crops[len(alone.chosen.bank) :].float())
    assert found["features/rank"] == spread(asked)["rank"] and 0 <= found["features/knn"] <= 1
    for size in (2, 3):
        first, *others = Ranks(size).run(monkeypatch, lambda world: looks_of(config, world).look(colours))
        assert first == pytest.approx(found) and others == [{}] * (size - 1)


def test_all_processes_call_the_encoder_as_often_however_their_shares_differ(make_shards, tmp_path, monkeypatch):
    shards = make_shards(tmp_path / "many", [150], classes=2)
    config = config_of(shards, "data.holdout_samples=33")
    looks_at = lambda world: FeatureLooks(config, choose(config, open_training_set(config), 129), world)
    calls = {0: 0, 1: 0}

    def look(world):
        def encode(images):
            calls[world.rank] += 1
            return colours(images)

        looks = looks_at(world)
        return len(looks.crops), looks.look(encode)

    (first, found), (second, _) = Ranks(2).run(monkeypatch, look)
    assert (first, second) == (65, 64) and calls == {0: 2, 1: 2}
    assert found == pytest.approx(looks_at(World(0, 1, 1, CPU)).look(colours))


def test_classes_that_features_tell_apart_are_told_apart_and_shuffled_ones_are_not(tiny_shards):
    looks = looks_of(config_of(tiny_shards))
    labels = np.concatenate([looks.chosen.of_bank.labels[looks.chosen.bank], looks.chosen.of_asked.labels[looks.chosen.asked]])
    apart = torch.eye(8)[torch.from_numpy(labels).long()] + 0.01 * torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(1))
    assert looks.look(given(apart))["features/knn"] == 1.0 == looks.look(given(apart))["features/linear"]
    assert looks.look(given(noise))["features/linear"] < 0.8 > looks.look(given(noise))["features/knn"]


def test_least_squares_are_scikit_learns_ridge_at_the_l2_that_is_best_on_the_rows_to_choose_on():
    dice = torch.Generator().manual_seed(0)
    labels = np.arange(120) % 3
    values = torch.randn(120, 10, generator=dice) + torch.eye(3)[torch.from_numpy(labels)] @ torch.randn(3, 10, generator=dice)
    features = SimpleNamespace(of=lambda variant: values)
    train = Train(features, OWN, labels, ["a", "b", "c"], Split(np.arange(70), np.arange(70, 90)), 0, CPU)
    found = least_squares(train, values[90:])
    standard = (values - values[:90].mean(0)) / (values[:90].std(0, correction=0) + 1e-5)
    answers = {
        l2: RidgeClassifier(alpha=l2).fit(standard[:90].double(), labels[:90]).predict(standard[90:].double())
        for l2 in 10.0 ** np.arange(-6, 10)
    }
    assert any(np.array_equal(found.numpy(), each) for each in answers.values())
    assert (found.numpy() == labels[90:]).mean() > 0.6


def test_an_image_that_cannot_be_read_is_left_out(make_shards, tmp_path):
    shards = make_shards(tmp_path / "broken", [40])
    config = config_of(shards)
    chosen = looks_of(config).chosen
    victim = int(chosen.bank[0])
    row = open_training_set(config).trained_on.index[victim]
    tar = shards / "000000.tar"
    content = bytearray(tar.read_bytes())
    content[int(row["offset"]) + 30] ^= 255
    tar.write_bytes(bytes(content))
    looks = looks_of(config)
    assert (
        victim not in looks.ids[0]
        and len(looks.ids[0]) == len(chosen.bank) - 1
        and len(looks.crops) == len(chosen.bank) + len(chosen.asked) - 1
    )
    assert "features/knn" in looks.look(colours)
