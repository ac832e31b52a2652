"""What the lines of the table are made of.

Letters: n images of train, m images reported on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpp.data.labelled import LabelledImages
from mpp.interop.loaded_encoder import LoadedEncoder, LoadedPredictor
from mpp.model.backbone import Backbone
from mpp.processes.world import World
from mpp.transfer.extractors import EncoderExtractor, Extractor
from mpp.transfer.features import PREDICTOR, FeatureConfig, FeatureSpec, Variant, check_resolution, needed_by, own_variant
from mpp.transfer.in_the_loop import ImageViews
from mpp.transfer.metrics import figures
from mpp.transfer.probes.contract import Answers, Probe
from mpp.transfer.protocol import Chosen, variants_of
from mpp.transfer.table import ALWAYS


@dataclass
class Row:
    """Features of one network, or of raw pixels."""

    line: str  # of the table; several seeds of one network share it
    extractor: Extractor
    own: Variant  # the features asked for
    about: dict[str, Any]  # for results.json
    encoder: EncoderExtractor | None = None  # the extractor, unless it has no encoder (raw pixels)
    chosen: dict[tuple[int, str], Chosen] = field(default_factory=dict)  # by repeat and probe: those that this process has fitted

    @property
    def backbone(self) -> Backbone | None:
        return None if self.encoder is None else self.encoder.backbone

    def views(self, images: LabelledImages, samples: np.ndarray, config: FeatureConfig, seed: int, world: World) -> ImageViews | None:
        """The encoder on the images themselves; samples: int64 [n], ids."""
        return None if self.encoder is None else ImageViews(self.encoder, images, samples, config, seed, world)


def encoder_row(
    line: str,
    net: torch.nn.Module,
    digest: str,
    predictor: LoadedPredictor | None,
    loaded: LoadedEncoder,
    probes: Sequence[Probe],
    asked: FeatureConfig,
    world: World,
) -> Row:
    """A row whose table holds what these probes choose from.  digest: of net, which, as the predictor, may be `loaded`'s at other weights."""
    backbone = Backbone(net, predictor.net if predictor else None).eval()
    own = own_variant(backbone, asked.layers, asked.pooling)
    spec = spec_of(backbone, digest, loaded, variants_of(probes, own, backbone), asked)
    if predictor and PREDICTOR in variants_of(probes, own, backbone):
        spec = replace(spec, predictor=predictor.digest)
    extractor = EncoderExtractor(backbone, spec, world.device)
    about = {
        "source": loaded.source,
        "encoder": digest,
        "feature_spec": extractor.spec.as_dict(),
        "features": str(own),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }
    return Row(line, extractor, own, about, extractor)


def spec_of(backbone: Backbone, digest: str, loaded: LoadedEncoder, variants: Sequence[Variant], asked: FeatureConfig) -> FeatureSpec:
    resolution = asked.resolution or loaded.image_size
    check_resolution(backbone, resolution)
    return FeatureSpec(digest, *needed_by(variants), resolution, asked.crop, loaded.mean, loaded.std, asked.precision)


@dataclass
class Line:
    """One line of the table."""

    about: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)  # as in results.json
    answers: dict[str, Answers] = field(default_factory=dict)  # by column, [S, T, m]


def majority(truth: Tensor, classes: Sequence[str]) -> Line:
    """Always naming the largest class of the images that figures are on (the first of several): no constant answer is more often right, so every
    figure is to be read beside it.

    truth: int64 [m].
    """
    counts = torch.bincount(truth, minlength=len(classes))
    named = int(counts.argmax())
    given = Answers(torch.full_like(truth, named), torch.full(truth.shape, int(counts[named]) / len(truth)))
    found = figures(given.predicted, truth, len(classes), given.confidence)
    found |= {key: None for key in ("balanced_ci95", "auroc_ci95")}  # which are 1 / C and 1 / 2 on any images
    return Line({"class": classes[named]}, {ALWAYS: found}, {ALWAYS: given})
