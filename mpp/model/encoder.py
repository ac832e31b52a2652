"""The encoder: a timm Vision Transformer, opened between its patch embedding and its blocks.

It is the same code in every recipe and is never told which one it serves.
Letters: B batch, N patches, P prefix tokens (class token, registers), D embedding dimensions.
"""

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpp.config.sections import ModelConfig
from mpp.errors import ConfigError
from mpp.model.tokens import choose_attention, gather_tokens, initialise_linear, sincos_positions


class Encoder(nn.Module):
    """`vit` is the plain timm model, whole: its state dict loads into `timm.create_model` as it is."""

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        self.vit = vit
        self.width: int = vit.embed_dim
        self.prefix: int = vit.num_prefix_tokens
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] -> patch embeddings without positions [B, N, D]."""
        return self.vit.patch_embed(images)

    @property
    def depth(self) -> int:
        return len(self.vit.blocks)

    def blocks(self, embeddings: Tensor, visible: Tensor | None = None, last: int | None = None) -> list[Tensor]:
        """Patch embeddings [B, N, D] -> what enters the first block, and what leaves each, without the final norm: tokens [B, P + N, D], or
        [B, P + K, D] of the `visible` [B, K] patches alone.  last: of these the last so many (None: all).

        Positions are added here, so whatever became of an embedding before, its place is known.
        """
        tokens = self._positioned(embeddings)
        if visible is not None:
            prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
            tokens = torch.cat([prefix, gather_tokens(patches, visible)], dim=1)
        tokens = self.vit.norm_pre(tokens)
        found = [tokens]
        for block in self.vit.blocks:
            tokens = block(tokens)
            found = [*found, tokens][-(last or 0) :]
        return found

    def norm(self, tokens: Tensor) -> Tensor:
        """The final norm."""
        return self.vit.norm(tokens)

    def forward(self, embeddings: Tensor, visible: Tensor | None = None) -> Tensor:
        """Patch embeddings [B, N, D] -> normalised tokens [B, P + N, D], or [B, P + K, D] of the `visible` [B, K] patches alone."""
        return self.norm(self.blocks(embeddings, visible, last=1)[0])

    def borrowed_parameters(self) -> list[nn.Parameter]:
        """Those that are used outside their own module's forward pass (ZeRO-3 has to be told)."""
        return [parameter for parameter in (self.vit.pos_embed, self.vit.cls_token, self.vit.reg_token) if parameter is not None]

    def _positioned(self, embeddings: Tensor) -> Tensor:
        return self.vit._pos_embed(embeddings)


def timm_arguments(config: ModelConfig) -> dict:
    """What `timm.create_model(config.arch, **arguments)` needs to build this encoder; exported beside the weights."""
    arguments: dict = {"img_size": config.image_size, "patch_size": config.patch_size, "num_classes": 0, "drop_path_rate": config.drop_path}
    for ours, theirs in [("width", "embed_dim"), ("depth", "depth"), ("heads", "num_heads")]:
        if getattr(config, ours) is not None:
            arguments[theirs] = getattr(config, ours)
    # timm moves the final norm behind its own pooling unless told not to; tokens are always normalised here.
    arguments |= {"class_token": config.class_token, "global_pool": "token" if config.class_token else "avg", "fc_norm": False}
    return arguments


def build_encoder(config: ModelConfig, seed: int, fused_attention: bool | None = None) -> Encoder:
    """A freshly initialised encoder, the same for the same seed.  Raises ConfigError for an architecture timm does not build so.

    fused_attention: torch's fused kernel or plain matrix products; None leaves timm's choice.
    """
    if not timm.is_model(config.arch):
        near = timm.list_models(f"*{config.arch.split('_')[1] if '_' in config.arch else config.arch}*patch*")[:3]
        raise ConfigError(
            f"model.arch={config.arch} is not a timm model; try one of timm.list_models('vit_*'), such as {', '.join(near) or 'vit_base_patch16_224'}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            vit = timm.create_model(config.arch, pretrained=False, **timm_arguments(config))
        except (TypeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"model.arch={config.arch} cannot be built with these sizes ({error}); take a plain 'vit_*' architecture"
            ) from error
        if not isinstance(vit, VisionTransformer) or not hasattr(vit.patch_embed, "grid_size"):
            raise ConfigError(
                f"model.arch={config.arch} is a {type(vit).__name__}; the encoder must be a timm VisionTransformer, such as vit_small_patch16_224"
            )
        for block in vit.blocks:
            if not hasattr(block, "attn"):
                raise ConfigError(
                    f"model.arch={config.arch}: its blocks are {type(block).__name__}s without one attention; choose a plain Vision Transformer"
                )
        _initialise(vit)
    if config.position == "sincos2d" and vit.pos_embed is not None:
        fixed = sincos_positions(vit.embed_dim, vit.patch_embed.grid_size)
        vit.pos_embed.requires_grad_(False).zero_()
        vit.pos_embed.data[0, -len(fixed) :] = fixed
    choose_attention(vit.blocks, fused_attention)
    return Encoder(vit)


@torch.no_grad()
def _initialise(vit: VisionTransformer) -> None:
    """Xavier-uniform matrices and zero biases, N(0, .02) tokens and learned positions, as MAE's code."""
    vit.apply(initialise_linear)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.flatten(1))  # a convolution of patch size is a matrix
    if vit.patch_embed.proj.bias is not None:
        nn.init.zeros_(vit.patch_embed.proj.bias)
    for token in (vit.cls_token, vit.reg_token, vit.pos_embed):
        if token is not None:
            nn.init.normal_(token, std=0.02)
