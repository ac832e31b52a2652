"""The pretraining model: encoder, what becomes of the hidden patches, decoder.  Tensors in, tensors out."""

import torch
from torch import Tensor, nn

from mpp.config.pretrain import PretrainConfig
from mpp.masking import corrupt
from mpp.model.decoder import build_decoder
from mpp.model.encoder import Encoder, build_encoder
from mpp.rng import INIT, seed_of


class PretrainingModel(nn.Module):
    """Letters: B batch, N patches, K visible, M predicted, D encoder dimensions, O outputs a patch."""

    def __init__(self, encoder: Encoder, decoder: nn.Module, drops: bool):
        super().__init__()
        self.encoder: Encoder = encoder
        self.decoder = decoder
        # Only a replacing corruption shows a mask token to the encoder.
        self.mask_token = None if drops else nn.Parameter(torch.zeros(encoder.width))

    def forward(self, images: Tensor, kind: Tensor, source: Tensor, visible: Tensor, predicted: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S]; kind, source [B, N]; visible [B, K]; predicted [B, M] -> predictions [B, M, O]."""
        embeddings = self.encoder.embed(images)
        if self.mask_token is None:
            return self.decoder(self.encoder(embeddings, visible), visible, predicted)
        return self.decoder(self.encoder(corrupt(embeddings, kind, source, self.mask_token)), None, predicted)


def build_model(config: PretrainConfig, outputs: int, fused_attention: bool | None = None) -> PretrainingModel:
    """A freshly initialised model with `outputs` numbers a patch, the same for the same config and seed."""
    encoder = build_encoder(config.model, seed_of(config.seed, INIT, 0), fused_attention)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, INIT, 1))
        decoder = build_decoder(config.decoder, encoder.width, outputs, encoder.prefix, encoder.grid, fused_attention)
        model = PretrainingModel(encoder, decoder, drops=config.corruption.name == "drop")
        if model.mask_token is not None:
            nn.init.normal_(model.mask_token, std=0.02)
    return model
