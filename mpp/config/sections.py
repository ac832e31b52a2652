"""Sections that models are built from, and those that more than one program has: the schedule, what changes speed only, checkpoints.

Sources: "ViT B.1.2" is arXiv 2010.11929 appendix B.1.2, "MAE" is arXiv 2111.06377; "ours" marks what a source leaves open.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, model_validator

from mpp.config.schema import Beta, Count, Fraction, Pair, Positive, Section

Recompute = Literal["none", "selective", "full"]
Sides = Annotated[tuple[Positive, Positive], Field(strict=False)]


class ModelConfig(Section):
    """The encoder: a timm Vision Transformer, and what of it differs from the architecture's own numbers."""

    arch: str = "vit_base_patch16_224"  # any plain or rotary Vision Transformer of timm.list_models("vit_*")
    image_size: Positive = 224  # pixels a side
    patch_size: Positive = 16  # pixels a side
    width: Positive | None = None  # embedding dimensions; null: the architecture's
    depth: Positive | None = None  # blocks; null: the architecture's
    heads: Positive | None = None  # attention heads; null: the architecture's
    class_tokens: Count = 1  # before the patches, each with a position of its own where positions are learned (ViT: 1; Pixio: 8; CAPI: 0)
    registers: Count | None = None  # further tokens behind them, of which no feature is made (CAPI: 16); null: the architecture's
    position: Literal["learned", "sincos2d", "rotary", "none"] = (
        "learned"  # learned 1-D (ViT 3.1), fixed 2-D sine-cosine (MAE A.1), rotary in every block (RoPE-ViT, CAPI; of vit_*_rope_* architectures)
    )
    rotary_frequencies: Pair | None = (
        None  # highest and lowest, in turns from one edge to the other (CAPI: 7, 7e-4); null: the architecture's
    )
    layer_scale: Annotated[float, Field(ge=0)] | None = (
        None  # at the start (BEiT: .1, data2vec: 1e-4); 0: no layer scale; null: the architecture's
    )
    qk_norm: StrictBool | None = None  # a norm on the queries and keys of each head; null: the architecture's
    drop_path: Fraction = 0.0  # stochastic depth, rate of the last block
    drop_path_rule: Literal["linear", "constant"] = (
        "linear"  # from 0 in the first block to drop_path in the last, or the same in all (CAPI)
    )

    @model_validator(mode="before")
    @classmethod
    def _class_token(cls, tree: Any) -> Any:
        """Runs, checkpoints and encoders from before there could be several say whether there is one."""
        if not isinstance(tree, dict) or "class_token" not in tree:
            return tree
        has = tree["class_token"]
        if "class_tokens" in tree or not isinstance(has, bool):
            raise ValueError(
                f"class_token={has} is the older name of class_tokens, a number; leave it out, and set class_tokens=0, 1 or more"
            )
        return {key: value for key, value in tree.items() if key != "class_token"} | {"class_tokens": int(has)}

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        if self.image_size % self.patch_size:
            lower = self.image_size // self.patch_size * self.patch_size
            near = [str(size) for size in (lower, lower + self.patch_size) if size]
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}; the nearest that fit are {' and '.join(near)}"
            )
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if self.rotary_frequencies:
            highest, lowest = self.rotary_frequencies
            if self.position != "rotary":
                raise ValueError(
                    f"rotary_frequencies={list(self.rotary_frequencies)} are of position=rotary, not of position={self.position}"
                )
            if not highest >= lowest > 0:
                raise ValueError(f"rotary_frequencies={list(self.rotary_frequencies)} must be the highest, then the lowest, above 0")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        side = self.image_size // self.patch_size
        return side, side


class ClassifierConfig(Section):
    """What becomes of the encoder before it learns."""

    resolution: Positive | Sides | None = None  # pixels a side, or [height, width]; null: as pretrained; positions are interpolated
    patch_size: Positive | None = None  # pixels a side; null: as pretrained; another one resamples the patch embedding
    pooling: Literal["mean", "cls"] = "mean"  # mean of the patch tokens, or of the class tokens (MAE: mean)
    norm: Literal["tokens", "pooled"] = "tokens"  # the final norm as pretrained; or instead of it a new one behind the mean (MAE's code)
    head_std: Annotated[float, Field(ge=0)] = 2e-5  # of the new head's weights, normal (MAE's code; BEiT .02 / .01); 0: zeros (ViT)
    drop_path: Fraction = 0.1  # stochastic depth, rate of the last block

    @model_validator(mode="after")
    def _norm_fits(self) -> Self:
        if self.norm == "pooled" and self.pooling == "cls":
            raise ValueError("norm=pooled is a norm of the mean; set pooling=mean, or norm=tokens")
        return self


class OptimConfig(Section):
    """AdamW; linear warm-up, then one of three schedules; the clock is samples seen (train/schedule.py)."""

    schedule: Literal["cosine", "wsd", "constant"] = (
        "cosine"  # after warm-up: half a cosine; warm-up, stable, decay (arXiv 2404.06395); the peak
    )
    base_lr: Annotated[float, Field(gt=0)] = 2e-4  # ViT B.1.2
    lr_batch: Positive | None = None  # learning rate = base_lr * global_batch / lr_batch; null: not scaled (ViT B.1.2); MAE: 256
    start_lr: Annotated[float, Field(ge=0)] = 0.0  # where warm-up begins; not scaled (I-JEPA: 2e-4)
    final_lr: Annotated[float, Field(ge=0)] = 0.0  # at the end of the cosine or of the cool-down; not scaled
    cosine_share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the half cosine that the run goes through before it ends (CAPI: 0.8)
    cooldown_samples: Count = 0  # of wsd: the last ones, over which the rate goes down; 0: a trunk, for branch_from to leave from
    cooldown_shape: Literal["1-sqrt", "linear"] = "1-sqrt"  # of wsd: 1 - sqrt(share done), the better one in arXiv 2405.18392
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)  # ViT 4.1
    eps: Annotated[float, Field(gt=0)] = 1e-8  # AdamW's, added to the root of the second moment (torch)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05  # decoupled; matrices only (ours)
    final_weight_decay: Annotated[float, Field(ge=0)] | None = (
        None  # half a cosine from weight_decay to this (I-JEPA: 0.04 -> 0.4); null: constant
    )
    weight_decay_samples: Positive | None = None  # over which it gets there; null: the whole run (I-JEPA)
    norm_decay_scale: Fraction = 0.0  # weight decay of the norms' scales = weight_decay * this (CAPI: 0.1)
    patch_embed_lr_scale: Annotated[float, Field(gt=0)] = 1.0  # learning rate of the patch embedding = that of the rest * this (CAPI: 0.2)
    clip_norm: Annotated[float, Field(ge=0)] = 1.0  # global gradient norm; 0: off (ViT table 3; ours for B.1.2)
    warmup_samples: Count = 40_960_000  # 10k steps of 4096 (ViT B.1.2)
    total_samples: Positive = 4_096_000_000  # 1M steps of 4096 (ViT B.1.2)

    @model_validator(mode="after")
    def _of_this_schedule(self) -> Self:
        wsd = self.schedule == "wsd"
        if self.schedule != "cosine" and self.cosine_share != 1:
            raise ValueError(f"cosine_share={self.cosine_share:g} is of schedule=cosine, not of schedule={self.schedule}; leave it at 1")
        if self.cooldown_samples and not wsd:
            raise ValueError(
                f"cooldown_samples={self.cooldown_samples} is of schedule=wsd, not of schedule={self.schedule}; set one of them"
            )
        if wsd and self.warmup_samples + self.cooldown_samples > self.total_samples:
            raise ValueError(
                f"warmup_samples={self.warmup_samples} and cooldown_samples={self.cooldown_samples} together exceed "
                f"total_samples={self.total_samples}; lower one of them"
            )
        if self.weight_decay_samples is not None and self.final_weight_decay is None:
            raise ValueError(
                f"weight_decay_samples={self.weight_decay_samples} needs final_weight_decay, to which the weight decay goes; set it"
            )
        if self.schedule != "cosine" and self.final_weight_decay is not None and self.weight_decay_samples is None:
            raise ValueError(
                f"weight_decay_samples=null is the whole run, and one with schedule={self.schedule} may go on beyond its end; give it in samples, "
                f"such as weight_decay_samples={self.total_samples}"
            )
        return self

    def peak_rate(self, global_batch: int) -> float:
        return self.base_lr * (global_batch / self.lr_batch if self.lr_batch else 1.0)


# --------------------------------------------------------------------------------------------- how fast, and what is written down


class SystemConfig(Section):
    precision: Literal["bf16", "fp32"] = "bf16"  # of matrix products (autocast); parameters and losses are float32 either way
    gradient_precision: Literal["fp32", "bf16"] = (
        "fp32"  # in which processes exchange gradients; bf16: half the traffic, rounded (at zero_stage 1-3 with bf16, of linear layers alone)
    )
    micro_batch_max: Positive = 128  # views a process takes at once; accumulation is the smallest that fits
    workers: Count | None = None  # loader processes for each rank; null: its share of the cores less one, at most 16
    cache: str | None = (
        None  # a folder of this machine's own disk, into which shards are fetched whole before they are read: those of URLs (null: one in TMPDIR), and, where it is given, those of folders, too
    )
    cache_gb: Annotated[float, Field(gt=0)] | None = None  # that all jobs' shards may take there; null: half of what the disk has for them
    images: Literal["shards", "ram", "device"] = "shards"  # ram, device: small sets, decoded once into one tensor there
    decode: Literal["cpu", "device"] = "cpu"  # device: JPEGs of `images: shards` by a GPU's nvJPEG (levels differ by a few)
    zero_stage: Literal[0, 1, 2, 3] = 0  # DeepSpeed ZeRO
    compile: StrictBool | None = None  # the training step by torch.compile; null: in runs of 10,000 steps and more, at zero_stage 0 to 2
    cuda_graphs: StrictBool = False  # the compiled step's kernels recorded once and replayed, for small models, whose kernels take less time than to start them; at zero_stage 0
    recompute: Recompute = "none"  # activation checkpointing, to save memory: of the blocks again in the backward pass all, or (selective) all but matrix products
    fused_attention: StrictBool | None = (
        None  # torch's fused attention in place of plain matrix products; null: on GPUs, and on CPUs in fp32 (docs/results.md)
    )
    matrix_tflops: Annotated[float, Field(gt=0)] | None = (
        None  # TFLOP/s of large matrix products on a process's device, which speed/mfu is a share of; null: measured at the start
    )
    max_skipped_steps: Count = (
        3  # in a row whose gradient is not finite, which change no weight; one more ends the run (0: the first one does)
    )
    patience_seconds: Annotated[float, Field(gt=0)] = 60.0  # how long a process may stand still while others wait for it; then the job ends
    patience_slow_seconds: Annotated[float, Field(gt=0)] = (
        1800.0  # the same while it starts, loads, compiles, measures or saves, or all stand still
    )
    disk_patience_seconds: Annotated[float, Field(ge=0)] = (
        300.0  # how long a read is tried again where a shared file system fails for a while
    )
    deepspeed: dict[str, Any] = {}  # further DeepSpeed settings, passed through

    @model_validator(mode="after")
    def _graphs_of_a_compiled_step(self) -> Self:
        if self.cuda_graphs and self.compile is False:
            raise ValueError("cuda_graphs=true is of a compiled step, and compile=false; leave compile out, or cuda_graphs at false")
        if self.cuda_graphs and self.zero_stage:
            raise ValueError(
                f"cuda_graphs=true needs gradients that stay where they are, and zero_stage={self.zero_stage} moves them; set zero_stage=0"
            )
        return self


class CheckpointConfig(Section):
    every_minutes: Annotated[float, Field(gt=0)] | None = 15.0  # between two checkpoints; null: none by the clock
    every_samples: Positive | None = None  # samples seen between two checkpoints; null: none by samples
    keep: Annotated[int, Field(ge=2)] = 2  # newest commits kept
    keep_every_samples: Positive | None = None  # the steps that reach each multiple of it commit, too, and are kept for good
    background: StrictBool = True  # copied in its step, and written while training goes on
    give_up_minutes: Annotated[float, Field(ge=0)] = (
        30.0  # for which disks may fail to take a checkpoint before the run ends; 0: it ends at once
    )
    stop_after_minutes: Annotated[float, Field(gt=0)] | None = (
        None  # of a start, which then commits in time, and ends as if asked to stop; null: the end of the SLURM job
    )
    keep_at_samples: Annotated[
        tuple[Positive, ...], Field(strict=False)
    ] = ()  # the steps that reach these commit, too, and are kept for good
