"""What the presets of small sets (fit: small; configs/small_*.yaml, finetune_small.yaml) leave open, by rules: from how many images or labels there are,
how large they are cut, and on what they are trained.

A file or a word that names a key has the last say.  Every number says where it comes from; "judged" ones were not measured.
"""

import math
from dataclasses import dataclass
from typing import Any

FEW, MANY = 10_000, 50_000  # images: below, expect little; from there on, a GPU is worth a wider encoder (judged)
SAMPLES, PASSES = 768_000, 20  # where no length is asked for, the larger of both (judged)
STEPS = 3_000  # that a run should have: 445,440 samples in batches of 128 (docs/small.md)
SMALLEST, LARGEST, LARGEST_ON_GPU = 32, 512, 1024  # batches
LEAST_STEPS = 10  # below which a budget is no run
# Of a set that it is fitted to: steps of fewer than 8 learn nothing, and a folder of so few is most often the wrong one (judged).
LEAST_IMAGES = 16
RATE, RATE_BATCH = 1.5e-3, 256  # the peak; by the root of the batch for others: 1.1e-3 at 128 was measured (docs/small.md)
WARM_UP = 0.1  # of all samples, as the cifar_*.yaml
HELD_OUT, MOST_HELD_OUT = 0.05, 1024  # of the images, for hold-out loss and skill
# Encoders: (width, depth, heads).  On 2 CPU cores 6 x 192 takes no longer than 6 x 128 (docs/results.md); the others are ViT-Ti and ViT-S.
ON_CPU, ON_GPU, ON_GPU_OF_MANY = (192, 6, 3), (192, 12, 3), (384, 12, 6)
LONG_SIDE = 16  # patches a side from which squares of 2 x 2 are hidden together: one is guessed from its neighbours (judged)
LOGS, HOLDOUTS, PICTURES = 100, 20, 4  # in the course of a run, at most
LOOKED_AT = 0.1  # held-out images that are looked at in the course of a run, for each that is trained on, at most: 3 % of its time (judged)


@dataclass(frozen=True)
class Facts:
    images: int  # of the set, those that are held out of it included
    grid: tuple[int, int]  # patches
    gpu: bool
    processes: int
    mean: tuple[float, float, float]  # of the set's colours, 0..1
    std: tuple[float, float, float]
    apart: int = 0  # images of data.holdout_shards; 0: they are held out of the set


def shape(facts: Facts) -> dict[str, Any]:
    """The keys that do not depend on the length of the run."""
    width, depth, heads = (ON_GPU_OF_MANY if facts.images >= MANY else ON_GPU) if facts.gpu else ON_CPU
    found: dict[str, Any] = {"model.width": width, "model.depth": depth, "model.heads": heads}
    if min(facts.grid) >= LONG_SIDE and not any(side % 2 for side in facts.grid):
        found["mask.unit"] = 2
    found["data.holdout_samples"] = held_out(facts)
    colours = {"data.mean": facts.mean, "data.std": facts.std}
    return found | {key: [round(value, 4) for value in three] for key, three in colours.items()}


def held_out(facts: Facts) -> int:
    return max(1, min(MOST_HELD_OUT, facts.apart - 1 if facts.apart else round(HELD_OUT * facts.images)))


def course(samples: int, facts: Facts, batch: int | None = None) -> dict[str, Any]:
    """The keys that depend on how many samples are seen, the length itself rounded down to whole steps.  batch: where it is given."""
    batch = batch or batch_of(samples, facts)
    steps = max(1, samples // batch)
    looks = max(1, min(HOLDOUTS, int(LOOKED_AT * samples / held_out(facts))))
    return {
        "data.global_batch": batch,
        "optim.lr_batch": None,
        "optim.base_lr": float(f"{RATE * math.sqrt(batch / RATE_BATCH):.2g}"),
        "optim.warmup_samples": round(WARM_UP * steps) * batch,
        "optim.total_samples": steps * batch,
        "log.every_steps": max(1, steps // LOGS),
        "log.holdout_every_steps": max(1, steps // looks),
        "log.pictures_every_steps": max(1, steps // PICTURES),
    }


def batch_of(samples: int, facts: Facts) -> int:
    """The largest power of two that leaves STEPS steps, within bounds, that the processes divide and that the images fill."""
    most = min(LARGEST_ON_GPU if facts.gpu else LARGEST, max(1, facts.images // 2))
    batch = 2 ** int(math.log2(max(1, min(most, samples / STEPS))))
    return max(batch, min(SMALLEST, 2 ** int(math.log2(most)))) // facts.processes * facts.processes or facts.processes


def usual_samples(facts: Facts) -> int:
    """Where neither epochs nor a budget is asked for."""
    return max(SAMPLES, PASSES * facts.images)


def expectation(facts: Facts, samples: int, from_weights: bool = False) -> list[str]:
    """What to tell people before they wait.  from_weights: the run continues from others' or its own."""
    said = []
    if facts.images < FEW and not from_weights:
        said.append(
            f"note: {facts.images:,} images are few. Weights that were pretrained on more images of the kind are the first choice "
            "(init_from=, docs/small.md); from scratch expect a gain over random initialisation, and compare with training on the labels alone"
        )
    seen = [line for line in SEEN if line[0] <= samples] or SEEN[:1]
    count, gain = seen[-1]
    said.append(
        f"what was seen: on CIFAR-10 (JPEG), 10,000 images, {count:,} samples gave {gain:+.0f} points in the linear probe over random "
        "initialisation (docs/small.md)"
    )
    return said


SEEN = ((22_176, 3), (445_440, 16), (890_880, 18), (1_781_760, 20))  # samples -> points, of this preset (docs/small.md)


# --------------------------------------------------------------------------------------------------------------------------- fine-tuning

EPOCHS, TUNED_ON = 12, 20_000  # passes over the labels, and images seen, at least
TUNED_BATCHES = 16, 128  # the smallest, for a sixteenth of the labels, and the largest
TUNED_RATE, TUNED_RATE_BATCH = 3e-3, 128  # by the root of the batch for others
MIXED_FROM = 50  # passes from which on mixing pairs pays
TUNED_LOOKS = 5  # at the hold-out


def tuning(labels: int, epochs: float | None = None, batch: int | None = None) -> dict[str, Any]:
    """The keys of fine-tuning on so many labels.  epochs, batch: where they are given."""
    least, most = TUNED_BATCHES
    batch = batch or min(2 ** int(math.log2(max(least, min(most, labels / 16)))), max(2, labels // 2 * 2))
    epochs = epochs or max(EPOCHS, math.ceil(TUNED_ON / labels))
    mixed = epochs >= MIXED_FROM
    return {
        "data.global_batch": batch,
        "optim.lr_batch": None,
        "optim.base_lr": float(f"{TUNED_RATE * math.sqrt(batch / TUNED_RATE_BATCH):.2g}"),
        "optim.epochs": epochs,
        "optim.warmup_epochs": WARM_UP * epochs,
        "augment.mixup": 0.8 if mixed else 0.0,  # MAE's, or none
        "augment.cutmix": 1.0 if mixed else 0.0,
        "log.holdout_every_epochs": max(1, int(epochs / TUNED_LOOKS)),
    }
