"""The classic pretexts: colourisation (Zhang et al., arXiv 1603.08511) and rotation (RotNet, arXiv 1803.07728), with a ViT in place of their networks."""

import math

from mpp.claims import masks, model, targets
from mpp.claims.claim import Claim
from mpp.claims.papers.shared import OWN_TOKEN, first_loss, xavier_start
from mpp.claims.papers.vit import MEAN_COLOUR

ZHANG, ROTNET = "Zhang et al. 2.1", "RotNet 2.1"


def grey(patches: int) -> list[Claim]:
    return [
        Claim("patches hidden", patches, masks.hidden, f"{ZHANG}: the whole image"),
        Claim("the encoder sees", "the image without its colour", model.encoder_sees, ZHANG),
        Claim("patches that the encoder is given", patches, model.encoder_tokens, ZHANG),
        Claim("the loss covers", f"{patches} masked", model.loss_covers, ZHANG),
        OWN_TOKEN,
    ]


CLAIMS = {
    "cifar_colour": [*grey(64), *MEAN_COLOUR],
    "cifar_ab": [
        *grey(64),
        Claim("a goal depends on", "its own patch", targets.looks_at, ZHANG),
        Claim("numbers predicted for a patch", 2 * 4 * 4, targets.outputs, f"{ZHANG}: a* and b* of each pixel"),
        Claim("a*, b* of red, in tens", (8.009, 6.720), targets.of_colour((255.0, 0.0, 0.0)), "CIE 15: 80.09, 67.20", within=2e-3),
        Claim("a*, b* of white, in tens", (0.0, 0.0), targets.of_colour((255.0, 255.0, 255.0)), "CIE 15", within=2e-3),
        Claim("loss where every value is off by 3", 9.0, targets.loss_of(3.0), f"{ZHANG} (1): l2", near=1e-4),
    ],
    "cifar_rotation": [
        Claim(
            "share of images turned by 0, 1, 2, 3 quarters",
            (0.25, 0.25, 0.25, 0.25),
            masks.turned,
            f"{ROTNET}: all four alike",
            within=0.08,
        ),
        Claim("the encoder sees", "the image turned by quarters", model.encoder_sees, ROTNET),
        Claim("patches that the encoder is given", 64, model.encoder_tokens, "ours: all"),
        Claim("a prediction is made from", "all patches' tokens", model.predicted_from, "ours: their mean"),
        Claim("numbers predicted", 4, targets.outputs, f"{ROTNET}: 4 classes"),
        Claim("the goal is", "the quarters that the image is turned by", targets.turns_told, ROTNET),
        Claim("positions", "learned", model.position, "ViT 3.1"),
        Claim("class tokens, registers", (1, 0), model.prefix, "ViT 3.1"),
        first_loss(math.log(4) + xavier_start(128, 4) * 3 / 8, "uniform: ln 4, and what a Xavier head adds", near=0.3),
    ],
}
