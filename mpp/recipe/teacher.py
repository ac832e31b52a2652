"""Teachers: encoders that see the whole clean image and whose tokens a target is made of.  They are no part of the model, and get no gradient.

A target's section that inherits `TeacherKnobs` beside TargetSection has an exponential average of its own encoder as teacher, in float32 and
outside the engine's module: mpp/mains/pretrain.py makes it, updates it after every optimiser step, whatever the accumulation, and saves it with each
checkpoint (train/average.py).  One that inherits `FrozenKnobs` has an encoder that was trained before, which mpp/mains/pretrain.py reads.
Letters: B batch, N patches, D the teacher's dimensions, S image side in pixels.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mpp.config.schema import Count, Fraction, Section
from mpp.model.normalise import Triple, normalise

if TYPE_CHECKING:
    from mpp.model.encoder import Encoder  # timm takes seconds, and sections are read before anything is built


class TeacherKnobs(Section):
    ema_schedule: Literal["linear", "cosine", "lr"] = (
        "linear"  # ema_start to ema_end in a straight line (data2vec, I-JEPA) or half a cosine (BYOL, DINO); lr: 1 - learning rate (CAPI)
    )
    ema_start: Fraction = 0.999  # decay of the average a step, at first (data2vec; I-JEPA: 0.996); of linear and cosine
    ema_end: Fraction = 0.9998  # and after ema_samples (data2vec; I-JEPA: 1)
    ema_samples: Count | None = 0  # over which it goes from one to the other; 0: ema_end from the start; null: the whole run (I-JEPA)

    def decay_at(self, samples_seen: int, learning_rate: float, total_samples: int, began: int = 0) -> float:
        """Of the step that begins after `samples_seen` samples, as the authors of I-JEPA, DINO and CAPI count.  learning_rate: of that step;
        total_samples, began: where the present cycle of the learning rate ends and began."""
        if self.ema_schedule == "lr":
            return 1 - learning_rate
        first, last = (began, total_samples) if self.ema_samples is None else (0, self.ema_samples)
        share = min(1.0, (samples_seen - first) / (last - first)) if last > first else 1.0
        if self.ema_schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.ema_end if share == 1 else self.ema_start + (self.ema_end - self.ema_start) * share


class FrozenKnobs(Section):
    encoder: str  # a run, an encoder/ folder, timm:NAME or another project's checkpoint (as of linear_probe.py), with patches of the same number a side


@dataclass(frozen=True)
class Teacher:
    net: "Encoder"  # in eval mode, without gradients
    mean: Triple  # of its own input normalisation, colours in 0..1
    std: Triple

    @property
    def width(self) -> int:
        return self.net.width

    @property
    def depth(self) -> int:
        return self.net.depth

    @torch.no_grad()
    def patches(self, images: Tensor, last: int = 1, normed: bool = False) -> list[Tensor]:
        """Clean images float [B, 3, S, S], 0..255 -> of each of the last so many blocks, the last one's last, its output [B, N, D] at the patches;
        normed: under the encoder's final norm."""
        tokens = self.net.blocks(self.net.embed(normalise(images, self.mean, self.std)), last=last)
        return [(self.net.norm(each) if normed else each)[:, self.net.prefix :] for each in tokens]
