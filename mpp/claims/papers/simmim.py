"""SimMIM (arXiv 2111.09886, and the authors' config for ViT-B)."""

from mpp.claims import masks, model, targets
from mpp.claims.claim import Claim
from mpp.claims.papers.shared import OWN_TOKEN, adamw, blocks_cost, crops, encoder, epochs, gigaflop, imagenet, replaced, schedule
from mpp.claims.training import rate_at

CONFIG = "SimMIM's config"


def method(hidden: int, source: str, white: float, width: int, values: int) -> list[Claim]:
    return [
        *replaced(hidden, source),
        Claim("patches a side that are hidden together", 2, masks.unit, "SimMIM 3.2: 32 px"),
        Claim("least hidden place, in the mean", 1.0, masks.evenness, "SimMIM 3.2: random", within=0.25),
        OWN_TOKEN,
        Claim("numbers predicted for a patch", values, targets.outputs, "SimMIM 3.3"),
        Claim("a goal depends on", "its own patch", targets.looks_at, "SimMIM 3.4"),
        Claim("goal of a white patch, in red", white, targets.of_white, "SimMIM's code: as the encoder sees it", near=1e-5),
        Claim("loss where every value is off by 3", 3.0, targets.loss_of(3.0), "SimMIM 3.4: l1", near=1e-4),
        Claim("loss where every value is off by .5", 0.5, targets.loss_of(0.5), "SimMIM 3.4: l1", near=1e-4),
        Claim(
            "deviation of the head's first weights",
            (1 / width / 3) ** 0.5,
            model.head_deviation,
            "torch's own start; normal ours",
            near=0.06,
        ),
    ]


CLAIMS = {
    "simmim_b16": [
        *method(120, "SimMIM 3.2: 60 %, by its code 30 of 49 units", (1 - 0.485) / 0.229, 768, 768),
        Claim(
            "positions",
            "a shared relative bias",
            model.position,
            CONFIG,
            ours="learned",
            left_out="learned positions in place of a shared relative bias",
        ),
        Claim("layer scale begins at", 0.1, model.layer_scale, CONFIG),
        Claim("rates of stochastic depth", (0.0, 0.1), model.drop_path, CONFIG),
        *encoder("B"),
        gigaflop(196 * 768 * 768 * 2 / 3 + blocks_cost(12, 768, 197) + 120 * 768 * 768),
        *schedule("SimMIM 4.1", batch=2048, total=epochs(800), warmup=epochs(10), peak=4e-4)[:6],  # up to the end of warm-up
        Claim(
            "rate after 400 epochs",
            4e-4,
            rate_at(epochs(400)),
            f"{CONFIG}: one step, after 700",
            near=1e-3,
            ours=2.0398e-4,
            left_out="half a cosine in place of one step",
        ),
        *adamw("SimMIM 4.1; what decays ours", (0.9, 0.999), 0.05, 5.0),
        *crops("SimMIM 4.1", 0.67, True),
        imagenet("SimMIM's code"),
    ],
    "cifar_simmim": method(40, "SimMIM 3.2: 60 %: 10 of 16 units", (1 - 0.491) / 0.247, 128, 48),
}
