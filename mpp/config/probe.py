"""Every knob of probing (mpp/linear_probe.py), typed: what a measurement is on, here; each probe's own section with its code, in mpp/transfer/probes/.

Sources: "DINOv2" is arXiv 2304.07193, "MAE" is arXiv 2111.06377, "ViT 4.1" is arXiv 2010.11929; "ours" marks what a source leaves open.
"""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, StrictBool, model_validator

from mpp.config.schema import Positive, Section, composed
from mpp.transfer.features import FeatureConfig
from mpp.transfer.metrics import Metric
from mpp.transfer.probes import PROBES
from mpp.transfer.probes.contract import Probe

if TYPE_CHECKING:
    InTheLoop = str
else:
    InTheLoop = Literal[tuple(probe.key for probe in PROBES if probe.in_the_loop)]


class Measurement(Section):
    encoder: str = ""  # a run folder (its newest commit), an encoder/ folder, timm:NAME, or a checkpoint of MAE, SimMIM, transformers
    beside: Annotated[tuple[str, ...], Field(strict=False)] = ()  # further encoders, each a row of the table, compared on the same images
    train: str = ""  # labelled images: a folder of shards, a folder of class folders, or cifar10 and the like (cifar10:ROOT)
    test: str | None = None  # likewise, read once; null: every figure is on a further hold-out of train
    ledger: str | None = (
        None  # file in which each read of a test split is noted too; null: ~/.local/state/mpp/test_reads.jsonl (XDG_STATE_HOME)
    )
    out: str | None = None  # folder of results.json; null: <run>/transfer/<name of the data>
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of all that is drawn: samples, hold-out, few-shot labels, heads, order
    train_samples: Positive | None = None  # null: all
    test_samples: Positive | None = None  # null: all
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of train, to choose hyper-parameters
    metric: Metric = "accuracy"  # on the hold-out, which they are chosen by; the verdict's, too
    class_weight: Literal["balanced"] | None = (
        None  # linear and logistic: an image counts n / (K n_class), as in scikit-learn; null: all alike
    )
    widen: StrictBool = True  # a grid whose best value lies at an end grows there, within limits; false: such a choice is marked alone
    shard_cache: str | None = None  # a folder of this machine's own disk, as system.cache of a run
    shard_cache_gb: Annotated[float, Field(gt=0)] | None = None  # as system.cache_gb
    repeats: Positive = 1  # of everything, each with its own draw of train_samples, hold-out and order (seed, seed + 1, ...)
    extract_only: StrictBool = (
        False  # features of train and test into the cache, and no more: the same command without it then needs one process
    )
    rank_only: StrictBool = False  # the feature rank alone, which needs no labels
    rank_samples: Positive = 2048  # train images the feature rank is computed on
    patience_seconds: Annotated[float, Field(gt=0)] = 60.0  # how long a process may stand still while others wait for it; then the job ends
    patience_slow_seconds: Annotated[float, Field(gt=0)] = 1800.0  # the same while it starts, loads, chooses or reports, or all stand still
    augmented: Annotated[tuple[InTheLoop, ...], Field(strict=False)] = ()  # probes with the encoder in the loop, too
    baselines: StrictBool = True  # the same probes on the encoder at random initialisation, and on raw pixels
    random_inits: Positive = 3  # random initialisations, seed, seed + 1, ...: how far they lie apart tells what one more could be
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = (
        None  # count images that look like one of train: at least this correlation (photographs .95, digits .99); null: not looked for
    )
    features: FeatureConfig = FeatureConfig()

    @model_validator(mode="after")
    def _has_tokens(self) -> Self:
        lost = [probe.key for probe in self.online() if probe.pools_tokens] if self.features.pooling == "predictor" else []
        if lost:
            raise ValueError(
                f"augmented={lost} looks at the tokens of features.layers, and features.pooling=predictor is no layer's; leave it out, or set "
                "features.pooling=mean"
            )
        return self

    def cached(self) -> list[Probe]:
        """The probes on features, as set up here; none for the rank alone."""
        return [] if self.rank_only else [getattr(self, probe.key) for probe in PROBES if not probe.in_the_loop]

    def online(self) -> list[Probe]:
        """Those asked for that have the encoder in the loop, as set up here, in the order asked for."""
        return [] if self.rank_only else [getattr(self, key) for key in self.augmented]


if TYPE_CHECKING:
    ProbeConfig = Measurement
else:
    ProbeConfig = composed("ProbeConfig", Measurement, {probe.key: probe for probe in sorted(PROBES, key=lambda probe: probe.in_the_loop)})
