"""A recipe as something to be measured: its config, and what training builds from it, each made when first asked for.

    whole    the model as it is, on the meta device: sizes, parameters and FLOP, no values
    small    the same with fewer blocks, on the CPU and in evaluation mode: how it behaves
    masks    of many samples, as the loader draws them

Letters: B batch, N patches, P prefix tokens, D embedding dimensions, W decoder width, S image side in pixels.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mpp.base.rng import MASK, Draws
from mpp.config.codebook import CodebookConfig
from mpp.config.pretrain import PretrainConfig
from mpp.model.encoder import build_encoder
from mpp.recipe.codes import Codebook, CodebookKnobs
from mpp.recipe.masking import Masking
from mpp.recipe.model import PretrainingModel, build_model
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import NOTHING, Given, Lent
from mpp.recipe.teacher import FrozenKnobs, Teacher
from mpp.train.average import WeightAverage
from mpp.train.teacher import teacher_of

DRAWS = 256  # samples whose masks are looked at
FEW = 2  # blocks of `small`, where its target needs no more
Net = TypeVar("Net", bound=nn.Module)


class Passed(NamedTuple):
    """What was seen on the way through one forward pass."""

    clean: Tensor  # [B, N, D]: what the patch embedding gave
    entering: Tensor  # [B, P + K, D]: what the first block of the encoder was given
    pixels: Tensor  # [B, 3, S, S]: what the patch embedding was given
    decoder_tokens: int  # how many tokens the first block of the decoder was given; 0: it has none
    read: list[int]  # how many tokens each block of a teacher was given; none: there is no teacher
    loss: Tensor  # [B, M]


@dataclass(frozen=True)
class Subject:
    name: str
    config: PretrainConfig
    header: str  # the comments at the head of the YAML, in one line

    @cached_property
    def masking(self) -> Masking:
        return Masking(self.config.model.grid, self.config.mask, self.config.corruption)

    @cached_property
    def masks(self) -> Masks[Tensor]:
        drawn = self.masking.draw_all([Draws(self.config.seed, MASK, 0, sample, 0) for sample in range(DRAWS)])
        return Masks(*map(torch.from_numpy, drawn))

    def few_masks(self, batch: int = 2) -> Masks[Tensor]:
        return Masks(*(part[:batch] for part in self.masks))

    @cached_property
    def images(self) -> Tensor:
        """float [2, 3, S, S], 0..255: smooth here and rough there, and no two patches alike."""
        side, dice = self.config.model.image_size, torch.Generator().manual_seed(0)
        rough = torch.rand(2, 3, side, side, generator=dice)
        smooth = nn.functional.interpolate(torch.rand(2, 3, 6, 6, generator=dice), size=side, mode="bicubic", align_corners=False)
        return ((rough + 2 * smooth) * 85).clamp(0, 255)

    @cached_property
    def whole(self) -> PretrainingModel:
        with torch.device("meta"):
            return _taught(self.config)

    @cached_property
    def small_config(self) -> PretrainConfig:
        """The same recipe, with fewer blocks in encoder and decoder."""
        config = self.config
        blocks = max(FEW, 0 if isinstance(config.target, FrozenKnobs) else getattr(config.target, "blocks", 0))
        model = config.model.model_copy(update={"depth": min(blocks, self.whole.encoder.depth)})
        depth = getattr(config.decoder, "depth", None)
        decoder = config.decoder if depth is None else config.decoder.model_copy(update={"depth": min(FEW, depth)})
        return config.model_copy(update={"model": model, "decoder": decoder})

    @cached_property
    def small(self) -> PretrainingModel:
        return _taught(self.small_config).eval()

    @cached_property
    def average(self) -> WeightAverage[nn.Linear] | None:
        """Of one number, as the teacher of the recipe is an average of its encoder; None: it has none."""
        taught = teacher_of(self.small, self.config)
        return WeightAverage(nn.Linear(1, 1, bias=False), taught.decay_at, "encoder.") if taught else None

    @cached_property
    def passed(self) -> Passed:
        """Two images on their way through `small`."""
        model, seen = self.small, dict[str, Any]()
        vit: Any = model.encoder.vit
        first = getattr(model.decoder, "blocks", [None])[0]
        read: list[int] = []

        def keep(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, inputs: tuple, *rest: Tensor) -> None:
                seen.setdefault(name, (inputs[0], *rest))

            return hook

        with hooks() as hooked:
            hooked(vit.patch_embed.register_forward_hook(keep("embedding")))
            hooked(vit.blocks[0].register_forward_pre_hook(keep("entering")))
            if first is not None:
                hooked(first.register_forward_pre_hook(keep("decoder")))
            if model.teacher:
                for block in model.teacher.net.vit.blocks:
                    hooked(block.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1])))
            with torch.no_grad():
                _, loss, *_ = model(self.images, *self.few_masks())
        tokens = seen["decoder"][0].shape[1] if "decoder" in seen else 0
        return Passed(seen["embedding"][1], seen["entering"][0], seen["embedding"][0], tokens, read, loss)

    def unnormed(self, pixels: Tensor) -> Tensor:
        """[..., 3, S, S] of what the patch embedding is given, in 0..255."""
        mean, std = (torch.tensor(three)[:, None, None] for three in (self.config.data.mean, self.config.data.std))
        return (pixels * std + mean) * 255

    @cached_property
    def flop(self) -> int:
        """Of a training step, an image: forward and backward, the teacher's pass included."""
        side, model = self.config.model.image_size, self.whole
        images = torch.zeros(1, 3, side, side, device="meta")
        # Autocast, which the loss leaves, knows no meta device.
        no_autocast = mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext())
        with FlopCounterMode(display=False) as counter, torch.device("meta"), no_autocast:
            _, loss, _, own = model(images, *(part.to("meta") for part in self.few_masks(1)))
            (loss.mean() + own).backward()
        return counter.get_total_flops()


def _taught(config: PretrainConfig) -> PretrainingModel:
    """As it is before the first step of a run."""
    model = build_model(config, False, _lent(config))
    teacher_of(model, config)
    return model


def _lent(config: PretrainConfig) -> Lent:
    """What a run would be brought: here with random weights, and a codebook as mpp/fit_codebook.py fits by default."""
    if isinstance(config.target, FrozenKnobs):
        net = build_encoder(config.model, 1, False).eval().requires_grad_(False)
        return Lent(Teacher(net, config.data.mean, config.data.std))
    if isinstance(config.target, CodebookKnobs):
        fitted, data = CodebookConfig(), config.data
        of = fitted.of.build(Given(config.model.patch_size, 0, 0, data.mean, data.std))
        return Lent(codebook=Codebook(torch.randn(fitted.clusters, of.outputs), of))
    return NOTHING


@contextmanager
def hooks() -> Iterator[Callable[[Any], None]]:
    """Collects handles, and removes them at the end."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(module: nn.Module, name: str, other: nn.Module) -> Iterator[None]:
    """A part of a model that is another one for a while."""
    own = getattr(module, name)
    setattr(module, name, other)
    try:
        yield
    finally:
        setattr(module, name, own)


def shaken(module: Net) -> Net:
    """A copy whose every parameter counts: a head may begin at zeros, a norm at ones, a layer scale at next to nothing."""
    found = copy.deepcopy(module)
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=dice) * (0.2 if parameter.ndim == 1 else 0.02))
    return found
