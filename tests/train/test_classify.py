"""From labelled batches to inputs, targets and measurements; the average of the weights."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from mpp.base.errors import DataError
from mpp.data.augment import Centre
from mpp.data.crop_dataset import CropDataset
from mpp.data.loader import LoaderProcesses
from mpp.data.pixels import StoredPixels
from mpp.data.shards import ShardSet
from mpp.model.classifier import soft_targets
from mpp.processes.world import World
from mpp.train import classify
from mpp.train.average import WeightAverage, short_at_first
from mpp.train.classify import Predictions, balanced_weights, cross_entropy, inputs_and_targets, measure

HALF = (0.5, 0.5, 0.5)
CPU = torch.device("cpu")
ALONE = World(0, 1, 1, CPU)


@pytest.fixture
def alone(monkeypatch):
    """A process group of one."""
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda parts, mine: parts.__setitem__(0, mine))


def labelled(folder, count: int = 40) -> CropDataset:
    shards = ShardSet.open(folder)
    return CropDataset(StoredPixels(shards, 10**6), Centre((8, 8), 1.0), 0, np.arange(count), leaves_none_out=True, labels=shards.labels)


def batch(**other) -> dict:
    images = torch.arange(4 * 3 * 4 * 6).reshape(4, 3, 4, 6).to(torch.uint8)
    return {"image": images, "pose": torch.tensor([0, 1, 0, 0]), "label": torch.tensor([0, 1, 2, 2])} | other


def test_images_are_flipped_normalised_and_erased_with_the_samples_own_noise():
    plain, targets = inputs_and_targets(batch(), 3, 0.0, HALF, HALF, CPU)
    assert torch.equal(targets, torch.eye(3)[[0, 1, 2, 2]])
    assert torch.allclose(plain[1], (batch()["image"][1].flip(-1).float() / 255 - 0.5) / 0.5)
    boxes = torch.tensor([[0, 0, 0, 0], [1, 1, 4, 3], [0, 0, 6, 4], [0, 0, 6, 4]])
    erased, _ = inputs_and_targets(batch(erase=boxes, noise=torch.tensor([1, 2, 3, 4])), 3, 0.0, HALF, HALF, CPU)
    changed = (erased != plain).any(dim=1)
    assert changed.sum(dim=(1, 2)).tolist() == [0, 6, 24, 24]
    assert changed[1, 1:3, 1:4].all()
    assert not torch.equal(erased[2], erased[3])
    again, _ = inputs_and_targets(batch(erase=boxes, noise=torch.tensor([9, 9, 3, 9])), 3, 0.0, HALF, HALF, CPU)
    assert torch.equal(erased[2], again[2])


def test_partners_are_neighbours_and_share_their_targets():
    mixes = batch(share=torch.tensor([0.75, 0.75, 1.0, 1.0]), paste=torch.zeros(4, 4, dtype=torch.int64))
    plain, _ = inputs_and_targets(batch(), 3, 0.0, HALF, HALF, CPU)
    images, targets = inputs_and_targets(mixes, 3, 0.0, HALF, HALF, CPU)
    assert torch.allclose(images[0], 0.75 * plain[0] + 0.25 * plain[1])
    assert torch.allclose(images[1], 0.75 * plain[1] + 0.25 * plain[0])
    assert torch.equal(images[2:], plain[2:])
    assert torch.allclose(targets[:2], torch.tensor([[0.75, 0.25, 0], [0.25, 0.75, 0]]))


@pytest.mark.parametrize("micro_batch", [7, 64])
def test_every_image_is_measured_once_and_in_the_order_of_the_ids(tiny_shards, alone, micro_batch):
    data = labelled(tiny_shards)
    seen = []

    def predict(images):
        seen.append(len(images))
        return torch.stack([torch.full((len(images),), value) for value in (0.0, 2.0, 0.0, 0.0)], dim=1)

    found = measure(predict, data, HALF, HALF, micro_batch, 0, ALONE)
    assert found.counted == "40 of 40 images, 0 repeated"
    assert np.array_equal(found.truth, data.labels) and found.accuracy == 0.25 and found.right == 10
    assert found.confidence[0] == pytest.approx(np.exp(2) / (np.exp(2) + 3))
    losses = -torch.log_softmax(torch.tensor([0.0, 2.0, 0.0, 0.0]), 0)[torch.from_numpy(data.labels.astype(np.int64))]
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    assert found.predicted.tolist() == [1] * 40


def test_two_processes_find_of_every_image_what_one_finds(tiny_shards, monkeypatch):
    data = replace(labelled(tiny_shards), pool=np.arange(3, 40, 2))  # 19: the last batch is padded
    predict = lambda images: images.mean(dim=(2, 3)) @ torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(classify, "together", lambda world, work: work())
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda parts, mine: parts.__setitem__(0, mine))
    one = measure(predict, data, HALF, HALF, 4, 0, ALONE)
    worlds = [World(rank, 2, 2, CPU) for rank in range(2)]
    shares = [classify._share(predict, data, HALF, HALF, 4, LoaderProcesses([data], 0, pin_memory=False), world) for world in worlds]
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda parts, mine: parts.__setitem__(slice(None), shares))
    for rank in range(2):
        two = measure(predict, data, HALF, HALF, 4, 0, World(rank, 2, 2, CPU))
        assert two.counted == one.counted == "19 of 19 images, 0 repeated"
        assert np.array_equal(two.predicted, one.predicted) and np.array_equal(two.truth, data.labels[data.ids])
        assert np.allclose(two.confidence, one.confidence, atol=1e-6) and two.loss == pytest.approx(one.loss, rel=1e-6)
        assert len(set(one.confidence.tolist())) == 19 and len(set(one.predicted.tolist())) > 1


def test_a_measurement_that_counts_an_image_twice_fails(tiny_shards, monkeypatch):
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda parts, mine: parts.__setitem__(0, np.concatenate([mine, mine], 1)))
    with pytest.raises(DataError, match="40 of 40 images, 40 repeated"):
        measure(lambda images: torch.zeros(len(images), 4), labelled(tiny_shards), HALF, HALF, 16, 0, ALONE)


def test_a_measurement_leaves_no_image_out(make_shards, damage, tmp_path, alone):
    folder = make_shards(tmp_path / "test", [12])
    damage(folder, [7])
    with pytest.raises(DataError, match=r"test/000000.tar: 000000000007 .*leaves no image out"):
        measure(lambda images: torch.zeros(len(images), 4), labelled(folder, 12), HALF, HALF, 16, 0, ALONE)


def test_a_replaced_set_of_ids_is_all_that_is_measured(tiny_shards, alone):
    data = replace(labelled(tiny_shards), pool=np.array([3, 8, 21]))
    found = measure(lambda images: torch.zeros(len(images), 4), data, HALF, HALF, 2, 0, ALONE)
    assert found.counted == "3 of 3 images, 0 repeated" and found.truth.tolist() == [3, 0, 1]


def test_the_average_follows_its_formula_and_starts_with_a_short_memory():
    net = nn.Linear(2, 1, bias=False)
    average = WeightAverage(net, short_at_first(0.5))
    wanted = net.weight.detach().clone()
    for step in range(1, 12):
        with torch.no_grad():
            net.weight += step
        average.update(SimpleNamespace(module=net, stage=0), step)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * net.weight.detach()
    assert torch.allclose(average.net.weight, wanted)
    assert average.tensors().keys() == {"ema/weight"}
    assert average.net.weight.dtype == torch.float32 and not average.net.weight.requires_grad


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 3.0, 1.25])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_weighted_or_not_on_soft_and_on_mixed_targets(weight, smoothing):
    draws = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(6, 3, generator=draws), torch.tensor([0, 1, 2, 2, 1, 0])
    for share in (None, torch.tensor([0.3, 0.3, 1.0, 1.0, 0.6, 0.6])):
        targets = soft_targets(labels, 3, smoothing, share)
        theirs = nn.functional.cross_entropy(logits, targets, weight, reduction="none")
        torch.testing.assert_close(cross_entropy(logits, targets, weight), theirs, rtol=1e-6, atol=1e-6)
        mean = nn.functional.cross_entropy(logits, targets, weight)
        torch.testing.assert_close(cross_entropy(logits, targets, weight).mean(), mean, rtol=1e-6, atol=1e-6)
    hard = nn.functional.cross_entropy(logits, labels, weight, reduction="none")  # class numbers: before torch divides by their weights
    torch.testing.assert_close(cross_entropy(logits, soft_targets(labels, 3, 0.0), weight), hard, rtol=1e-6, atol=1e-6)


def test_balanced_weights_are_scikit_learns_and_those_of_a_class_without_labels_are_0():
    labels = np.array([0] * 66 + [1] * 33 + [2], np.int32)
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights(labels, 3).tolist() == pytest.approx(theirs.tolist(), rel=1e-6)
    assert balanced_weights(labels, 4).tolist() == pytest.approx([*theirs.tolist(), 0.0], rel=1e-6)


@pytest.mark.filterwarnings("ignore:y_pred contains")
def test_balanced_accuracy_is_scikit_learns_over_the_classes_that_have_images():
    rng = np.random.default_rng(0)
    truth, predicted = rng.choice([0, 1, 3], 90, p=[0.7, 0.25, 0.05]), rng.choice(5, 90)
    found = Predictions(predicted, np.ones(90, np.float32), truth, 0.0, "")
    assert found.figure("balanced_accuracy") == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert found.figure("accuracy") == (truth == predicted).mean() != found.figure("balanced_accuracy")
