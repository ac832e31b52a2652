"""One micro-batch of labelled crops through a classifier, and the measurement that takes every image exactly once.

Letters: B batch, H, W pixels, K classes, m images measured.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpp.base.errors import DataError
from mpp.base.progress import tracked
from mpp.data.crop_dataset import Batch, CropDataset
from mpp.data.loader import LoaderProcesses
from mpp.data.order import EveryOnce
from mpp.model.classifier import partners, soft_targets
from mpp.model.normalise import Triple, normalise
from mpp.processes.world import World, together
from mpp.train.step import images_on_device


def inputs_and_targets(
    batch: Batch, classes: int, smoothing: float, mean: Triple, std: Triple, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What the model sees, float32 [B, 3, H, W], and soft targets [B, K]: flip or turn, normalise, erase, then mix, in the order of timm's training."""
    images = normalise(images_on_device(batch, device), mean, std)
    if "erase" in batch:
        for image, box, seed in zip(images, batch["erase"].numpy().tolist(), batch["noise"].numpy().tolist(), strict=True):
            left, top, right, bottom = box
            if right > left:
                noise = torch.Generator(device).manual_seed(seed)
                image[:, top:bottom, left:right].normal_(generator=noise)
    labels = batch["label"].to(device, non_blocking=True)
    if "share" not in batch:
        return images, soft_targets(labels, classes, smoothing)
    share = batch["share"].to(device, non_blocking=True)
    return mixed(images, share, batch["paste"].to(device, non_blocking=True)), soft_targets(labels, classes, smoothing, share)


def mixed(images: Tensor, share: Tensor, paste: Tensor) -> Tensor:
    """[B, 3, H, W], share [B], boxes int64 [B, 4]: each image blended with its partner (rows 2j and 2j + 1), or with the partner's box pasted in."""
    others = partners(images)
    left, top, right, bottom = (edge[:, None, None, None] for edge in paste.T)
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    columns = torch.arange(images.shape[3], device=images.device)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    own = torch.where(right > left, (~inside).float(), share[:, None, None, None])
    return images * own + others * (1 - own)


def cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """float32 [B] from [B, K] and soft targets [B, K]; weight [K]: of each class's part.

    Its mean is torch.nn.functional.cross_entropy(logits, targets, weight): over B, whatever the weights (torch divides by the sum of the weights
    for class numbers only, which would make a step depend on how it is shared among processes).
    """
    parts = targets * torch.log_softmax(logits.float(), dim=1)
    return -(parts if weight is None else parts * weight).sum(dim=1)


def balanced_weights(labels: np.ndarray, classes: int) -> Tensor:
    """float32 [K]: n / (K' n_k), scikit-learn's "balanced", of K' classes that have labels; 0 of a class without any.  labels: integers [n]."""
    counts = np.bincount(labels, minlength=classes)
    return torch.from_numpy(np.where(counts, len(labels) / (np.maximum(counts, 1) * (counts > 0).sum()), 0.0)).float()


@dataclass(frozen=True)
class Predictions:
    """Of m images, in the order they were asked for."""

    predicted: np.ndarray  # int64 [m]
    confidence: np.ndarray  # float32 [m]: the probability of the class predicted
    truth: np.ndarray  # int64 [m]
    loss: float  # mean cross-entropy, without smoothing
    counted: str  # "10000 of 10000 images, 0 repeated"

    @property
    def right(self) -> int:
        return int((self.predicted == self.truth).sum())

    @property
    def accuracy(self) -> float:
        return self.right / len(self.truth)

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the accuracies of the classes that have images."""
        images = np.bincount(self.truth)
        right = np.bincount(self.truth[self.predicted == self.truth], minlength=len(images))
        return float((right[images > 0] / images[images > 0]).mean())

    def figure(self, metric: str) -> float:
        """metric: "accuracy" or "balanced_accuracy"."""
        return self.accuracy if metric == "accuracy" else self.balanced_accuracy


@torch.no_grad()
def measure(
    predict: Callable[[Tensor], Tensor],
    data: CropDataset,
    mean: Triple,
    std: Triple,
    micro_batch: int,
    workers: int,
    world: World,
    kept: LoaderProcesses | None = None,
) -> Predictions:
    """Collective: every rank predicts its share of `data.ids`, each image once, and all get all of it.

    predict: normalised images [B, 3, H, W] -> [B, K], in eval mode.  data: leaves none out.  kept: who reads it; None: processes that begin and end
    here.  Raises DataError for an image that cannot be read, and where the count is not exactly once.
    """
    processes = kept or LoaderProcesses([data], workers, pin_memory=world.device.type == "cuda", local_world=world.local_size)
    mine = together(world, lambda: _share(predict, data, mean, std, micro_batch, processes, world))
    parts: list[np.ndarray] = [mine] * world.size
    dist.all_gather_object(parts, mine)
    place, predicted, confidence, truth, losses = np.concatenate(parts, axis=1)
    times = np.bincount(place.astype(np.int64), minlength=len(data.ids))
    counted = f"{int((times > 0).sum())} of {len(data.ids)} images, {int((times > 1).sum())} repeated"
    if not (times == 1).all():
        raise DataError(f"measured {counted}: every image must count once; this is a fault of mpp")
    order = np.argsort(place)
    return Predictions(
        predicted[order].astype(np.int64),
        confidence[order].astype(np.float32),
        truth[order].astype(np.int64),
        float(losses[order].mean()),
        counted,
    )


def _share(
    predict: Callable[[Tensor], Tensor],
    data: CropDataset,
    mean: Triple,
    std: Triple,
    micro_batch: int,
    processes: LoaderProcesses,
    world: World,
) -> np.ndarray:
    """float64 [5, n]: place, predicted class, its probability, true class and loss of this rank's images."""
    mine: list[np.ndarray] = []
    sampler = EveryOnce(data.ids, micro_batch, world.rank, world.size)
    read = processes.batches(data, sampler, "measuring")
    for batch in tracked(read, f"answering for {data.pixels.source.path}", len(sampler), "batches"):
        labels = batch["label"].to(world.device)
        logits = predict(normalise(images_on_device(batch, world.device), mean, std)).float()
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        loss = nn.functional.cross_entropy(logits, labels, reduction="none")
        real = batch["position"].numpy() < len(data.ids)  # the rest is padding
        table = [batch["position"], predicted, confidence, labels, loss]
        mine.append(torch.stack([column.cpu().double() for column in table]).numpy()[:, real])
    return np.concatenate(mine, axis=1)
