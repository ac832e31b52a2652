"""The teacher: an exponential average of the encoder, in float32 and outside the engine's module, for targets that ask for one.

A target's section that inherits `TeacherKnobs` beside TargetSection has one: mpp/pretraining.py makes it, updates it after every optimiser
step and saves it with each checkpoint (train/average.py), and the target is given it: an encoder as the model's own, in eval mode, without
gradients.
"""

from mpp.config.schema import Beta, Count, Section


class TeacherKnobs(Section):
    ema_start: Beta = 0.999  # decay of the average a step, at first (data2vec)
    ema_end: Beta = 0.9998  # and after ema_samples (data2vec)
    ema_samples: Count = 0  # over which it goes from one to the other, in a straight line; 0: ema_end from the start

    def decay_at(self, samples_seen: int) -> float:
        share = min(1.0, samples_seen / self.ema_samples) if self.ema_samples else 1.0
        return self.ema_start + (self.ema_end - self.ema_start) * share
