"""What a recipe computes, in one place: from clean images and masks to one loss for each predicted patch."""

from typing import Protocol

import torch
from torch import Tensor, nn

from mpp.base.rng import INIT, seed_of
from mpp.config.sections import ModelConfig
from mpp.model.encoder import Encoder, build_encoder
from mpp.model.normalise import Triple, normalise
from mpp.recipe.corruptions import CorruptionConfig
from mpp.recipe.decoders import DecoderConfig
from mpp.recipe.decoders import base as decoders
from mpp.recipe.masks import MaskConfig
from mpp.recipe.places import MASKED, Masks
from mpp.recipe.targets import TargetConfig
from mpp.recipe.targets.base import NOTHING, Given, Lent, Target
from mpp.recipe.teacher import Teacher


class PretrainingModel(nn.Module):
    """Encoder, what becomes of the hidden patches, decoder, target.

    Letters: B batch, N patches, K visible, M predicted, D encoder dimensions, O outputs a patch.
    """

    def __init__(
        self, encoder: Encoder, corruption: CorruptionConfig, mask_token: nn.Parameter | None, decoder: nn.Module, reads_blocks: bool, target: Target,
        mean: Triple, std: Triple,
    ):  # fmt: skip
        """mask_token: of a corruption that shows one.  reads_blocks: whether the decoder is given what is between the encoder's blocks."""
        super().__init__()
        self.encoder: Encoder = encoder
        self.corruption, self.target, self.mean, self.std = corruption, target, mean, std
        self.decoder, self.reads_blocks = decoder, reads_blocks
        self.mask_token = mask_token
        self._lent: list[Teacher] = []

    def lend(self, teacher: Teacher) -> None:
        """What the target asks: no part of this module, so neither trained nor saved with it."""
        self._lent = [teacher]

    @property
    def teacher(self) -> Teacher | None:
        return self._lent[0] if self._lent else None

    def forward(
        self, images: Tensor, kind: Tensor, source: Tensor, visible: Tensor, predicted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean images float [B, 3, S, S], 0..255; kind, source [B, N]; visible [B, K]; predicted [B, M].

        Returns predictions [B, M, O]; loss float32 [B, M] of every predicted patch, masked, swapped and kept alike (ViT B.1.2); masked float32
        [B, M], 1 where the patch showed [mask] or nothing; own float32, the loss by which a target with parameters learns itself, else 0.
        """
        masks = Masks(kind, source, visible, predicted)
        shown = self.corruption.pixels(images, masks, self.mask_token)
        embeddings = self.encoder.embed(normalise(shown, self.mean, self.std))
        embeddings = self.corruption.embeddings(embeddings, masks, self.mask_token)
        places = self.corruption.places(masks)
        tokens = self.encoder(embeddings, places, every=self.reads_blocks)
        prediction = self.decoder(tokens, places, predicted)
        with torch.autocast(images.device.type, enabled=False):
            goal, own = self.target.goals(images, masks, self.teacher)  # no gradient flows back through a goal
            masked = (kind.gather(1, predicted) == MASKED).float()
            return prediction, self.target.loss(prediction, goal), masked, masked.new_zeros(()) if own is None else own

    def features(self, images: Tensor) -> Tensor:
        """Clean images float [B, 3, S, S], 0..255 -> the mean of the encoder's normalised patch tokens [B, D], nothing hidden."""
        return self.encoder(self.encoder.embed(normalise(images, self.mean, self.std)))[:, self.encoder.prefix :].mean(dim=1)


class Normalisation(Protocol):
    @property
    def mean(self) -> Triple: ...
    @property
    def std(self) -> Triple: ...


class RecipeConfig(Protocol):
    """What of a run's config says what is learned."""

    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def mask(self) -> MaskConfig: ...
    @property
    def corruption(self) -> CorruptionConfig: ...
    @property
    def target(self) -> TargetConfig: ...
    @property
    def decoder(self) -> DecoderConfig: ...
    @property
    def data(self) -> Normalisation: ...


def build_model(config: RecipeConfig, fused_attention: bool | None = None, lent: Lent = NOTHING) -> PretrainingModel:
    """A freshly initialised model, the same for the same config and seed.  lent: what the target's section asks for from outside."""
    encoder = build_encoder(config.model, seed_of(config.seed, INIT, 0), fused_attention)
    mean, std, depth = config.data.mean, config.data.std, encoder.depth
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, INIT, 1))
        target = config.target.build(Given(config.model.patch_size, encoder.width, depth, mean, std, lent))
        given = decoders.Given(
            encoder.width, target.outputs, encoder.prefix, encoder.grid, depth, config.mask.groups, fused_attention, target.head
        )
        decoder = config.decoder.build(given)
        shape = config.corruption.token(encoder.width, config.model.patch_size)
        mask_token = nn.Parameter(nn.init.normal_(torch.zeros(shape), std=0.02)) if shape else None
    model = PretrainingModel(encoder, config.corruption, mask_token, decoder, config.decoder.reads_blocks, target, mean, std)
    if lent.teacher:
        model.lend(lent.teacher)
    return model
