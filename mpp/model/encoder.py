"""The encoder: a timm Vision Transformer, opened between its patch embedding and its blocks.

It is the same code in every recipe and is never told which one it serves.
Letters: B batch, N patches, P prefix tokens (class tokens, then registers), D embedding dimensions.
"""

from typing import Any

import timm
import torch
from timm.layers import DropPath
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpp.base.errors import ConfigError
from mpp.config.sections import ModelConfig
from mpp.model.architecture import architecture_of, in_words, position_arguments
from mpp.model.tokens import choose_attention, gather_rotations, gather_tokens, initialise_linear, note_class_tokens, sincos_positions


class Encoder(nn.Module):
    """`vit` is the plain timm model, whole: its state dict loads into `timm.create_model` as it is."""

    def __init__(self, vit: VisionTransformer | Eva):
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

        Positions are added here, and rotary ones given to each block, so whatever became of an embedding before, its place is known.
        """
        tokens, rotations = self._positioned(embeddings)
        if visible is not None:
            prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
            tokens = torch.cat([prefix, gather_tokens(patches, visible)], dim=1)
            rotations = None if rotations is None else gather_rotations(rotations, visible)
        tokens = self.vit.norm_pre(tokens)
        found = [tokens]
        for number, block in enumerate(self.vit.blocks):
            if rotations is None:
                tokens = block(tokens)
            else:
                tokens = block(tokens, rope=rotations[number] if self.vit.rope_mixed else rotations)
            found = [*found, tokens][-(last or 0) :]
        return found

    def norm(self, tokens: Tensor) -> Tensor:
        """The final norm."""
        return self.vit.norm(tokens)

    def forward(self, embeddings: Tensor, visible: Tensor | None = None, every: bool = False) -> Any:
        """Patch embeddings [B, N, D] -> normalised tokens [B, P + N, D], or [B, P + K, D] of the `visible` [B, K] patches alone; every: instead what
        `blocks` gives (asked for here, as ZeRO-3 gathers borrowed parameters around this call)."""
        return self.blocks(embeddings, visible) if every else self.norm(self.blocks(embeddings, visible, last=1)[0])

    def borrowed_parameters(self) -> list[nn.Parameter]:
        """Those that are used outside their own module's forward pass (ZeRO-3 has to be told)."""
        vit: Any = self.vit
        own = [parameter for parameter in (vit.pos_embed, vit.cls_token, vit.reg_token) if parameter is not None]
        if not isinstance(vit, Eva):
            return own
        rotary = [] if vit.rope is None else list(vit.rope.parameters())
        attentions: list[Any] = [block.attn for block in vit.blocks]  # timm's own kind multiplies by the weights of its linear layer itself
        fused = [each.qkv.weight for each in attentions if isinstance(each, EvaAttention) and each.qkv is not None]
        return own + rotary + fused

    def _positioned(self, embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens with whatever is added to them, and the sines and cosines that queries and keys are rotated by, where they are."""
        found = self.vit._pos_embed(embeddings)
        return found if isinstance(found, tuple) else (found, None)


def timm_arguments(config: ModelConfig) -> dict:
    """What `timm.create_model(config.arch, **arguments)` needs to build this encoder; exported beside the weights.

    Raises ConfigError for an architecture that is no Vision Transformer of timm's, or cannot take what is asked.
    """
    known = architecture_of(config.arch)
    arguments: dict = {"img_size": config.image_size, "patch_size": config.patch_size, "num_classes": 0, "drop_path_rate": config.drop_path}
    for ours, theirs in [("width", "embed_dim"), ("depth", "depth"), ("heads", "num_heads"), ("qk_norm", "qk_norm")]:
        if getattr(config, ours) is not None:
            arguments[theirs] = getattr(config, ours)
    if config.layer_scale is not None and (config.layer_scale or known.scaled):
        # timm's Eva cannot be told to have none: it stays at 1 then (`build_encoder`).  The other class takes 0 for none.
        arguments["init_values"] = config.layer_scale or (1.0 if known.eva else 0.0)
    # timm moves the final norm behind its own pooling unless told not to; tokens are always normalised here.
    arguments |= {
        "class_token": config.class_tokens > 0,
        "global_pool": "token" if config.class_tokens else "avg",
        known.pooled_norm: False,
    }
    further = max(0, config.class_tokens - 1)  # class tokens: timm has one, and any number of registers
    if further or config.registers is not None:
        arguments[known.registers_word] = further + (known.registers if config.registers is None else config.registers)
    if further and config.position in ("learned", "sincos2d"):
        arguments["no_embed_class"] = False  # a position of its own for each
    return arguments | position_arguments(config, known)


def encoder_in_words(config: ModelConfig) -> str:
    return f"{in_words(config.arch, timm_arguments(config))} {config.image_size}px/{config.patch_size}"


def build_encoder(config: ModelConfig, seed: int, fused_attention: bool | None = None) -> Encoder:
    """A freshly initialised encoder, the same for the same seed.  Raises ConfigError for an architecture timm does not build so.

    fused_attention: torch's fused kernel or plain matrix products; None leaves timm's choice.
    """
    arguments = timm_arguments(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            vit: Any = timm.create_model(config.arch, pretrained=False, **arguments)
        except (TypeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"model.arch={config.arch} cannot be built with these sizes ({error}); take a plain 'vit_*' architecture"
            ) from error
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
    if config.drop_path_rule == "constant" and config.drop_path:
        for block in vit.blocks:
            block.drop_path1, block.drop_path2 = DropPath(config.drop_path), DropPath(config.drop_path)
    if config.layer_scale == 0:
        for name, parameter in vit.named_parameters():
            if name.rsplit(".", 1)[-1] in ("gamma_1", "gamma_2"):
                parameter.requires_grad_(False)
    note_class_tokens(vit, config.class_tokens)
    choose_attention(vit.blocks, fused_attention)
    return Encoder(vit)


@torch.no_grad()
def _initialise(vit: VisionTransformer | Eva) -> None:
    """Xavier-uniform matrices and zero biases, N(0, .02) tokens and learned positions, as MAE's code; norms at 1 and layer scales at their start as
    timm has them.  Rotary positions are fixed (the frequencies that some architectures learn begin as timm draws them)."""
    vit.apply(initialise_linear)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.flatten(1))  # a convolution of patch size is a matrix
    if vit.patch_embed.proj.bias is not None:
        nn.init.zeros_(vit.patch_embed.proj.bias)
    for token in (vit.cls_token, vit.reg_token, vit.pos_embed):
        if token is not None:
            nn.init.normal_(token, std=0.02)
