"""What several ranks measure together, run here as threads whose collectives meet: the same figures as one rank's, each image's under its own id."""

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.augment import Augment, Centre
from mpp.data.crop_dataset import CropDataset
from mpp.data.labelled import open_labelled
from mpp.data.loader import fixed_batches
from mpp.data.order import FIXED
from mpp.data.pixels import StoredPixels
from mpp.data.shards import ShardSet
from mpp.mains.pretrain_looks import Holdout, loss_and_skill, on_holdout
from mpp.monitor.skill import Baseline
from mpp.processes.world import World
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.train.classify import measure
from mpp.transfer.features import FeatureConfig, FeatureSpec
from mpp.transfer.in_the_loop import ImageViews

CPU, HALF = torch.device("cpu"), (0.5, 0.5, 0.5)
TINY = [
    "model={arch: vit_tiny_patch16_224, image_size: 16, patch_size: 8, width: 12, depth: 1, heads: 3}",
    "data.global_batch=4",
    "decoder={name: linear, head_std: 0.02}",
]


@dataclass
class Ranks:
    """`run` gives what each rank's work returns; torch's collectives wait for all of them."""

    size: int
    backwards: bool = False  # parts are gathered in the opposite order
    here: threading.local = field(default_factory=threading.local)

    def run(self, monkeypatch, work) -> list:
        meeting, slots, made = threading.Barrier(self.size, timeout=60), [None] * self.size, [None] * self.size

        def meet(mine):
            slots[self.here.rank] = mine
            meeting.wait()
            everything = list(slots)
            meeting.wait()
            return everything

        def gather(parts, mine):
            parts[:] = meet(mine)[:: -1 if self.backwards else 1]

        def reduce(tensor):
            tensor.copy_(sum(meet(tensor.clone())))

        def rank(number):
            self.here.rank = number
            made[number] = work(World(number, self.size, self.size, CPU))

        monkeypatch.setattr("torch.distributed.all_gather_object", gather)
        monkeypatch.setattr("torch.distributed.all_reduce", reduce)
        threads = [threading.Thread(target=rank, args=(number,)) for number in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return made


def test_predictions_of_several_ranks_stand_in_the_order_of_the_ids_with_their_own_confidences(tiny_shards, monkeypatch):
    shards = ShardSet.open(tiny_shards)
    ids = np.arange(1, 40)  # 39: the last round of every rank is uneven
    data = CropDataset(StoredPixels(shards, 10**6), Centre((8, 8), 1.0), 0, ids, leaves_none_out=True, labels=shards.labels)
    weight = torch.randn(3 * 64, 4, generator=torch.Generator().manual_seed(0))
    predict = lambda images: images.flatten(1) @ weight / 8
    pixels = torch.stack([data.batch([(FIXED, int(sample), place)])["image"][0] for place, sample in enumerate(ids)]).float()
    logits = predict((pixels / 255 - 0.5) / 0.5)
    sure, predicted = logits.softmax(1).max(1)
    truth = torch.from_numpy(shards.labels[ids].astype(np.int64))
    for size in (1, 2, 3):
        for found in Ranks(size).run(monkeypatch, lambda world: measure(predict, data, HALF, HALF, 4, 0, world)):
            assert found.counted == "39 of 39 images, 0 repeated"
            assert found.predicted.tolist() == predicted.tolist() and found.truth.tolist() == truth.tolist()
            np.testing.assert_allclose(found.confidence, sure.numpy(), rtol=1e-4)
            assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, truth)), rel=1e-5)
            assert found.right == int((predicted == truth).sum())


@pytest.mark.parametrize("backwards", [False, True])
def test_answers_of_probes_beside_the_encoder_stand_by_image_whichever_part_comes_first(tiny_shards, monkeypatch, backwards):
    images, samples = open_labelled(str(tiny_shards), "train"), np.arange(3, 40)[::-1].copy()
    extractor = SimpleNamespace(spec=SimpleNamespace(resolution=8, crop=1.0), tokens=lambda crops, layers: {0: crops.float().flatten(1)})
    weight = torch.randn(3 * 64, 5, generator=torch.Generator().manual_seed(0)) / 2000

    def heads(tokens):
        shares = torch.stack([(tokens[0] @ weight).softmax(1), (tokens[0] @ -weight).softmax(1)])
        sure, predicted = shares.max(dim=2)
        return predicted, sure

    rows, asked = np.arange(len(samples)), FeatureConfig(batch=5, workers=0)
    work = lambda world: ImageViews(extractor, images, samples, asked, 0, world).answers(heads, [0], rows)
    alone = work(World(0, 1, 1, CPU))
    assert len(set(alone[0].confidence.tolist())) > 30
    for found in Ranks(2, backwards).run(monkeypatch, work):
        for ours, theirs in zip(found, alone, strict=True):
            assert torch.equal(ours.predicted, theirs.predicted)
            torch.testing.assert_close(ours.confidence, theirs.confidence)


def test_a_probe_beside_the_encoder_answers_to_the_crop_it_asks_for(tiny_shards):
    images, samples, asked = open_labelled(str(tiny_shards), "train"), np.arange(6), FeatureConfig(batch=4, workers=0)
    spec = FeatureSpec("digest", (0,), ("mean",), 8, 1.0, HALF, HALF, "fp32")
    seen: list[torch.Tensor] = []
    extractor = SimpleNamespace(spec=spec, tokens=lambda crops, layers: seen.append(crops) or {0: crops})
    heads = lambda tokens: (torch.zeros(1, len(tokens[0]), dtype=torch.int64), torch.zeros(1, len(tokens[0])))
    for crop, share in ((None, 1.0), (0.5, 0.5)):
        seen.clear()
        ImageViews(extractor, images, samples, asked, 0, World(0, 1, 1, CPU)).answers(heads, [0], samples, crop)
        data = CropDataset(StoredPixels(images, 10**6), Centre(8, share), 0, samples, leaves_none_out=True)
        assert torch.equal(torch.cat(seen), data.batch([(FIXED, sample, sample) for sample in range(6)])["image"])


def test_loss_and_skill_of_the_hold_out_are_over_the_images_of_all_ranks_once(tiny_shards, monkeypatch):
    config = load(PretrainConfig, None, TINY)
    shards = ShardSet.open(tiny_shards)
    masking = Masking((2, 2), config.mask, config.corruption)
    data = CropDataset(StoredPixels(shards, 10**6), Augment(16, (0.5, 1), (0.75, 1.33), True), 0, range(40), masking=masking)
    model = build_model(config, False)
    modes: list[bool] = []
    engine = SimpleNamespace(forward=model.eval(), train=modes.append)
    baseline = Baseline("any", 1.0, 2.0, {})

    def work(world):
        size = {1: 11, 2: 3, 3: 2}[world.size]  # of the 11 images; on 2 and on 3 ranks a twelfth fills up the last batch
        batches = list(fixed_batches(data, np.arange(29, 40), size, world.rank, world.size))
        for batch, _ in batches:
            batch["origin"] = batch["shown"] % 3
        sums, by_image, by_source = on_holdout(engine, Holdout(batches, ("a", "b", "c")), world)
        return (*loss_and_skill(sums, baseline), by_image.images, baseline.skill_error(by_image), *by_source)

    (alone,) = Ranks(1).run(monkeypatch, work)
    assert modes == [False, True] and alone[2] == 11
    for size in (2, 3):
        for found in Ranks(size).run(monkeypatch, work):
            assert found == pytest.approx(alone, rel=1e-5)
