"""The lines of the table, and how much better one is than another.

Letters: n images of train, m images reported on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mpp.data.labelled import LabelledImages
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.model.backbone import Backbone
from mpp.transfer.extractors import EncoderExtractor, Extractor
from mpp.transfer.features import FeatureConfig, FeatureSpec, Variant, check_resolution, needed_by, own_variant
from mpp.transfer.in_the_loop import ImageViews
from mpp.transfer.metrics import paired_bootstrap
from mpp.transfer.probes.contract import Answers, Probe
from mpp.transfer.protocol import Chosen, variants_of
from mpp.transfer.table import PRETRAINED
from mpp.world import World


@dataclass
class Row:
    """One line of the table."""

    extractor: Extractor
    own: Variant  # the features asked for
    about: dict[str, Any]  # for results.json
    encoder: EncoderExtractor | None = None  # the extractor, unless it has no encoder (raw pixels)
    chosen: list[Chosen] = field(default_factory=list)  # in rank 0 the probes on features first
    figures: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)

    @property
    def backbone(self) -> Backbone | None:
        return None if self.encoder is None else self.encoder.backbone

    def views(self, images: LabelledImages, samples: np.ndarray, config: FeatureConfig, seed: int, world: World) -> ImageViews | None:
        """The encoder on the images themselves; samples: int64 [n], ids."""
        return None if self.encoder is None else ImageViews(self.encoder, images, samples, config, seed, world)


def encoder_row(
    net: torch.nn.Module, digest: str, loaded: LoadedEncoder, probes: Sequence[Probe], asked: FeatureConfig, world: World
) -> Row:
    """A row whose table holds what these probes choose from.  digest: of net, which may be `loaded`'s at other weights."""
    backbone = Backbone(net).eval()
    own = own_variant(backbone, asked.layers, asked.pooling)
    spec = spec_of(backbone, digest, loaded, variants_of(probes, own, backbone), asked)
    extractor = EncoderExtractor(backbone, spec, world.device)
    about = {
        "source": loaded.source,
        "encoder": digest,
        "feature_spec": extractor.spec.as_dict(),
        "features": str(own),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }
    return Row(extractor, own, about, extractor)


def spec_of(backbone: Backbone, digest: str, loaded: LoadedEncoder, variants: Sequence[Variant], asked: FeatureConfig) -> FeatureSpec:
    resolution = asked.resolution or loaded.image_size
    check_resolution(backbone, resolution)
    return FeatureSpec(digest, *needed_by(variants), resolution, asked.crop, loaded.mean, loaded.std, asked.precision)


def gains(rows: Mapping[str, Row], truth: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """How much better the encoder is than each other row on the same images, by probe."""
    found = []
    for other, row in rows.items():
        for probe in [] if other == PRETRAINED else row.answers:
            if probe in rows[PRETRAINED].answers:
                ours, theirs = (rows[name].answers[probe].predicted.numpy() == truth for name in (PRETRAINED, other))
                difference = paired_bootstrap(ours, theirs, seed)
                low, high = difference["ci95"]
                text = f"gain      {probe} over {other}: {100 * difference['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
                found.append({"over": other, "probe": probe, "words": text} | difference)
    return found
