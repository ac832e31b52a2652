"""What fine-tuning may be asked for, and that the shipped recipes are the papers'."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.errors import ConfigError
from mpp.config.finetune import FinetuneConfig
from mpp.config.schema import load, tree_of
from mpp.config.small import tuning
from mpp.mains.finetune_job import clock_of, config_of_repeat
from mpp.train.schedule import learning_rate
from mpp.transfer.features import FeatureConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def test_maes_numbers_are_the_papers():
    config = load(FinetuneConfig, CONFIGS / "finetune_b16.yaml")
    model, augment, optim = config.model, config.augment, config.optim
    assert (model.pooling, model.norm, model.head_std, model.drop_path, model.resolution) == ("mean", "pooled", 2e-5, 0.1, None)
    assert (augment.rand_augment, augment.erasing, augment.mixup, augment.cutmix, augment.smoothing) == (
        "rand-m9-mstd0.5-inc1", 0.25, 0.8, 1.0, 0.1,
    )  # fmt: skip
    assert (augment.mix_share, augment.cutmix_share, augment.crop_scale) == (1.0, 0.5, (0.08, 1.0))
    assert (optim.name, optim.base_lr, optim.lr_batch, optim.final_lr, optim.layer_decay) == ("adamw", 5e-4, 256, 1e-6, 0.65)
    assert (optim.betas, optim.weight_decay, optim.clip_norm, optim.ema) == ((0.9, 0.999), 0.05, 0, None)
    assert (optim.epochs, optim.warmup_epochs, config.data.global_batch, config.data.test_crop) == (100, 5, 1024, 0.875)
    schedule = clock_of(config, steps_per_epoch=1239)  # 99 % of ImageNet
    assert (schedule.warmup_samples * 20, schedule.total_samples) == (schedule.total_samples, 123_900 * 1024)


def test_both_programs_take_the_whole_short_side_unless_a_recipe_says_otherwise():
    assert FinetuneConfig().data.test_crop == FeatureConfig().crop == 1.0
    words = {name: (CONFIGS / f"finetune_{name}.yaml").read_text() for name in ("b16", "vit_b16", "cifar")}
    assert all("  test_crop: " in text for text in words.values())


@given(st.integers(1, 200_000), st.none() | st.floats(0.5, 500), st.none() | st.sampled_from([4, 32, 1024]))
def test_any_number_of_labels_gives_a_run_of_the_preset_for_few(labels, epochs, batch):
    config = load(FinetuneConfig, CONFIGS / "finetune_small.yaml", [], tree_of(tuning(labels, epochs, batch)))
    assert config.data.global_batch == (batch or config.data.global_batch) and config.optim.epochs == (epochs or config.optim.epochs)
    if batch is None:
        assert config.data.global_batch <= max(2, labels) and config.data.global_batch % 2 == 0
    if epochs is None:
        assert labels * config.optim.epochs >= 20_000
    clock_of(config, steps_per_epoch=max(1, labels // config.data.global_batch))


def test_the_preset_for_few_labels_mixes_and_repeats_where_labels_are_few_and_goes_by_the_measured_rate():
    few, many = tuning(100), tuning(10_000)
    assert (few["data.global_batch"], few["optim.epochs"], few["optim.warmup_epochs"], few["augment.mixup"]) == (16, 200, 20, 0.8)
    assert (many["data.global_batch"], many["optim.epochs"], many["optim.base_lr"], many["augment.cutmix"]) == (128, 12, 3e-3, 0)
    assert tuning(10_000, batch=32)["optim.base_lr"] == 1.5e-3 and tuning(100, epochs=10)["augment.mixup"] == 0


def test_the_vit_papers_numbers_are_the_papers():
    config = load(FinetuneConfig, CONFIGS / "finetune_vit_b16.yaml")
    model, augment, optim = config.model, config.augment, config.optim
    assert (model.resolution, model.pooling, model.norm, model.head_std, model.drop_path) == (384, "cls", "tokens", 0, 0)
    assert (augment.flip, augment.rand_augment, augment.erasing, augment.mixes, augment.smoothing) == (True, None, 0, False, 0)
    assert (optim.name, optim.momentum, optim.weight_decay, optim.clip_norm, optim.layer_decay) == ("sgd", 0.9, 0, 1, 1)
    assert (optim.base_lr, optim.lr_batch, optim.final_lr, optim.steps, config.data.global_batch) == (0.03, None, 0, 20_000, 512)
    schedule = clock_of(config, steps_per_epoch=7)
    assert (schedule.total_samples, schedule.warmup_samples) == (20_000 * 512, 500 * 512)


def test_the_schedule_has_every_number_that_was_asked_for():
    words = ["optim={base_lr: 0.2, lr_batch: 16, final_lr: 0.04, epochs: 2, warmup_epochs: 0.5}", "data.global_batch=8"]
    schedule = clock_of(load(FinetuneConfig, None, words), steps_per_epoch=4)
    rates = [learning_rate(8 * step, schedule, 8) for step in (0, 1, 2, 5, 8)]
    assert (schedule.total_samples, rates) == (8 * 8, pytest.approx([0, 0.05, 0.1, 0.07, 0.04]))
    counted = clock_of(load(FinetuneConfig, None, [*words, "optim.steps=4", "optim.warmup_steps=1"]), steps_per_epoch=4)
    assert (counted.total_samples, counted.warmup_samples) == (32, 8)


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(FinetuneConfig, None, words)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_is_refused_with_a_remedy():
    assert "take 1024" in refused("data.global_batch=1023")
    assert "raise it to 2" in refused("system.micro_batch_max=1")
    assert "augment.rand_augment=null" in refused("system.images=device")
    assert "give one of the two" in refused("data.holdout_fraction=0")
    assert "give one" in refused("data.label_fraction=0.1", "data.labels_per_class=5")
    assert "resume=8 would make the repeats=2 differ" in refused("resume=8", "repeats=2")
    assert "resume_changes=optim.base_lr would make" in refused("resume_changes=optim.base_lr", "repeats=2")
    assert "must stay below 2^63" in refused(f"seed={2**63 - 2}", "repeats=3")
    assert "pooling=mean" in refused("model={norm: pooled, pooling: cls}")
    assert "'augment.mixup'" in refused("augment.mixpu=1")
    oblong = refused("augment.turns=true", "model.resolution=[64, 96]")
    assert all(part in oblong for part in ("augment.turns=true", "model.resolution=[64, 96]", "set augment.turns=false"))
    for words in (
        ["augment.turns=true"],
        ["augment.turns=true", "model.resolution=[64, 64]"],
        ["augment.vertical_flip=true", "model.resolution=[64, 96]"],
    ):
        load(FinetuneConfig, None, words)
    assert load(FinetuneConfig, None, ["model.resolution=[64, 96]"]).model.resolution == (64, 96)
    with pytest.raises(ConfigError, match="exceeds the run's"):
        clock_of(load(FinetuneConfig, None, ["optim.epochs=1"]), 10)


def test_a_resumed_run_may_change_what_only_changes_speed_or_where_it_is_measured():
    names = FinetuneConfig().that_changes_results().keys()
    assert names == {"seed", "init", "encoder", "train", "model", "augment", "optim", "data"}


def test_a_repeat_is_asked_for_as_a_run_alone_with_a_seed_of_its_own_and_the_holdout_of_all():
    words = ["seed=7", "repeats=3", "resume=must", "optim.epochs=2", "data.labels_per_class=5"]
    config = load(FinetuneConfig, None, words)
    alone = load(
        FinetuneConfig, None, ["seed=9", "data.holdout_seed=7", "run_dir=RUN/repeat-2", "optim.epochs=2", "data.labels_per_class=5"]
    )
    assert config_of_repeat(config, 2, Path("RUN/repeat-2")) == alone
    held = load(FinetuneConfig, None, [*words, "data.holdout_seed=1"])
    assert config_of_repeat(held, 2, Path("RUN/repeat-2")).data.holdout_seed == 1
