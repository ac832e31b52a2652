"""Every knob of pretraining, typed, on one page: default, unit, source.

Sections that change results: model, mask, corruption, target, decoder, optim, data, seed.  Sections that only change speed or what is
written down: system, log, checkpoint.

Sources: "ViT B.1.2" is arXiv 2010.11929 appendix B.1.2, "MAE" is arXiv 2111.06377; "ours" marks what a source leaves open (docs/paper.md).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, model_validator

from mpp.config.schema import Changes, Count, Fraction, Pair, Positive, Section, Triple
from mpp.config.sections import CheckpointConfig, ModelConfig, OptimConfig, SystemConfig


class RandomMask(Section):
    name: Literal["random"] = "random"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the patches, exact count (ViT B.1.2: 50 %; MAE: 75 %)


class ReplaceCorruption(Section):
    """Embeddings of the chosen patches are replaced; the encoder still sees every position (ViT B.1.2)."""

    name: Literal["replace"] = "replace"
    mask: Fraction = 0.8  # by the learnable [mask] embedding (ViT B.1.2)
    swap: Fraction = 0.1  # by the clean embedding of another patch of the image (ViT B.1.2; scope ours)
    keep: Fraction = 0.1  # left as they are, but predicted (ViT B.1.2)

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(self.mask + self.swap + self.keep - 1) > 1e-9:
            raise ValueError(f"mask={self.mask} + swap={self.swap} + keep={self.keep} must sum to 1")
        return self


class DropCorruption(Section):
    """The encoder sees the visible patches only (MAE)."""

    name: Literal["drop"] = "drop"


class MeanColorTarget(Section):
    name: Literal["mean_color"] = "mean_color"  # ViT B.1.2 (1)
    bits: Annotated[int, Field(ge=1, le=4)] = 3  # a channel: 2 ** (3 * bits) classes


class ColorGridTarget(Section):
    name: Literal["color_grid"] = "color_grid"  # ViT B.1.2 (2)
    bits: Annotated[int, Field(ge=1, le=4)] = 3  # a channel
    grid: Positive = 4  # cells a side


class PixelsTarget(Section):
    name: Literal["pixels"] = "pixels"  # ViT B.1.2 (3); MAE with normalise
    loss: Literal["l1", "l2"] = "l2"
    normalise: StrictBool = False  # per patch: subtract its mean, divide by its standard deviation (MAE)


class LinearDecoder(Section):
    name: Literal["linear"] = "linear"


class TransformerDecoder(Section):
    name: Literal["transformer"] = "transformer"
    depth: Positive = 8  # MAE
    width: Positive = 512  # MAE
    heads: Positive = 16  # MAE

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4 (sine-cosine positions) and of heads={self.heads}")
        return self


class DataConfig(Section):
    """Which samples, in which order, and how they are cropped."""

    shards: str = "data/train"  # a folder with manifest.json (data_prep/make_shards.py)
    holdout_samples: Positive = 1024  # for hold-out loss and skill
    holdout_shards: str | None = None  # where they come from; null: the last ones of `shards`, which are then not trained on
    global_batch: Positive = 4096  # views a step over all processes (ViT B.1.2)
    views: Positive = 1  # of each decoded image in a batch (repeated sampling, MAE-ST 3.2: 4); schedules and samples seen count views
    views_differ_in: Literal["crop", "mask"] = "crop"  # crop: each view has its own crop, flip and mask; mask: they share crop and flip
    streams: Positive | None = (
        None  # V: the world size must divide V, V must divide global_batch / views; null: the latter's largest divisor up to 1024
    )
    block: Positive | None = None  # permute inside blocks of this many positions of a stream; null: the whole stream
    crop_scale: Pair = (0.05, 1.0)  # share of the area, uniform (inception crop; ViT B.1.2 leaves it open)
    crop_ratio: Pair = (0.75, 4 / 3)  # width / height, log-uniform
    flip: StrictBool = True  # horizontal, half of the samples
    mean: Triple = (0.5, 0.5, 0.5)  # of the input normalisation, colours in 0..1 (ViT code)
    std: Triple = (0.5, 0.5, 0.5)
    max_pixels: Positive = 100_000_000  # larger images are bad samples
    max_bad_fraction: Fraction = 0.0  # of the samples seen; beyond it, and beyond one sample, the run stops (0: the first one stops it)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={list(self.crop_scale)} must be two numbers 0 < low <= high <= 1")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio={list(self.crop_ratio)} must be two numbers 0 < low <= high")
        if min(self.std) <= 0:
            raise ValueError(f"std={list(self.std)} must be positive")
        return self


class LogConfig(Section):
    every_steps: Positive = 50
    holdout_every_steps: Positive = 500
    pictures_every_steps: Positive = 2000
    pictures: Annotated[int, Field(ge=0, le=64)] = 8  # images a picture
    samples: StrictBool = False  # samples.rankN.tsv: which sample, crop and mask stood at each position (to compare two clusters)


class PretrainConfig(Section):
    run_dir: str | None = None  # null: runs/<name of the YAML file>
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    resume: Literal["auto", "must"] | Count = (
        "auto"  # auto: newest whole commit, fresh if there never was one; must: a commit has to be there; N: that step
    )
    resume_changes: Changes = ()  # keys of optim that this start changes on purpose, for the steps from here on, such as optim.base_lr,optim.clip_norm
    init_from: str | None = (
        None  # another run (its newest weights), or a plain ViT's checkpoint, MAE's decoder included; fresh optimiser and clock
    )
    model: ModelConfig = ModelConfig()
    mask: RandomMask = RandomMask()
    corruption: Annotated[ReplaceCorruption | DropCorruption, Field(discriminator="name")] = ReplaceCorruption()
    target: Annotated[MeanColorTarget | ColorGridTarget | PixelsTarget, Field(discriminator="name")] = MeanColorTarget()
    decoder: Annotated[LinearDecoder | TransformerDecoder, Field(discriminator="name")] = LinearDecoder()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    system: SystemConfig = SystemConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _a_row_that_exists(self) -> Self:
        if self.corruption.name == "drop" and self.decoder.name == "linear":
            raise ValueError("corruption.name=drop needs decoder.name=transformer: a linear decoder has no token for a dropped patch")
        if not 0 < round(self.model.patches * self.mask.ratio) < self.model.patches:
            raise ValueError(f"mask.ratio={self.mask.ratio} of {self.model.patches} patches must leave some visible and some hidden")
        if self.target.name == "color_grid" and self.target.grid > self.model.patch_size:
            raise ValueError(f"target.grid={self.target.grid} must not exceed model.patch_size={self.model.patch_size}")
        if self.optim.total_samples < self.data.global_batch:
            raise ValueError(
                f"optim.total_samples={self.optim.total_samples} is less than one step of data.global_batch={self.data.global_batch}"
            )
        if self.optim.warmup_samples > self.optim.total_samples:
            raise ValueError(f"optim.warmup_samples={self.optim.warmup_samples} exceeds optim.total_samples={self.optim.total_samples}")
        return self

    def that_changes_results(self) -> dict[str, Any]:
        """What a resumed run must not change."""
        return self.model_dump(mode="json", include={"seed", "model", "mask", "corruption", "target", "decoder", "optim", "data"})
