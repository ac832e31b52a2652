"""Whole fine-tuning runs computed again with plain torch from their first weights: a slip that every run makes alike shows here.

Taken from mpp are only the random draws and the order, crop boxes and erased boxes made of them, which have tests of their own; the network,
the pixels, mixing, targets, loss, schedule, clipping, optimisers, the average, every measurement and the choice between them are written anew.
"""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from timm.data.auto_augment import rand_augment_transform

from mpp.base.rng import CROP, DROP_PATH, ERASE, MIX, PROBE, RAND_AUGMENT, Draws, seed_of
from mpp.data.augment import Augment
from mpp.data.batch_plan import plan_batch
from mpp.data.mixing import beta, erased_box
from mpp.data.order import Order, OrderSampler
from mpp.transfer.split import CHOOSE, LABELS
from tests.pipeline.conftest import metrics, tensors
from tests.pipeline.finetune_runs import DEPTH, HEADS, MEAN, PATCH, STD, results, run_all, write_encoder, write_images

SYSTEM = "system={precision: fp32, workers: 0, micro_batch_max: 4}"
LOG = "log={every_steps: 1}"
BATCH, CLASSES, SIZE, TEST_CROP = 12, 3, (8, 16), 0.7  # height, width

# AdamW on a part of the labels, mixed in every way, its average beside it, measured on a test split.
ADAMW = [
    f"model={{resolution: {list(SIZE)}, drop_path: 0.4, head_std: 0.3}}",
    "augment={crop_scale: [0.3, 0.9], crop_ratio: [0.6, 1.5], rand_augment: rand-m5-mstd0.5-inc1, erasing: 0.6, mixup: 0.6, cutmix: 1.7, "
    "mix_share: 0.8, cutmix_share: 0.3, smoothing: 0.2}",
    "optim={base_lr: 0.08, lr_batch: 16, final_lr: 0.02, layer_decay: 0.7, betas: [0.8, 0.95], eps: 1e-2, weight_decay: 0.3, clip_norm: 0.4, "
    "epochs: 4, warmup_epochs: 1, ema: 0.4}",
    f"data={{holdout_fraction: 0.25, label_fraction: 0.7, global_batch: {BATCH}, streams: 6, block: 2, test_crop: {TEST_CROP}}}",
    "checkpoint={every_samples: 12, keep: 99}",
    SYSTEM,
    LOG,
    "seed=7",
]
# SGD from scratch on a few labels of every class, on the class token, measured on the hold-out.
SGD = [
    f"model={{resolution: {list(SIZE)}, pooling: cls, drop_path: 0, head_std: 0.5}}",
    "augment={crop_scale: [0.2, 1], crop_ratio: [0.9, 1.1], flip: false, vertical_flip: true, rand_augment: null, erasing: 0, mixup: 0.4, cutmix: 0, "
    "mix_share: 0.6, smoothing: 0}",
    "optim={name: sgd, base_lr: 0.1, lr_batch: null, final_lr: 0, layer_decay: 0.8, momentum: 0.8, weight_decay: 0.2, steps: 5, warmup_steps: 2}",
    f"data={{holdout_fraction: 0.2, labels_per_class: 7, global_batch: {BATCH}, test_crop: {TEST_CROP}}}",
    "checkpoint={every_samples: 12, keep: 99}",
    SYSTEM,
    "log={every_steps: 1, holdout_every_epochs: 2}",
    "init=random",
    "seed=3",
]


@dataclass
class Job:
    """What a run was asked for, in the words of the papers."""

    seed: int
    steps: int
    warmup: int
    peak: float
    final: float
    layer_decay: float
    weight_decay: float
    clip: float
    pooling: str
    drop_path: float
    held: float
    smoothing: float
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool
    vertical_flip: bool = False
    streams: int = 6
    block: int | None = None
    fraction: float | None = None
    per_class: int | None = None
    rand_augment: str | None = None
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_share: float = 1.0
    cutmix_share: float = 0.0
    momentum: float | None = None  # of SGD; None: AdamW
    betas: tuple[float, float] = (0.0, 0.0)
    eps: float = 0.0
    ema: float | None = None
    holdouts: tuple[int, ...] = ()


ADAMW_JOB = Job(
    seed=7, steps=8, warmup=2, peak=0.08 * 12 / 16, final=0.02, layer_decay=0.7, weight_decay=0.3, clip=0.4, pooling="mean", drop_path=0.4,
    held=0.25, smoothing=0.2, scale=(0.3, 0.9), ratio=(0.6, 1.5), flip=True, streams=6, block=2, fraction=0.7,
    rand_augment="rand-m5-mstd0.5-inc1", erasing=0.6, mixup=0.6, cutmix=1.7, mix_share=0.8, cutmix_share=0.3, betas=(0.8, 0.95), eps=1e-2,
    ema=0.4, holdouts=(2, 4, 6, 8),
)  # fmt: skip
SGD_JOB = Job(
    seed=3, steps=5, warmup=2, peak=0.1, final=0.0, layer_decay=0.8, weight_decay=0.2, clip=math.inf, pooling="cls", drop_path=0.0, held=0.2,
    smoothing=0.0, scale=(0.2, 1.0), ratio=(0.9, 1.1), flip=False, vertical_flip=True, per_class=7, mixup=0.4, mix_share=0.6, momentum=0.8,
    holdouts=(2, 4, 5),
)  # fmt: skip


@dataclass
class Images:
    pixels: list[np.ndarray]  # uint8 [h, w, 3]
    labels: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> "Images":
        files = sorted(folder.glob("*/*.png"))
        names = sorted({file.parent.name for file in files})
        return cls([np.asarray(Image.open(file)) for file in files], np.array([names.index(file.parent.name) for file in files]))


@dataclass
class Trace:
    """By hand, step by step."""

    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    weights: list[dict] = field(default_factory=list)  # before the first step, after it, ...
    average: list[dict] = field(default_factory=list)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    write_encoder(folder / "encoder", 0)
    write_images(folder / "train", {"ant": 24, "bee": 17, "cat": 13}, 9)
    write_images(folder / "test", {"ant": 9, "bee": 10, "cat": 11}, 101)
    return folder


def run_of(given: Path, words: list[str], *more: str) -> Path:
    run_all(given, {"run": [f"encoder={given}/encoder", f"train={given}/train", "run_dir=run", *words, *more]})
    name = given / f"run{len(list(given.iterdir()))}"
    (given / "run.out").rename(f"{name}.out")
    return (given / "run").rename(name)


@pytest.fixture(scope="module")
def adamw(given) -> Path:
    return run_of(given, ADAMW, f"test={given}/test")


@pytest.fixture(scope="module")
def sgd(given) -> Path:
    return run_of(given, SGD)


@pytest.fixture(scope="module")
def adamw_by_hand(adamw, given) -> Trace:
    return trace(ADAMW_JOB, Images.read(given / "train"), start_of(adamw))


@pytest.fixture(scope="module")
def sgd_by_hand(sgd, given) -> Trace:
    return trace(SGD_JOB, Images.read(given / "train"), start_of(sgd))


def weights_at(run: Path, step: int, kind: str = "weight") -> dict:
    return {name.removeprefix(f"{kind}/"): tensor for name, tensor in tensors(run, step).items() if name.startswith(f"{kind}/")}


def start_of(run: Path) -> dict:
    """The first step has rate 0."""
    return weights_at(run, 1)


# --------------------------------------------------------------------------------------------------------- which images, and as what


def split(job: Job, labels: np.ndarray) -> tuple[list[int], list[int]]:
    """(trained on, held out)."""
    order = Draws(job.seed, PROBE, CHOOSE).permutation(len(labels)).tolist()
    held = []
    for label in range(CLASSES):
        members = [row for row in order if labels[row] == label]
        held += members[: round(job.held * len(members))]
    kept = [row for row in range(len(labels)) if row not in held]
    chosen, order = [], Draws(job.seed, PROBE, LABELS).permutation(len(kept)).tolist()
    for label in range(CLASSES):
        members = [kept[row] for row in order if labels[kept[row]] == label]
        chosen += members[: round(job.fraction * len(members)) if job.fraction else job.per_class]
    return sorted(chosen), sorted(held)


def micro_batches(job: Job, labels: np.ndarray) -> list[list[list[tuple[int, int, int]]]]:
    """(epoch, image, position) of each micro-batch of each step."""
    kept = np.array(split(job, labels)[0])
    order = Order(tuple(np.bincount(labels[kept]).tolist()), BATCH, job.streams, job.seed, job.block)
    flat = list(OrderSampler(order, plan_batch(BATCH, job.streams, 1, 4, together=2), 0, 1, 0, job.steps, kept))
    assert {len(keys) for keys in flat} == {4}
    assert [keys[0][2] for keys in flat] == list(range(0, job.steps * BATCH, 4))
    return [flat[first : first + 3] for first in range(0, len(flat), 3)]


def resized(pixels: np.ndarray, box: tuple[int, int, int, int]) -> torch.Tensor:
    """uint8 [3, H, W] of a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    part = torch.from_numpy(pixels[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
    return F.interpolate(part, SIZE, mode="bicubic", antialias=True)[0]


def normalised(image: torch.Tensor) -> torch.Tensor:
    return (image.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def training_image(job: Job, images: Images, epoch: int, sample: int) -> torch.Tensor:
    pixels = images.pixels[sample]
    shape = SIZE[1] / SIZE[0]
    view = Augment(SIZE, job.scale, (job.ratio[0] * shape, job.ratio[1] * shape), flip=True).draw(Draws(job.seed, CROP, epoch, sample, 0))
    image = resized(pixels, view.box(pixels.shape[1], pixels.shape[0]))
    if job.rand_augment:
        fill = tuple(round(255 * value) for value in MEAN)
        colour = rand_augment_transform(
            job.rand_augment, {"translate_const": int(min(SIZE) * 0.45), "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
        )
        kept = random.getstate(), np.random.get_state()  # noqa: NPY002
        seed = seed_of(job.seed, RAND_AUGMENT, epoch, sample)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        image = torch.from_numpy(np.array(colour(Image.fromarray(image.permute(1, 2, 0).numpy())))).permute(2, 0, 1)
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
    across, down = Draws(job.seed, CROP, epoch, sample, 0).uniform(42)[40:] >= 0.5
    if job.flip and across:
        image = image.flip(2)
    if job.vertical_flip and down:
        image = image.flip(1)
    image = normalised(image)
    left, top, right, bottom = erased_box(job.erasing, job.seed, epoch, sample, *SIZE) if job.erasing else (0, 0, 0, 0)
    if right:
        noise = torch.Generator().manual_seed(seed_of(job.seed, ERASE, epoch, sample, 1))
        wide = torch.empty(3, bottom - top, right - left + 1)  # torch draws another row of numbers where memory has no gaps
        image[:, top:bottom, left:right] = wide[..., :-1].normal_(generator=noise)
    return image


def mixed_pair(job: Job, pair: int, images: list, targets: list) -> tuple[list, list, str]:
    """Both images of a pair and their targets; how they were mixed."""
    draws = Draws(job.seed, MIX, pair)
    mixes, kind, x, y = draws.uniform(4).tolist()
    if mixes >= job.mix_share:
        return images, targets, "not"
    (height, width), share = SIZE, 0.0
    if job.cutmix and kind < job.cutmix_share:
        side = math.sqrt(1 - beta(draws, job.cutmix))
        h, w, row, column = int(height * side), int(width * side), int(y * height), int(x * width)
        rows, columns = range(row - h // 2, row + (h + 1) // 2), range(column - w // 2, column + (w + 1) // 2)
        own = torch.ones(SIZE)
        for i in rows:
            for j in columns:
                if 0 <= i < height and 0 <= j < width:
                    own[i, j] = 0
        share, how = own.mean().item(), "cutmix"
        both = [torch.where(own.bool(), images[k], images[1 - k]) for k in (0, 1)]
    else:
        share, how = beta(draws, job.mixup), "mixup"
        both = [share * images[k] + (1 - share) * images[1 - k] for k in (0, 1)]
    return both, [share * targets[k] + (1 - share) * targets[1 - k] for k in (0, 1)], how


def inputs(job: Job, images: Images, keys: list[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    plain = [training_image(job, images, epoch, sample) for epoch, sample, _ in keys]
    targets = []
    for _, sample, _ in keys:
        target = torch.full((CLASSES,), job.smoothing / CLASSES)
        target[images.labels[sample]] += 1 - job.smoothing
        targets.append(target)
    xs, ys, hows = [], [], []
    for first in range(0, len(keys), 2):
        pair = slice(first, first + 2)
        x, y, how = mixed_pair(job, keys[first][2] // 2, plain[pair], targets[pair])
        xs, ys, hows = xs + x, ys + y, [*hows, how]
    return torch.stack(xs), torch.stack(ys), hows


# ------------------------------------------------------------------------------------------------------------------- the network


def logits_of(w: dict, images: torch.Tensor, pooling: str, drop_path: float = 0.0) -> torch.Tensor:
    """A pre-norm ViT; drop_path: of the last block, rising from 0 in the first; draws from the global generator."""
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    b, _, width = x.shape
    x = torch.cat([w["cls_token"].expand(b, -1, -1), x], dim=1) + w["pos_embed"]
    norm = lambda x, name: F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)
    linear = lambda x, name: F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def dropped(branch: torch.Tensor, rate: float) -> torch.Tensor:
        return branch * torch.empty(b, 1, 1).bernoulli_(1 - rate) / (1 - rate) if rate else branch

    for i in range(DEPTH):
        at, rate = f"blocks.{i}", drop_path * i / (DEPTH - 1)
        q, k, v = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv").view(b, -1, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-1, -2)) / math.sqrt(width // HEADS)).softmax(-1)
        x = x + dropped(linear((weights @ v).transpose(1, 2).flatten(2), f"{at}.attn.proj"), rate)
        x = x + dropped(linear(F.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2"), rate)
    x = norm(x, "norm")
    return linear(x[:, 0] if pooling == "cls" else x[:, 1:].mean(1), "head")


def layers_above(name: str) -> int:
    """Of the head and the final norm 0, of the embeddings one more than of the first block."""
    if name.startswith(("head", "norm")):
        return 0
    return DEPTH - int(name.split(".")[1]) if name.startswith("blocks") else DEPTH + 1


# -------------------------------------------------------------------------------------------------------------------- the run


def trace(job: Job, images: Images, start: dict) -> Trace:
    w = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    moments = {name: [torch.zeros_like(tensor), torch.zeros_like(tensor)] for name, tensor in w.items()}
    average = {name: tensor.clone() for name, tensor in start.items()}
    found = Trace(weights=[dict(start)], average=[dict(average)])
    hows: set[str] = set()
    for step, parts in enumerate(micro_batches(job, images.labels)):
        torch.manual_seed(seed_of(job.seed, DROP_PATH, step, 0))
        total, gradients = 0.0, {name: torch.zeros_like(tensor) for name, tensor in w.items()}
        for keys in parts:
            x, y, how = inputs(job, images, keys)
            hows |= set(how)
            loss = -(y * logits_of(w, x, job.pooling, job.drop_path).log_softmax(1)).sum(1).mean()
            total += loss.item() / len(parts)
            for name, gradient in zip(w, torch.autograd.grad(loss, list(w.values())), strict=True):
                gradients[name] += gradient / len(parts)
        norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients.values()))
        if step < job.warmup:
            rate = job.peak * step / job.warmup
        else:
            rate = job.final + (job.peak - job.final) * (1 + math.cos(math.pi * (step - job.warmup) / (job.steps - job.warmup))) / 2
        with torch.no_grad():
            for name, tensor in w.items():
                gradient = gradients[name] * min(1.0, job.clip / norm)
                own = rate * job.layer_decay ** layers_above(name)
                decay = job.weight_decay if name.endswith("weight") and "norm" not in name else 0.0
                first, second = moments[name]
                if job.momentum is None:
                    first.mul_(job.betas[0]).add_((1 - job.betas[0]) * gradient)
                    second.mul_(job.betas[1]).add_((1 - job.betas[1]) * gradient**2)
                    unbiased = first / (1 - job.betas[0] ** (step + 1)), second / (1 - job.betas[1] ** (step + 1))
                    tensor -= own * decay * tensor + own * unbiased[0] / (unbiased[1].sqrt() + job.eps)
                else:
                    first.mul_(job.momentum).add_(gradient + decay * tensor)
                    tensor -= own * first
                if job.ema:
                    kept = min(job.ema, (step + 2) / (step + 11))
                    average[name] = kept * average[name] + (1 - kept) * tensor
        for row, value in (("loss", total), ("norm", norm), ("rate", rate)):
            getattr(found, row).append(value)
        found.weights.append({name: tensor.detach().clone() for name, tensor in w.items()})
        found.average.append(dict(average))
    assert hows >= {"not", "mixup"} | ({"cutmix"} if job.cutmix else set())  # so that all of it was seen
    return found


def measured(job: Job, w: dict, images: Images, rows: list[int]) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean cross-entropy, predicted classes and their probabilities, on the centre of each image."""
    crops = []
    for row in rows:
        height, width = images.pixels[row].shape[:2]
        unit = TEST_CROP * min(width / SIZE[1], height / SIZE[0])
        w_, h_ = round(unit * SIZE[1]), round(unit * SIZE[0])
        left, top = round((width - w_) / 2), round((height - h_) / 2)
        crops.append(normalised(resized(images.pixels[row], (left, top, left + w_, top + h_))))
    with torch.no_grad():
        chances = logits_of(w, torch.stack(crops), job.pooling).softmax(1)
    truth = torch.from_numpy(images.labels[rows])
    return -chances[range(len(rows)), truth].log().mean().item(), chances.argmax(1).numpy(), chances.max(1).values.numpy()


def assert_close(ours: dict, theirs: dict, tolerance: float):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance), (name, (ours[name] - theirs[name]).abs().max())


# ---------------------------------------------------------------------------------------------------------------------- the tests


def test_the_first_weights_are_the_encoders_on_another_grid_and_a_new_head(adamw, given):
    theirs, first = load_file(given / "encoder" / "model.safetensors"), start_of(adamw)
    grid = theirs["pos_embed"][:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (2, 4), mode="bicubic", antialias=True, align_corners=False).flatten(2).transpose(1, 2)
    theirs["pos_embed"] = torch.cat([theirs["pos_embed"][:, :1], grid], dim=1)
    head = {name: first.pop(name) for name in ("head.weight", "head.bias")}
    assert_close(theirs, first, 1e-6)
    assert head["head.weight"].std().item() == pytest.approx(0.3, rel=0.3) and not head["head.bias"].any()


def test_from_scratch_nothing_of_the_encoder_is_left(sgd, given):
    theirs, first = load_file(given / "encoder" / "model.safetensors"), start_of(sgd)
    for name, tensor in first.items():
        if (name.endswith("bias") and not name.startswith("patch")) or "norm" in name:
            assert len(tensor.unique()) == 1, name
        elif not name.startswith("head"):
            size = min(len(tensor.flatten()), len(theirs[name].flatten()))
            assert (tensor.flatten()[:size] != theirs[name].flatten()[:size]).all(), name
    assert first["blocks.1.attn.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.2)  # timm's
    assert first["pos_embed"].std().item() == pytest.approx(0.02, rel=0.3)


def test_rate_loss_and_norm_of_every_step_with_adamw(adamw, adamw_by_hand):
    follow(adamw, adamw_by_hand)
    assert min(adamw_by_hand.norm) > 0.4  # so that clipping matters


def test_rate_loss_and_norm_of_every_step_with_sgd(sgd, sgd_by_hand):
    follow(sgd, sgd_by_hand)


def follow(run: Path, by_hand: Trace):
    written = metrics(run)
    assert len(by_hand.loss) == max(written)
    for step, (loss, norm, rate) in enumerate(zip(by_hand.loss, by_hand.norm, by_hand.rate, strict=True), start=1):
        assert written[step]["optim/learning_rate"] == pytest.approx(rate, rel=1e-9, abs=1e-15), step
        assert written[step]["train/loss"] == pytest.approx(loss, rel=1e-4), step
        assert written[step]["optim/gradient_norm"] == pytest.approx(norm, rel=1e-3), step


def test_weights_after_every_step_of_adamw(adamw, adamw_by_hand):
    for step in range(1, ADAMW_JOB.steps + 1):
        assert_close(adamw_by_hand.weights[step], weights_at(adamw, step), 2e-5)


def test_weights_after_every_step_of_sgd(sgd, sgd_by_hand):
    for step in range(1, SGD_JOB.steps + 1):
        assert_close(sgd_by_hand.weights[step], weights_at(sgd, step), 2e-5)


def test_the_average_after_every_step(adamw, adamw_by_hand):
    for step in range(1, ADAMW_JOB.steps + 1):
        assert_close(adamw_by_hand.average[step], weights_at(adamw, step, "ema"), 2e-5)


def test_every_look_at_the_holdout_of_weights_and_average(adamw, adamw_by_hand, given):
    looks_at_holdout(adamw, ADAMW_JOB, given, {"": adamw_by_hand.weights, "_of_average": adamw_by_hand.average})


def test_every_look_at_the_holdout_from_scratch(sgd, sgd_by_hand, given):
    looks_at_holdout(sgd, SGD_JOB, given, {"": sgd_by_hand.weights})


def looks_at_holdout(run: Path, job: Job, given: Path, by_hand: dict[str, list[dict]]):
    images, written = Images.read(given / "train"), metrics(run)
    assert tuple(step for step, values in written.items() if "holdout/loss" in values) == job.holdouts
    _, held = split(job, images.labels)
    for suffix, weights in by_hand.items():
        for step in job.holdouts:
            loss, predicted, _ = measured(job, weights[step], images, held)
            assert written[step][f"holdout/loss{suffix}"] == pytest.approx(loss, rel=1e-4), step
            assert written[step][f"holdout/accuracy{suffix}"] == (predicted == images.labels[held]).mean(), step


def test_the_holdout_chooses_though_the_test_split_would_choose_otherwise(adamw, adamw_by_hand, given):
    train, test = Images.read(given / "train"), Images.read(given / "test")
    ends = {"weights": adamw_by_hand.weights[-1], "average": adamw_by_hand.average[-1]}
    right = lambda images, rows: {
        name: int((measured(ADAMW_JOB, w, images, rows)[1] == images.labels[rows]).sum()) for name, w in ends.items()
    }
    on_holdout, on_test = right(train, split(ADAMW_JOB, train.labels)[1]), right(test, list(range(len(test.labels))))
    best = max(on_holdout, key=on_holdout.__getitem__)
    assert len(set(on_holdout.values())) == 2 and on_test[best] < max(on_test.values())  # so that it matters
    found, row = results(adamw), results(adamw)["rows"]["fine-tuned"]["finetune"]
    loss, predicted, chances = measured(ADAMW_JOB, ends[best], test, list(range(len(test.labels))))
    assert (row["weights"], found["reported_on"], found["test_reads"]) == (best, "test", 1)
    assert Path(f"{adamw}.out").read_text().count(f"looks at {len(test.labels)} images\n") == 1  # with what was chosen, and nothing else
    assert row["accuracy"] == on_test[best] / len(test.labels) and row["loss"] == pytest.approx(loss, rel=1e-4)
    answers = load_file(adamw / "predictions.safetensors")
    assert np.array_equal(answers["fine-tuned/finetune/predicted"][0, 0].numpy(), predicted)
    assert np.allclose(answers["fine-tuned/finetune/confidence"][0, 0].numpy(), chances, atol=1e-4)
    exported = load_file(adamw / "encoder" / "model.safetensors")
    assert_close(ends[best], exported, 2e-5)
    about = json.loads((adamw / "encoder" / "config.json").read_text())["pretrained_cfg"]
    assert (about["mean"], about["std"], about["crop_pct"], about["input_size"]) == (list(MEAN), list(STD), TEST_CROP, [3, *SIZE])


def test_the_holdout_reports_where_there_is_no_test_split(sgd, sgd_by_hand, given):
    train = Images.read(given / "train")
    _, held = split(SGD_JOB, train.labels)
    loss, predicted, _ = measured(SGD_JOB, sgd_by_hand.weights[-1], train, held)
    row = results(sgd)["rows"]["from scratch"]["finetune"]
    assert (row["weights"], row["accuracy"]) == ("weights", (predicted == train.labels[held]).mean())
    assert row["loss"] == pytest.approx(loss, rel=1e-4)
    assert np.array_equal(load_file(sgd / "predictions.safetensors")["samples"].numpy(), held)
    assert_close(sgd_by_hand.weights[-1], load_file(sgd / "encoder" / "model.safetensors"), 2e-5)


@pytest.mark.parametrize(("name", "job", "kind"), [("adamw", ADAMW_JOB, "pretrained"), ("sgd", SGD_JOB, "random")])
def test_the_results_count_what_was_seen(request, name, job, kind, given):
    run = request.getfixturevalue(name)
    found, train = results(run), Images.read(given / "train")
    kept, held = split(job, train.labels)
    assert (found["train_images"], found["samples_seen"], found["steps"]) == (len(kept), job.steps * BATCH, job.steps)
    assert found["learning_rate"] == pytest.approx(job.peak, rel=1e-12)
    assert found["resolution"] == list(SIZE) and found["encoder"]["init"] == kind and found["classes"] == ["ant", "bee", "cat"]
    assert found["parameters"] == sum(tensor.numel() for tensor in start_of(run).values())
    assert {each["images"] for each in found["holdout"].values()} == {len(held)}
    assert 0 <= found["seconds"] < 300
