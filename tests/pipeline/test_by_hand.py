"""What a run writes down, computed again from its checkpoints step by step: a slip that every run makes alike shows here."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mpp.base.rng import DROP_PATH, seed_of
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.augment import Augment
from mpp.data.batch_plan import plan_batch
from mpp.data.crop_dataset import CropDataset
from mpp.data.order import FIXED, Order, OrderSampler
from mpp.data.pixels import StoredPixels
from mpp.data.shards import ShardSet
from mpp.recipe.corruptions.replace import corrupt
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.recipe.places import MASKED
from tests.pipeline.conftest import TINY, metrics, succeed, tensors

CONFIG = load(PretrainConfig, None, TINY)
HELD_OUT = CONFIG.data.holdout_samples


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("by_hand") / "run"
    succeed(run, shards, "log.pictures_every_steps=1000", "optim.clip_norm=0.5")  # nothing but the hold-out disturbs training
    return run


@pytest.fixture(scope="module")
def dataset(shards):
    data = CONFIG.data
    shard_set = ShardSet.open(shards)
    augment = Augment(CONFIG.model.image_size, data.crop_scale, data.crop_ratio, data.flip)
    masking = Masking(CONFIG.model.grid, CONFIG.mask, CONFIG.corruption)
    return CropDataset(StoredPixels(shard_set, data.max_pixels), augment, CONFIG.seed, range(len(shard_set)), masking=masking)


def keys_of_step(step):
    """48 images in shards of 10; the last 8 are held out."""
    plan = plan_batch(CONFIG.data.global_batch, None, 1, 12)
    order = Order((10, 10, 10, 10), CONFIG.data.global_batch, plan.streams, CONFIG.seed, None)
    (keys,) = OrderSampler(order, plan, 0, 1, step, step + 1)
    assert max(sample for _, sample, _ in keys) < 40
    return keys


def losses(model, batch):
    """Cross-entropy [B, M] of the 3-bit mean colour of each predicted patch, and whether the patch was masked."""
    images = torch.stack([image.flip(-1) if pose else image for image, pose in zip(batch["image"], batch["pose"], strict=True)]).float()
    rows = []
    for image, predicted in zip(images, batch["predicted"], strict=True):
        patches = [image[:, 4 * (n // 4) : 4 * (n // 4) + 4, 4 * (n % 4) : 4 * (n % 4) + 4] for n in predicted.tolist()]
        bins = [[int(channel.mean()) // 32 for channel in patch] for patch in patches]
        rows.append([64 * red + 8 * green + blue for red, green, blue in bins])
    tokens = model.encoder(corrupt(model.encoder.embed((images / 255 - 0.5) / 0.5), batch["kind"], batch["source"], model.mask_token))
    out = model.decoder(tokens, None, batch["predicted"])
    loss = F.cross_entropy(out.flatten(0, 1), torch.tensor(rows).flatten(), reduction="none").view(len(rows), -1)
    masked = torch.stack([kind[predicted] == MASKED for kind, predicted in zip(batch["kind"], batch["predicted"], strict=True)])
    assert 0 < masked.sum() < masked.numel()  # kept and swapped ones are predicted too
    return loss, masked


def model_at(run, step):
    model = build_model(CONFIG, False)
    model.load_state_dict({n.removeprefix("weight/"): t for n, t in tensors(run, step).items() if n.startswith("weight/")})
    return model


def test_the_learning_rate_of_every_step(run):
    for step, values in metrics(run).items():
        seen = 12 * (step - 1)
        rate = 1e-3 * (seen / 24 if seen < 24 else 0.5 * (1 + math.cos(math.pi * (seen - 24) / 72)))
        assert values["optim/learning_rate"] == pytest.approx(rate, rel=1e-9, abs=1e-15), step


@pytest.mark.parametrize("step", [4, 8])
def test_loss_and_skill_of_the_holdout(run, dataset, step):
    with torch.no_grad():
        loss, masked = losses(model_at(run, step).eval(), dataset.batch([(FIXED, i, 0) for i in range(48 - HELD_OUT, 48)]))
    baseline = json.loads((run / "baseline.json").read_text())["loss"]
    assert metrics(run)[step]["holdout/loss"] == pytest.approx(float(loss.mean()), rel=1e-5)
    assert metrics(run)[step]["holdout/skill"] == pytest.approx(1 - float(loss[masked].mean()) / baseline, abs=1e-5)
    patches = masked.sum(1)
    apart = (loss * masked).sum(1) - loss[masked].mean() * patches  # of each image, from what its patches would lose on average
    error = float(apart.double().std()) * math.sqrt(HELD_OUT) / float(patches.sum()) / baseline
    assert metrics(run)[step]["holdout/skill_error"] == pytest.approx(error, rel=1e-3)


def test_loss_skill_norm_and_update_of_two_steps_after_a_look_at_the_holdout(run, dataset):
    model, start = model_at(run, 4).train(), tensors(run, 4)
    baseline = json.loads((run / "baseline.json").read_text())["loss"]
    state = {name: [start[f"exp_avg/{name}"].clone(), start[f"exp_avg_sq/{name}"].clone()] for name, _ in model.named_parameters()}
    for step in (4, 5):
        torch.manual_seed(seed_of(CONFIG.seed, DROP_PATH, step, 0))
        loss, masked = losses(model, dataset.batch(keys_of_step(step)))
        model.zero_grad()
        loss.mean().backward()
        norm = math.sqrt(sum(float(parameter.grad.double().square().sum()) for parameter in model.parameters()))
        written = metrics(run)[step + 1]
        assert written["train/loss"] == pytest.approx(loss.mean().item(), rel=1e-5)
        assert written["train/skill"] == pytest.approx(1 - loss[masked].mean().item() / baseline, abs=1e-5)
        assert written["optim/gradient_norm"] == pytest.approx(norm, rel=1e-4)
        assert norm > 0.5  # so that clipping matters
        rate, t = written["optim/learning_rate"], step + 1
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gradient = parameter.grad * (0.5 / norm)
                first, second = state[name]
                first.mul_(0.9).add_(gradient, alpha=0.1)
                second.mul_(0.999).add_(gradient.square(), alpha=0.001)
                decays = name.endswith(".weight") and "norm" not in name
                parameter.mul_(1 - rate * (0.05 if decays else 0))
                parameter.sub_(rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8))
    for name, weight in model.named_parameters():
        theirs = tensors(run, 6)[f"weight/{name}"]
        # Adam divides by the root of tiny second moments, where rounding is all there is.
        assert np.quantile((weight.detach() - theirs).abs().numpy(), 0.99) < 2e-5, name
        assert torch.allclose(weight, theirs, rtol=0, atol=2e-4), name
