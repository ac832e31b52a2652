"""Every knob of fine-tuning, typed, on one page: default, unit, source.  What it shares with pretraining stands in config.py.

Sections that change results: model, augment, optim, data, seed, encoder, init.  The defaults are MAE's (arXiv 2111.06377, table 9 and the
authors' FINETUNE.md for ViT-B); "ViT" is arXiv 2010.11929, appendix B.1.1; "ours" marks what a source leaves open.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, model_validator

from mpp.base.errors import ConfigError
from mpp.config.schema import Beta, Changes, Count, Fraction, Pair, Positive, Section
from mpp.config.sections import CheckpointConfig, ClassifierConfig, SystemConfig


class AugmentConfig(Section):
    crop_scale: Pair = (0.08, 1.0)  # share of the area, uniform
    crop_ratio: Pair = (0.75, 4 / 3)  # width / height before resizing, log-uniform; times that of the resolution
    flip: StrictBool = True  # left to right, half of the samples
    vertical_flip: StrictBool = False  # upside down, half of the samples: for images without an upright direction (ours)
    turns: StrictBool = (
        False  # by 0, 90, 180 or 270 degrees, a quarter of the samples each: as above; with flip, all eight poses of a square
    )
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"  # timm's words for RandAugment; null: none
    erasing: Fraction = 0.25  # share of the samples of which a rectangle becomes noise
    mixup: Annotated[float, Field(ge=0, le=4)] = 0.8  # alpha of the beta distribution; 0: none
    cutmix: Annotated[float, Field(ge=0, le=4)] = 1.0  # alpha; 0: none
    mix_share: Fraction = 1.0  # of the pairs that are mixed at all
    cutmix_share: Fraction = 0.5  # of the mixed pairs, where both are on
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1  # label smoothing: this share of a target is spread over all classes

    @property
    def mixes(self) -> bool:
        return bool(self.mix_share and (self.mixup or self.cutmix))

    @property
    def together(self) -> int:
        """Samples that stay in one micro-batch."""
        return 2 if self.mixes else 1

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={list(self.crop_scale)} must be two numbers 0 < low <= high <= 1")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio={list(self.crop_ratio)} must be two numbers 0 < low <= high")
        return self


class FinetuneOptimConfig(Section):
    """Linear warm-up, then half a cosine; the clock is samples seen."""

    name: Literal["adamw", "sgd"] = "adamw"  # sgd: with momentum (ViT)
    base_lr: Annotated[float, Field(gt=0)] = 5e-4  # of the head
    lr_batch: Positive | None = 256  # learning rate = base_lr * global_batch / lr_batch; null: not scaled
    final_lr: Annotated[float, Field(ge=0)] = 1e-6  # at the end of the cosine (MAE's code)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65  # rate of a block / rate of the one above; head 1, embeddings lowest (BEiT)
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)  # adamw
    eps: Annotated[float, Field(gt=0)] = 1e-8  # adamw
    momentum: Beta = 0.9  # sgd (ViT)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05  # matrices only; decoupled with adamw
    clip_norm: Annotated[float, Field(ge=0)] = 0.0  # global gradient norm; 0: off
    epochs: Annotated[float, Field(gt=0)] = 100  # of the images that are trained on; rounded to whole steps
    warmup_epochs: Annotated[float, Field(ge=0)] = 5  # in which the rate rises from 0 (MAE)
    steps: Positive | None = None  # instead of epochs (ViT counts steps)
    warmup_steps: Count | None = None  # instead of warmup_epochs
    class_weight: Literal["balanced"] | None = (
        None  # of the loss: n / (K n_k) of the n labels trained on, n_k of them of class k (scikit-learn's)
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay a step of a float32 average of the weights, beside them; null: none


class FinetuneDataConfig(Section):
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02  # of every class of train, never trained on: what choices are made on
    holdout_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None  # draws the hold-out; null: seed
    label_fraction: Annotated[float, Field(gt=0, le=1)] | None = None  # of every class of what is left, the rest is not used; null: all
    labels_per_class: Positive | None = None  # instead of label_fraction
    global_batch: Positive = 1024  # samples a step over all processes
    streams: Positive | None = None  # V of data/order.py; null: the largest divisor up to 1024
    block: Positive | None = None  # permute inside blocks of this many positions of a stream; null: the whole stream
    test_crop: Annotated[float, Field(gt=0, le=1)] = (
        1.0  # share of the short side that the centre crop keeps, as features.crop (MAE: 224 / 256)
    )
    max_pixels: Positive = 100_000_000  # larger images are bad samples
    max_bad_fraction: Fraction = 0.0  # of the samples seen; beyond it, and beyond one, the run stops (0: the first one stops it)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.label_fraction is not None and self.labels_per_class is not None:
            raise ValueError("label_fraction and labels_per_class exclude each other; give one")
        return self


class FinetuneLogConfig(Section):
    every_steps: Positive = 50  # as in pretraining
    holdout_every_epochs: Positive = 1  # between two looks at the hold-out


class FinetuneConfig(Section):
    encoder: str = ""  # a run folder, an encoder/ folder, timm:NAME ... (docs/probes.md#encoders-in-and-out)
    init: Literal["pretrained", "random"] = "pretrained"  # random: the same architecture from scratch, the baseline beside every figure
    train: str = ""  # labelled images: shards, a folder of class folders, cifar10 ... (docs/probes.md#data)
    test: str | None = None  # read once, at the end; null: every figure is on the hold-out of train
    ledger: str | None = (
        None  # file in which each read of a test split is noted too; null: ~/.local/state/mpp/test_reads.jsonl (XDG_STATE_HOME)
    )
    run_dir: str | None = None  # null: runs/<name of the YAML file>
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of all that is drawn: labels, hold-out, head, order, crops, mixing
    repeats: Positive = 1  # of the whole, with seed, seed + 1, ...: other labels, head, order and crops, the same hold-out and test images
    metric: Literal["accuracy", "balanced_accuracy"] = "accuracy"  # by which the hold-out chooses
    resume: Literal["auto", "must"] | Count = "auto"  # as in pretraining
    resume_changes: Changes = ()  # as in pretraining
    fit: Literal["small"] | None = (
        None  # small: what neither the file nor a word names of length, batch, rate and mixing follows from how many labels there are (config/small.py)
    )
    model: ClassifierConfig = ClassifierConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: FinetuneOptimConfig = FinetuneOptimConfig()
    data: FinetuneDataConfig = FinetuneDataConfig()
    system: SystemConfig = SystemConfig()
    log: FinetuneLogConfig = FinetuneLogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.augment.mixes and self.data.global_batch % 2:
            raise ValueError(
                f"data.global_batch={self.data.global_batch} must be even where pairs are mixed (augment.mixup, augment.cutmix); "
                f"take {self.data.global_batch + 1}"
            )
        if self.augment.mixes and self.system.micro_batch_max < 2:
            raise ValueError("system.micro_batch_max=1 holds no pair to mix (augment.mixup, augment.cutmix); raise it to 2 or more")
        if self.augment.rand_augment and (self.system.images == "device" or self.system.decode == "device"):
            key = "images" if self.system.images == "device" else "decode"
            raise ValueError(
                f"system.{key}=device cuts crops on the device, where augment.rand_augment={self.augment.rand_augment} cannot see them; "
                f"set augment.rand_augment=null, or leave system.{key} out"
            )
        if self.augment.turns and isinstance(size := self.model.resolution, tuple) and size[0] != size[1]:
            raise ValueError(
                f"augment.turns=true turns images by 90 degrees, and those of model.resolution={list(size)} are not square; set augment.turns=false "
                "(augment.flip and augment.vertical_flip take any shape), or give a square resolution"
            )
        if self.test is None and not self.data.holdout_fraction:
            raise ValueError("data.holdout_fraction=0 without test= leaves no image to measure on; give one of the two")
        if self.seed + self.repeats > 2**63:
            raise ValueError(
                f"seed={self.seed}: repeats={self.repeats} take the seeds from it on, which must stay below 2^63; give a smaller one"
            )
        if self.repeats > 1 and (self.resume_changes or isinstance(self.resume, int)):
            key = f"resume_changes={','.join(self.resume_changes)}" if self.resume_changes else f"resume={self.resume}"
            raise ValueError(
                f"{key} would make the repeats={self.repeats} differ in more than their seeds; leave it out, or give another run_dir"
            )
        return self

    def refuse_missing(self) -> None:
        """Raises ConfigError where a command lacks what no file can know."""
        for key in ("encoder", "train"):
            if not getattr(self, key):
                raise ConfigError(f"{key}= is missing; deepspeed mpp/finetune.py encoder=RUN train=SHARDS/train [test=SHARDS/test] ...")

    def that_changes_results(self) -> dict[str, Any]:
        """What a resumed run must not change."""
        return self.model_dump(mode="json", include={"seed", "init", "encoder", "train", "model", "augment", "optim", "data"})
