"""What a replay needs to know of a step of pretraining, and of fine-tuning: its images in their order, its model, its loss.  All else is the same
(mains/replay.py).

Letters: B views of a micro-batch; M predicted patches; K classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mpp.base.errors import CheckpointError
from mpp.config.finetune import FinetuneConfig
from mpp.config.pretrain import PretrainConfig
from mpp.data.batch_plan import BatchPlan, plan_batch
from mpp.data.crop_dataset import Batch, CropDataset
from mpp.data.mixing import NO_BOX
from mpp.data.order import OrderSampler
from mpp.data.streams import refuse_stream
from mpp.data.training_set import open_training_set
from mpp.interop.lent import bring
from mpp.interop.start_from import initialise_from
from mpp.mains.finetune_job import classifier_of, open_job
from mpp.model.tokens import fuses_attention
from mpp.processes.peers import ALONE
from mpp.recipe.model import PretrainingModel, build_model
from mpp.recipe.teacher import TeacherKnobs
from mpp.train.average import PREFIX
from mpp.train.classify import balanced_weights, cross_entropy, inputs_and_targets
from mpp.train.flight import labels_check, masks_check
from mpp.train.step import masked_images
from mpp.train.teacher import teacher_of

WEIGHT = "weight/"  # of the names in a checkpoint
CPU = torch.device("cpu")
Inputs = tuple[Tensor, ...]  # [B, ...] each


class ReplayJob(Protocol):
    """A step's program."""

    source: str  # where its images come from
    training: CropDataset
    learns_from_average: bool  # whether the step depends on an average of the weights
    drawn: str  # what is drawn for each view beside its crop, in a word

    def check(self, batch: Batch) -> str | None:
        """Of what is drawn: the flight recorder has it by that name."""
        ...

    def where(self, sample: int) -> str: ...

    def plan(self, world: int) -> BatchPlan:
        """That of so many processes, as the config asks for it."""
        ...

    def sampler(self, plan: BatchPlan, rank: int, world: int, done: int) -> OrderSampler:
        """Of the step behind so many."""
        ...

    def build(self, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
        """The model with these weights of a checkpoint, in training mode; without any, as a run begins.  Raises CheckpointError for another model's."""
        ...

    def nets(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """All that takes part, each with the prefix of its modules' names."""
        ...

    def inputs(self, batch: Batch) -> Inputs: ...

    def loss(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor | float]:
        """Of each view [B, ...], and what is added to their mean."""
        ...

    def pictures(self, batch: Batch) -> Tensor:
        """uint8 [B, 3, H, W]: what people are shown."""
        ...

    def about(self, batch: Batch, row: int) -> dict[str, Any]:
        """Of one view, beside its image and crop."""
        ...

    def caption(self, facts: Mapping[str, Any]) -> str:
        """That in words; empty where there is nothing."""
        ...

    def remarks(self, facts: Mapping[str, Any]) -> list[str]:
        """What a replay of a dump with these facts cannot bring back."""
        ...


class PretrainingJob:
    """Raises UserError for images that cannot be opened."""

    drawn = "masks"

    def __init__(self, config: PretrainConfig, run_dir: Path):
        refuse_stream(config.data.shards, "what a step of a run on one has seen cannot be read again: there is no order in it")
        self.config, self.sets = config, open_training_set(config)
        self.source, self.training = str(self.sets.trained_on.path), self.sets.training
        self.learns_from_average = isinstance(config.target, TeacherKnobs)

    def check(self, batch: Batch) -> str | None:
        return masks_check(batch)

    def where(self, sample: int) -> str:
        return self.sets.trained_on.where(sample)

    def plan(self, world: int) -> BatchPlan:
        data = self.config.data
        return plan_batch(data.global_batch, data.streams, world, self.config.system.micro_batch_max, data.views)

    def sampler(self, plan: BatchPlan, rank: int, world: int, done: int) -> OrderSampler:
        return OrderSampler(self.sets.order(self.config, plan), plan, rank, world, done, done + 1)

    def build(self, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
        """The teacher is lent to it where it has one."""
        config = self.config
        fused = fuses_attention(config.system)
        model = build_model(config, fused, bring(config, self.sets.manifests["shards"], fused).lent)
        if not tensors and config.init_from:
            initialise_from(model, config)
        teacher = teacher_of(model, config)
        if tensors:
            put(tensors, source, WEIGHT, model)
            if teacher:
                put(tensors, source, PREFIX, teacher.net)
        return model.train()

    def nets(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        assert isinstance(model, PretrainingModel)
        return [("", model), *([("teacher.", model.teacher.net)] if model.teacher else [])]

    def inputs(self, batch: Batch) -> Inputs:
        return masked_images(batch, CPU)

    def loss(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor | float]:
        """[B, M]."""
        _, loss, _, own = model(*inputs)
        return loss, own

    def pictures(self, batch: Batch) -> Tensor:
        """The crops, less their pose."""
        return batch["image"]

    def about(self, batch: Batch, row: int) -> dict[str, Any]:
        return {}

    def caption(self, facts: Mapping[str, Any]) -> str:
        return ""

    def remarks(self, facts: Mapping[str, Any]) -> list[str]:
        found = []
        if facts["device"] != "cpu" and (self.config.model.drop_path or getattr(self.config.decoder, "drop_path", 0)):
            found.append("stochastic depth drew its numbers on a GPU; here other paths are dropped")
        if facts["world"] > 1 and self.config.target.name == "clusters":
            found.append("target.name=clusters looks at the batches of all ranks; here only this rank's is there")
        return found


class WithLoss(nn.Module):
    """A classifier and its loss, as one module for those who watch modules."""

    def __init__(self, classifier: nn.Module, weight: Tensor | None):
        super().__init__()
        self.classifier, self._weight = classifier, weight

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """float32 [B] of normalised images [B, 3, H, W] and soft targets [B, K]."""
        return cross_entropy(self.classifier(images), targets, self._weight)


class FinetuningJob:
    """The one fine-tuning whose run folder this is, as a repeat is, too.  The test split is neither needed nor opened.  Raises UserError for images, or an
    encoder, that cannot be opened."""

    drawn, learns_from_average = "labels", False

    def __init__(self, config: FinetuneConfig, run_dir: Path):
        config = config.model_copy(update={"test": None})
        self.config, self.job = config, open_job(config, run_dir, [], lambda _: config, ALONE)
        self.sets = self.job.sets
        self.source, self.training = str(config.train), self.sets.training

    def check(self, batch: Batch) -> str | None:
        return labels_check(batch)

    def where(self, sample: int) -> str:
        return self.sets.source("train").where(sample)

    def plan(self, world: int) -> BatchPlan:
        data, together = self.config.data, 2 if self.config.augment.mixes else 1
        return plan_batch(data.global_batch, data.streams, world, self.config.system.micro_batch_max, together=together)

    def sampler(self, plan: BatchPlan, rank: int, world: int, done: int) -> OrderSampler:
        return OrderSampler(self.sets.order(self.config, plan), plan, rank, world, done, done + 1, self.training.ids)

    def build(self, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
        classes = self.sets.classes
        classifier, *_ = classifier_of(self.config, self.job.loaded, len(classes), self.job.size)
        if tensors:
            put(tensors, source, WEIGHT, classifier)
        weight = balanced_weights(self.sets.labels, len(classes)) if self.config.optim.class_weight else None
        return WithLoss(classifier, weight).train()

    def nets(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        return [("", model)]

    def inputs(self, batch: Batch) -> Inputs:
        loaded = self.job.loaded
        return inputs_and_targets(batch, len(self.sets.classes), self.config.augment.smoothing, loaded.mean, loaded.std, CPU)

    def loss(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor | float]:
        """[B]."""
        return model(*inputs), 0.0

    def pictures(self, batch: Batch) -> Tensor:
        """As the model is given them: posed, erased, mixed."""
        loaded = self.job.loaded
        normalised, _ = self.inputs(batch)
        mean, std = (torch.tensor(part)[:, None, None] for part in (loaded.mean, loaded.std))
        return (255 * (normalised * std + mean)).clamp(0, 255).round().to(torch.uint8)

    def about(self, batch: Batch, row: int) -> dict[str, Any]:
        """label: its class; share: what it keeps of itself where it is mixed with another sample (mixed_with); pasted: whether a box of that is pasted in, or
        all of it blended; erased: the box that is noise, or null."""
        found: dict[str, Any] = {"label": self.sets.classes[int(batch["label"][row])], "erased": None}
        if "erase" in batch and tuple(box := batch["erase"][row].tolist()) != NO_BOX:
            found["erased"] = box
        if "share" in batch and (share := float(batch["share"][row])) < 1:
            pasted = tuple(batch["paste"][row].tolist()) != NO_BOX
            found |= {"share": share, "mixed_with": int(batch["sample"][row ^ 1]), "pasted": pasted}
        return found

    def caption(self, facts: Mapping[str, Any]) -> str:
        words = f"{facts['share']:.0%} {facts['label']}, the rest of sample {facts['mixed_with']}" if "share" in facts else facts["label"]
        return words + (", part erased" if facts["erased"] else "")

    def remarks(self, facts: Mapping[str, Any]) -> list[str]:
        found = []
        if facts["device"] != "cpu" and self.config.augment.erasing:
            found.append("random erasing drew its noise on a GPU; here the same boxes hold other noise")
        if facts["device"] != "cpu" and self.config.model.drop_path:
            found.append("stochastic depth drew its numbers on a GPU; here other paths are dropped")
        if facts["depends_on"]["encoder"] != self.job.loaded.digest:
            found.append(
                f"encoder={self.config.encoder} holds other weights than when the run began; only a checkpoint of the run stands for it"
            )
        return found


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], source: str, prefix: str, net: nn.Module) -> None:
    """In place.  tensors: by prefix + name.  Raises CheckpointError for weights of another model."""
    ours = dict(net.named_parameters())
    theirs = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if other := sorted(
        name for name in ours.keys() | theirs.keys() if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    ):
        raise CheckpointError(
            f"{source} is of another model ({other[0]} and {len(other) - 1} more differ); give a checkpoint of the run itself"
        )
    for name, parameter in ours.items():
        parameter.copy_(theirs[name])
