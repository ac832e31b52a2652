"""What a recipe computes, in one place: from clean images and masks to one loss for each predicted patch."""

from typing import Protocol

import torch
from torch import Tensor, nn

from mpp.config.sections import ModelConfig
from mpp.model.encoder import Encoder, build_encoder
from mpp.model.normalise import Triple, normalise
from mpp.recipe.corruption import MASKED, CorruptionConfig
from mpp.recipe.decoders import DecoderConfig
from mpp.recipe.targets import TargetConfig
from mpp.recipe.targets.base import Given, Target
from mpp.rng import INIT, seed_of


class PretrainingModel(nn.Module):
    """Encoder, what becomes of the hidden patches, decoder, target.

    Letters: B batch, N patches, K visible, M predicted, D encoder dimensions, O outputs a patch.
    """

    def __init__(self, encoder: Encoder, corruption: CorruptionConfig, decoder: nn.Module, target: Target, mean: Triple, std: Triple):
        super().__init__()
        self.encoder: Encoder = encoder
        self.corruption, self.target, self.mean, self.std = corruption, target, mean, std
        self.decoder = decoder
        # Only a replacing corruption shows a mask token to the encoder.
        self.mask_token = None if corruption.drops else nn.Parameter(torch.zeros(encoder.width))
        self._lent: list[Encoder] = []

    def lend(self, teacher: Encoder) -> None:
        """The teacher that the target asks: an encoder, and no part of this module, so neither trained nor saved with it."""
        self._lent = [teacher]

    @property
    def teacher(self) -> Encoder | None:
        return self._lent[0] if self._lent else None

    def forward(self, images: Tensor, kind: Tensor, source: Tensor, visible: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clean images float [B, 3, S, S], 0..255; kind, source [B, N]; visible [B, K]; predicted [B, M].

        Returns predictions [B, M, O]; loss float32 [B, M] of every predicted patch, masked, swapped and kept alike (ViT B.1.2); masked float32
        [B, M], 1 where the patch showed [mask] or nothing.
        """
        embeddings = self.encoder.embed(normalise(images, self.mean, self.std))
        tokens = self.corruption.encode(self.encoder, embeddings, kind, source, visible, self.mask_token)
        prediction = self.decoder(tokens, self.corruption.places(visible), predicted)
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                goal = self.target(images, predicted, self.teacher)
                masked = (kind.gather(1, predicted) == MASKED).float()
            return prediction, self.target.loss(prediction, goal), masked


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
    def corruption(self) -> CorruptionConfig: ...
    @property
    def target(self) -> TargetConfig: ...
    @property
    def decoder(self) -> DecoderConfig: ...
    @property
    def data(self) -> Normalisation: ...


def build_model(config: RecipeConfig, fused_attention: bool | None = None) -> PretrainingModel:
    """A freshly initialised model, the same for the same config and seed."""
    encoder = build_encoder(config.model, seed_of(config.seed, INIT, 0), fused_attention)
    mean, std = config.data.mean, config.data.std
    target = config.target.build(Given(config.model.patch_size, encoder.width, len(encoder.vit.blocks), mean, std))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, INIT, 1))
        decoder = config.decoder.build(encoder.width, target.outputs, encoder.prefix, encoder.grid, fused_attention)
        model = PretrainingModel(encoder, config.corruption, decoder, target, mean, std)
        if model.mask_token is not None:
            nn.init.normal_(model.mask_token, std=0.02)
    return model
