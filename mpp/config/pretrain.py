"""Every knob of pretraining, typed: default, unit, source.  Those of masks, corruptions, targets and decoders stand with their code, in recipe/.

Sections that change results: model, mask, corruption, target, decoder, optim, data, seed.  Sections that only change speed or what is
written down: system, log, evaluate, checkpoint.

Sources: "ViT B.1.2" is arXiv 2010.11929 appendix B.1.2, "MAE" is arXiv 2111.06377; "ours" marks what a source leaves open (docs/paper.md).
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, field_serializer, field_validator, model_validator

from mpp.base.errors import DataError
from mpp.config.schema import Above0, Changes, Count, Duration, Fraction, Pair, Positive, Ranges, Section, Triple, Words
from mpp.config.sections import CheckpointConfig, ModelConfig, OptimConfig, SystemConfig
from mpp.recipe.corruptions import CorruptionConfig, ReplaceCorruption
from mpp.recipe.decoders import DecoderConfig, LinearDecoder
from mpp.recipe.masks import MaskConfig, RandomMask
from mpp.recipe.targets import MeanColorTarget, TargetConfig
from mpp.recipe.teacher import TeacherKnobs
from mpp.remote.retries import hidden, shown
from mpp.remote.stores import PACKAGES
from mpp.remote.urls import is_url, split_url


class DataConfig(Section):
    """Which samples, in which order, and how they are cropped."""

    shards: Words = "data/train"  # a folder with manifest.json (data_prep/make_shards.py) or its URL, or a list of several; or tars without one: a path or URL with {00..99}, pipe:COMMAND, a list
    weights: Annotated[tuple[Above0, ...], Field(strict=False)] | None = (
        None  # of several `shards`: how often each is drawn from, such as [3, 1]; null: by size, each image once an epoch (docs/loading.md)
    )
    shuffle_buffer: Positive = 1000  # samples that a loader process shuffles in, of tars without a manifest (the package webdataset)
    holdout_samples: Positive = 1024  # for hold-out loss and skill; of several `shards` some of each, by size
    holdout_shards: Words | None = None  # where they come from; null: the last ones of `shards`, which are then not trained on
    global_batch: Positive = 4096  # views a step over all processes (ViT B.1.2)
    views: Positive = 1  # of each decoded image in a batch (repeated sampling, MAE-ST 3.2: 4); schedules and samples seen count views
    views_differ_in: Literal["crop", "mask"] = "crop"  # crop: each view has its own crop, pose and mask; mask: they share crop and pose
    streams: Positive | None = (
        None  # V: the world size must divide V, V must divide global_batch / views; null: the latter's largest divisor up to 1024
    )
    block: Positive | None = None  # permute inside blocks of this many positions of a stream; null: the whole stream
    crop_scale: Pair = (0.05, 1.0)  # share of the area, uniform (inception crop; ViT B.1.2 leaves it open)
    crop_ratio: Pair = (0.75, 4 / 3)  # width / height, log-uniform
    flip: StrictBool = True  # horizontal, half of the samples
    vertical_flip: StrictBool = False  # upside down, half of the samples: for images without an upright direction (ours)
    turns: StrictBool = (
        False  # by 0, 90, 180 or 270 degrees, a quarter of the samples each: as above; with flip, all eight poses of a square
    )
    mean: Triple = (0.5, 0.5, 0.5)  # of the input normalisation, colours in 0..1 (ViT code)
    std: Triple = (0.5, 0.5, 0.5)  # likewise
    skip_samples: Ranges = ()  # positions, as a:b,c:d (from a up to b, b not included): steps that see any are passed over, such as those behind a loss spike
    max_pixels: Positive = 100_000_000  # larger images are bad samples
    max_bad_fraction: Fraction = 0.0  # of the samples seen; beyond it, and beyond one sample, the run stops (0: the first one stops it)

    @field_serializer("shards", when_used="json")
    def _without_credentials(self, shards: str | tuple[str, ...]) -> str | list[str]:
        """What is written down, printed or compared."""
        return hidden(shards) if isinstance(shards, str) else [hidden(word) for word in shards]

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.weights is not None:
            sources = 1 if isinstance(self.shards, str) else len(self.shards)
            if sources == 1:
                raise ValueError(
                    f"weights={list(self.weights)} are of several shards, and there is one set; leave them out, or give a list"
                )
            if len(self.weights) != sources:
                raise ValueError(
                    f"weights={list(self.weights)} are {len(self.weights)}, and shards names {sources} sets; give one weight for each"
                )
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={list(self.crop_scale)} must be two numbers 0 < low <= high <= 1")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio={list(self.crop_ratio)} must be two numbers 0 < low <= high")
        if min(self.std) <= 0:
            raise ValueError(f"std={list(self.std)} must be positive")
        return self


class PretrainOptimConfig(OptimConfig):
    epochs: Above0 | None = None  # passes over the images that are trained on, which then set total_samples


class LogConfig(Section):
    every_steps: Positive = 50  # optimiser steps between two lines of the log, which are also points of the curves
    holdout_every_steps: Positive = 500  # likewise between two looks at the hold-out
    pictures_every_steps: Positive = 2000  # likewise between two pictures
    pictures: Annotated[int, Field(ge=0, le=64)] = 8  # images a picture
    samples: StrictBool = False  # samples.rankN.tsv: which sample, crop and mask stood at each position (to compare two clusters)


class EvaluateConfig(Section):
    """What the features are worth while the run goes on, on images that it does not train on: on the board as features/ (docs/clusters.md)."""

    images: Count = 4000  # of a look, at most, and as many as a hundredth of the run's samples allow (ours); 0: no looks
    every_steps: Positive | None = None  # null: five to twenty looks in a run, likewise
    train: str | None = (
        None  # labelled images (shards, class folders, cifar10) for k-NN and a linear probe; null: the training shards' own labels
    )


class KeptCheckpointConfig(CheckpointConfig):
    copy_to: str | None = (
        None  # a place in an object store, such as s3://bucket/runs/b16, where the run folder is kept, too (docs/clusters.md)
    )

    @field_validator("copy_to")
    @classmethod
    def _in_a_store(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if re.search(r"[@?]", url):
            raise ValueError(f"{shown(url)} holds a name, a key or a signature; give credentials as the store's own programs take them")
        try:
            protocol = split_url(url)[0] if is_url(url) else ""
        except DataError as error:
            raise ValueError(str(error)) from None
        if protocol not in PACKAGES:
            raise ValueError(f"{shown(url)} is no place in an object store; give one of {', '.join(f'{name}://' for name in PACKAGES)}")
        return url


class PretrainConfig(Section):
    run_dir: str | None = None  # null: runs/<name of the YAML file>
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of all that is drawn: weights at the start, order, crops, masks, stochastic depth
    resume: Literal["auto", "must"] | Count = (
        "auto"  # auto: newest whole commit, fresh if there never was one; must: a commit has to be there; N: that step
    )
    resume_changes: Changes = ()  # keys of optim that this start changes on purpose, for the steps from here on, such as optim.base_lr,optim.clip_norm
    init_from: str | None = (
        None  # another run (its newest weights; s3://... too), or a plain ViT's checkpoint, MAE's decoder included; any image and patch size; fresh optimiser, clock
    )
    branch_from: str | None = (
        None  # a trunk (optim.schedule=wsd or constant; its newest commit), or one of its checkpoints, s3://... too: a new run goes on from there with all its state
    )
    fit: Literal["small"] | None = (
        None  # small: what neither the file nor a word names follows from the images, their size and the machine (config/small.py)
    )
    budget: Duration | None = None  # such as 30min or 2h: total_samples is what this machine is measured to see in that time
    model: ModelConfig = ModelConfig()
    mask: MaskConfig = RandomMask()
    corruption: CorruptionConfig = ReplaceCorruption()
    target: TargetConfig = MeanColorTarget()
    decoder: DecoderConfig = LinearDecoder()
    optim: PretrainOptimConfig = PretrainOptimConfig()
    data: DataConfig = DataConfig()
    system: SystemConfig = SystemConfig()
    log: LogConfig = LogConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: KeptCheckpointConfig = KeptCheckpointConfig()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.budget is not None and self.optim.epochs is not None:
            raise ValueError(
                f"budget={self.budget} and optim.epochs={self.optim.epochs:g} both set the length of the run; give one of them"
            )
        return self

    @model_validator(mode="after")
    def _a_row_that_exists(self) -> Self:
        self.mask.fits(self.model.grid, self.corruption)
        self.corruption.fits(self.mask.name)
        self.decoder.fits(self.corruption.drops)
        self.target.fits(self.model.patch_size, self.mask.name)
        for key in ("turns", "vertical_flip"):
            if self.mask.asks_for_upright and getattr(self.data, key):
                raise ValueError(
                    f"data.{key}=true leaves no upright direction, and how far from it mask.name={self.mask.name} has turned an image could not be "
                    f"told; set data.{key}=false, or take another mask, corruption and target"
                )
        settled = lambda section, key: self.fit is None or key in section.model_fields_set  # else the preset's, which looks at the length
        if settled(self.data, "global_batch") and self.optim.total_samples < self.data.global_batch:
            raise ValueError(
                f"optim.total_samples={self.optim.total_samples} is less than one step of data.global_batch={self.data.global_batch}; "
                "train longer, or in smaller steps"
            )
        if settled(self.optim, "warmup_samples") and self.optim.warmup_samples > self.optim.total_samples:
            raise ValueError(f"optim.warmup_samples={self.optim.warmup_samples} exceeds optim.total_samples={self.optim.total_samples}")
        if self.init_from is not None and self.branch_from is not None:
            raise ValueError(
                f"init_from={self.init_from} takes weights alone and branch_from={self.branch_from} all of a run's state; give one of them"
            )
        return self

    @model_validator(mode="after")
    def _rates_that_fit(self) -> Self:
        optim, target, peak = self.optim, self.target, self.optim.peak_rate(self.data.global_batch)
        if optim.start_lr > peak:
            raise ValueError(
                f"optim.start_lr={optim.start_lr:g}, where warm-up begins, exceeds the peak of {peak:.3g}, to which it goes up; lower it"
                + (", or raise optim.base_lr (which is scaled by the batch)" if optim.lr_batch else ", or raise optim.base_lr")
            )
        if isinstance(target, TeacherKnobs):
            if target.ema_schedule == "lr" and peak > 1:
                raise ValueError(
                    f"target.ema_schedule=lr makes the decay 1 - learning rate, below 0 at the peak of {peak:.3g}; lower optim.base_lr"
                )
            if target.ema_schedule != "lr" and target.ema_samples is None and optim.schedule != "cosine":
                raise ValueError(
                    f"target.ema_samples=null is the whole run, and one with optim.schedule={optim.schedule} may go on beyond its end; give it in "
                    f"samples, such as target.ema_samples={optim.total_samples}"
                )
        return self

    def that_changes_results(self) -> dict[str, Any]:
        """What a resumed run must not change."""
        return self.model_dump(mode="json", include={"seed", "model", "mask", "corruption", "target", "decoder", "optim", "data"})
