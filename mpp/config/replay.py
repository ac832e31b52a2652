"""Every knob of a replay (mpp/replay.py), typed: default, unit, source."""

from typing import Literal

from mpp.config.schema import Positive, Section, Words


class ReplayConfig(Section):
    dump: str = ""  # RUN/flight/rankN.json, or skipped-STEP.rankN.json; a word without `=` is it
    step: Positive | None = None  # of those in the dump; null: the first whose loss or gradient was not finite, else the last
    weights: str | None = None  # a checkpoint of the run (RUN/checkpoints/N); null: those of the step, or the nearest that are there
    precision: Literal["fp32", "bf16"] | None = None  # of matrix products; null: fp32, and the run's own where that is another
    images: Positive = 8  # drawn and named at most
    shards: Words | None = None  # the run's training images, where they have moved
    out: str | None = None  # folder of replay.json and replay.png; null: that of the dump
