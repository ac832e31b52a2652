"""What mpp/fit_codebook.py does, top to bottom: k-means on the goals of a target, on patches of one's own shards.

The crops are the loader's own, one of each image, with the crop range and the hold-out of the run that will learn from the codebook: what it holds
out is not fitted to, and tells how good the codes are.  k-means is Lloyd's on k-means++ centres, as scikit-learn has it, its oracle in
tests/test_fit_codebook.py; scipy.cluster.vq has no GPU and leaves dead centres dead.  Points stay in main memory and pass through the device in
parts, so that 8192 centres of 768 values and a million patches need 3 GB there and less than 1 GB here.
Letters: n points, V values, C centres.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import mpp
from mpp.base import text
from mpp.base.errors import ConfigError, DataError
from mpp.base.machine import allow_open_files
from mpp.base.progress import tracked
from mpp.base.rng import CODEBOOK, Draws
from mpp.config.codebook import CodebookConfig
from mpp.config.pretrain import PretrainConfig
from mpp.data.crop_dataset import CropDataset
from mpp.data.loader import batches, default_workers
from mpp.data.order import EveryOnce
from mpp.data.streams import refuse_stream
from mpp.data.training_set import open_training_set
from mpp.disk.files import make_folder
from mpp.interop.codebook_file import CodebookFile, Facts, write_codebook
from mpp.interop.lent import inner_target
from mpp.recipe.codes import SCORES, nearest
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import Lent, Target
from mpp.recipe.teacher import Teacher
from mpp.train.step import images_on_device

FIRST_PATCHES = 32  # a centre, that k-means++ chooses among (ours)
PATCHES, CENTRES = range(2)  # what is drawn


def fit(config: CodebookConfig) -> int:
    """Raises UserError."""
    allow_open_files()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, data = config.model, config.data

    # Which images, whose goals; and everything that can be refused before the work.
    refuse_stream(data.shards, "a codebook is fitted to images from all over a set")
    sets = open_training_set(PretrainConfig(seed=config.seed, model=model, data=data))
    of, teacher, encoder = inner_target(config.of, "of", model.image_size, model.patch_size, data.mean, data.std)
    Lent(teacher).to(device)
    make_folder(Path(config.out).absolute().parent, "the folder of out")
    goals = Goals(config, of, teacher, device)
    wanted, grid = -(-config.patches // config.patches_an_image), model.grid[0] * model.grid[1]
    images = min(wanted, len(sets.training.pool))
    an_image = min(grid, max(config.patches_an_image, -(-config.patches // images)))
    if images * an_image < config.clusters:
        raise ConfigError(
            f"clusters={config.clusters} exceeds the {images * an_image:,} patches that they are fitted to; lower it, or raise patches or give more images"
        )
    text.say(f"{text.counted(images, 'image')} of {sets.trained_on.path}, {an_image} patches of each | goals: {of.caption} | {device.type}")
    points = goals.of_images(sets.training, images, an_image)
    unseen = goals.of_images(sets.holdout, len(sets.holdout.pool), grid)

    fitted = kmeans(
        points, first_centres(points, config.clusters, config.init, config.seed), config.iterations, config.tolerance, device, said(points)
    )
    text.say(f"fitted in {fitted.moves} iterations: error {fitted.error:.5f} a value")
    counts = fitted.codes.bincount(minlength=config.clusters)
    codes, errors = assigned(unseen, fitted.centres, device)
    shares = codes.bincount(minlength=config.clusters).double() / len(codes)
    perplexity = math.exp(float(-(shares * shares.clamp_min(1e-300).log()).sum()))
    holdout_error = float(errors.double().mean()) / points.shape[1]
    spread = float(((unseen.double() - points.mean(0, dtype=torch.float64)) ** 2).mean())
    text.say(
        f"hold-out, {len(unseen):,} patches of {text.counted(len(sets.holdout.pool), 'image')}: error {holdout_error:.5f} a value "
        f"({holdout_error / spread:.1%} of what one centre leaves) | {float((shares > 0).double().mean()):.1%} of {config.clusters:,} codes in use | "
        f"perplexity {perplexity:.1f}"
    )

    facts = Facts(
        mpp=mpp.__version__, of=config.of, encoder=encoder, patch_size=model.patch_size, image_size=model.image_size, mean=data.mean, std=data.std,
        crop_scale=data.crop_scale, crop_ratio=data.crop_ratio, flip=data.flip, vertical_flip=data.vertical_flip,
        turns=data.turns, shards=sets.manifests["shards"], seed=config.seed,
        patches=len(points), error=fitted.error, holdout_error=holdout_error, perplexity=perplexity,
    )  # fmt: skip
    file = CodebookFile(fitted.centres, counts, facts)
    write_codebook(Path(config.out), file)
    text.say(f"wrote {config.out}, sha256 {file.digest[:12]}...: learn from it with target.name=codebook target.path={config.out}")
    return 0


@dataclass(frozen=True)
class Goals:
    """Of patches, as a run would see them."""

    config: CodebookConfig
    of: Target
    teacher: Teacher | None
    device: torch.device

    @torch.no_grad()
    def of_images(self, dataset: CropDataset, images: int, an_image: int) -> Tensor:
        """float32 [n, V]: of so many images, evenly from the pool, and patches of each, chosen by the image's own key.  Raises DataError."""
        config, dataset = self.config, replace(dataset, views=1, masking=None)
        ids = dataset.spread(images)
        workers = default_workers(1) if config.workers is None else config.workers
        grid = config.model.grid[0] * config.model.grid[1]
        points, done, replaced = torch.empty(0, 0), 0, 0
        loaded = batches(dataset, EveryOnce(ids, config.batch, 0, 1), workers, self.device.type == "cuda", phase="reading patches")
        for batch in tracked(loaded, f"patches of {dataset.pixels.source.path}", -(-len(ids) // config.batch), "batches", at_once=True):
            real = batch["position"] < len(ids)  # the last batch is padded
            samples = batch["sample"][real].tolist()
            places = [np.sort(Draws(config.seed, CODEBOOK, PATCHES, sample).permutation(grid)[:an_image]) for sample in samples]
            predicted = torch.from_numpy(np.stack(places)).to(self.device)
            everywhere = torch.arange(grid, device=self.device).expand(len(predicted), -1)
            masks = Masks(torch.zeros_like(everywhere), everywhere, everywhere, predicted)
            found = self.of(images_on_device(batch, self.device)[real.to(self.device)], masks, self.teacher).flatten(2).flatten(0, 1).cpu()
            if not done:
                points = torch.empty(len(ids) * an_image, found.shape[1])
            points[done : done + len(found)] = found
            done += len(found)
            replaced += int(batch["replaced"][real].sum())
            self._stop_beyond(replaced, len(ids), batch["bad"])
        return points

    def _stop_beyond(self, replaced: int, images: int, bad: list[dict]) -> None:
        """As in training."""
        allowed = self.config.data.max_bad_fraction
        if replaced > (max(1.0, allowed * images) if allowed else 0):
            raise DataError(
                f"{replaced} unreadable of {images} samples, more than data.max_bad_fraction={allowed:g} allows, such as {bad[-1]['where']}: "
                f"{bad[-1]['reason']}; make the shards again, or raise data.max_bad_fraction to have them replaced by the next readable sample"
            )


# ------------------------------------------------------------------------------------------------------------------------------- k-means


@dataclass(frozen=True)
class Fitted:
    centres: Tensor  # float32 [C, V]
    codes: Tensor  # int64 [n], of the nearest
    error: float  # mean squared difference of a value from its centre's
    moves: int


def kmeans(
    points: Tensor, centres: Tensor, iterations: int, tolerance: float, device: torch.device, tell: Callable[[int, float, int], None]
) -> Fitted:
    """Lloyd's: every point to its nearest centre, every centre to the mean of its points; one without points goes where the error is largest.

    points: float32 [n, V]; centres: first ones [C, V].  Ends after so many moves, or when a move in which no centre was dead has lowered the error
    by a share that is smaller than `tolerance`.  tell: moves done, error a value, centres in use.
    """
    before = math.inf
    for moves in itertools.count():
        codes, errors = assigned(points, centres, device)
        error = float(errors.double().mean()) / points.shape[1]
        counts = codes.bincount(minlength=len(centres))
        used = int((counts > 0).sum())
        tell(moves, error, used)
        if moves == iterations or (before - error <= tolerance * error and used == len(centres)) or error == 0:
            break
        before, centres = error, moved(points, centres, codes, errors, counts, device)
    return Fitted(centres, codes, error, moves)


def first_centres(points: Tensor, clusters: int, init: str, seed: int) -> Tensor:
    """float32 [C, V]: points; k-means++ takes each with a probability that goes with its squared distance from those it has (Arthur 2007)."""
    draws = Draws(seed, CODEBOOK, CENTRES)
    order = torch.from_numpy(draws.permutation(len(points))[: clusters * (1 if init == "random" else FIRST_PATCHES)].copy())
    among = points[order]
    if init == "random":
        return among
    chosen, distances = [0], torch.full((len(among),), math.inf, dtype=torch.float64)
    for chance in tracked(draws.uniform(clusters - 1), "first centres", clusters - 1, "centres"):
        distances = distances.minimum((among - among[chosen[-1]]).square().sum(1).double())
        sums = distances.cumsum(0)
        chosen.append(min(int(torch.searchsorted(sums, float(chance) * sums[-1], right=True)), len(among) - 1))
    return among[chosen]


def assigned(points: Tensor, centres: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point, int64 [n], and its squared distance, float32 [n]."""
    there, found = centres.to(device), []
    parts = -(-len(points) // rows_at_once(len(centres)))
    for part in tracked(parts_of(points, len(centres), device), "nearest centres", parts, "parts"):
        codes = nearest(part, there)
        found.append((codes.cpu(), (part - there[codes]).square().sum(1).cpu()))
    codes, errors = (torch.cat(column) for column in zip(*found, strict=True))
    return codes, errors


def moved(points: Tensor, centres: Tensor, codes: Tensor, errors: Tensor, counts: Tensor, device: torch.device) -> Tensor:
    """Every centre at the mean of its points; a dead one at one of the points that are farthest from theirs (scikit-learn's rule)."""
    sums = torch.zeros(centres.shape, dtype=torch.float64, device=device)
    rows = iter(codes.to(device).split(rows_at_once(len(centres))))
    for part in parts_of(points, len(centres), device):
        # A product and not index_add: on a GPU that adds in another order each time.
        sums += torch.zeros(len(centres), len(part), device=device).scatter_(0, next(rows)[None], 1.0) @ part
    means = (sums.cpu() / counts.clamp_min(1)[:, None]).float()
    dead = (counts == 0).nonzero()[:, 0]
    means[dead] = points[errors.topk(len(dead)).indices]
    return means


def rows_at_once(centres: int) -> int:
    return max(1, SCORES // centres)


def parts_of(points: Tensor, centres: int, device: torch.device) -> Iterator[Tensor]:
    """On the device."""
    for part in points.split(rows_at_once(centres)):
        yield part.to(device)


def said(points: Tensor) -> Callable[[int, float, int], None]:
    """Iterations are told as they come: the first ones all, later ones by tens."""
    spread = float(points.var(0, correction=0).mean())

    def tell(moves: int, error: float, used: int) -> None:
        if moves < 10 or moves % 10 == 0:
            left = f" ({error / spread:.1%} of the variance)" if spread else ""
            text.say(f"iteration {moves:3}  error {error:.5f} a value{left}  {used:,} codes in use")

    return tell
