"""Every knob of probing (mpp/linear_probe.py), typed, on one page: default, unit, source.

Sources: "DINOv2" is arXiv 2304.07193, "MAE" is arXiv 2111.06377, "ViT 4.1" is arXiv 2010.11929; "ours" marks what a source leaves open.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, model_validator

from mpp.config.schema import Count, Pair, Positive, Section


class FeatureConfig(Section):
    """How an image becomes one vector; the same for training and testing a probe."""

    layers: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = (
        -1,
    )  # blocks passed: 0 enters the first, -1 leaves the last; concatenated.  What k-NN, few-shot, logistic regression and rank use
    pooling: Literal["mean", "cls", "both"] = (
        "mean"  # mean of the patch tokens (without class token), the class token, or both side by side
    )
    resolution: Positive | None = None  # pixels a side; null: as pretrained
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0  # the centre square of this share of the short side is resized to `resolution`
    precision: Literal["bf16", "fp32"] = "fp32"
    batch: Positive = 256  # images at a time; changes nothing but speed
    workers: Count | None = None  # loader processes for each rank; null: its share of the cores less one, at most 16
    max_pixels: Positive = 100_000_000  # a larger image stops the probe
    pixel_side: Positive = 32  # raw-pixel baseline: larger inputs are averaged down to this side
    cache: str | None = None  # folder of feature tables, used again while nothing has changed; null: <out>/features


class LinearProbeConfig(Section):
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)] = (
        1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 3e-1, 5e-1,
    )  # fmt: skip  # 13, as DINOv2's grid
    curve: StrictBool = True  # every layer's mean and class token are in the grid too (ours): the curve by layer
    last_layers: Annotated[tuple[Positive, ...], Field(strict=False)] = (1, 4)  # concatenated, x poolings, beside `features` (DINOv2)
    epochs: Positive = 30
    batch: Positive = 1024
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class LogisticConfig(Section):
    """L-BFGS to the minimum, on standardised features; C is scikit-learn's: the inverse of the penalty, on the scale of a sum over images."""

    strengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)] = (
        1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0,
    )  # fmt: skip  # C; DINOv2 takes 45 from 1e-6 to 1e5; []: none
    tolerance: Annotated[float, Field(gt=0)] = (
        1e-4  # norm of the gradient relative to that of zero weights (scikit-learn's tol is of the same size)
    )
    passes: Positive = 1000  # over the images at most, for each strength


class KnnConfig(Section):
    k: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] = (5, 10, 20, 50, 100, 200)
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)] = (0.02, 0.07, 0.2)  # DINO: .07


class FewShotConfig(Section):
    """Closed-form regularised least squares to targets in {-1, 1}^K (ViT 4.1)."""

    shots: Annotated[tuple[Positive, ...], Field(strict=False)] = (1, 5, 10, 25)  # labelled images a class (big_vision)
    trials: Positive = 5  # draws of the labelled images
    l2: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)] = (
        1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5,
    )  # fmt: skip  # the grid, on the scale of a sum over images (ours)


class OnlineConfig(Section):
    """A probe with the encoder in the loop: it augments, so it uses no cached features, and costs epochs x images forward passes."""

    epochs: Positive
    warmup_epochs: Count
    batch: Positive  # images a step over all processes
    micro_batch_max: Positive = 512  # images a process takes at once
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)]  # x batch / 256
    crop_scale: Pair = (0.08, 1.0)  # share of the area (torchvision's RandomResizedCrop, as MAE)

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}, or the learning rate never reaches its peak; "
                f"set warmup_epochs={self.epochs // 10}"
            )
        return self


class MaeProtocolConfig(OnlineConfig):
    """MAE's linear probe (A.2): LARS, BatchNorm without affine, one learning rate; several are chosen between on the hold-out of train."""

    epochs: Positive = 90
    warmup_epochs: Count = 10
    batch: Positive = 16384
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)] = (0.1,)


class AttentiveConfig(OnlineConfig):
    """One learned query attends to the patch tokens (CAPI, arXiv 2502.08769; the grid is ours)."""

    epochs: Positive = 10
    warmup_epochs: Count = 1
    batch: Positive = 1024
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)] = (1e-4, 3e-4, 1e-3, 3e-3)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05  # AdamW's, not of biases (CAPI chooses from 5e-4, 1e-3, 5e-2)


class ProbeConfig(Section):
    encoder: str = ""  # a run folder (its newest commit), an encoder/ folder, timm:NAME, or a checkpoint of MAE, SimMIM, transformers
    beside: Annotated[tuple[str, ...], Field(strict=False)] = ()  # further encoders, each a row of the table, compared on the same images
    train: str = ""  # labelled images: a folder of shards, a folder of class folders, or cifar10 and the like (cifar10:ROOT)
    test: str | None = None  # likewise, read once; null: every figure is on a further hold-out of train
    out: str | None = None  # folder of results.json; null: <run>/transfer/<name of the data>
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    train_samples: Positive | None = None  # null: all
    test_samples: Positive | None = None
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of train, to choose hyper-parameters
    rank_only: StrictBool = False  # the feature rank alone, which needs no labels
    rank_samples: Positive = 2048  # train images the feature rank is computed on
    patience_seconds: Annotated[float, Field(gt=0)] = 60.0  # how long a process may stand still while others wait for it; then the job ends
    patience_slow_seconds: Annotated[float, Field(gt=0)] = 1800.0  # the same while it starts, loads, chooses or reports, or all stand still
    augmented: Annotated[tuple[Literal["mae", "attentive"], ...], Field(strict=False)] = ()  # probes with the encoder in the loop, too
    baselines: StrictBool = True  # the same probes on the encoder at random initialisation, and on raw pixels
    features: FeatureConfig = FeatureConfig()
    linear: LinearProbeConfig = LinearProbeConfig()
    logistic: LogisticConfig = LogisticConfig()
    knn: KnnConfig = KnnConfig()
    few_shot: FewShotConfig = FewShotConfig()
    mae: MaeProtocolConfig = MaeProtocolConfig()
    attentive: AttentiveConfig = AttentiveConfig()
