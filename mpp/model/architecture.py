"""What timm's architectures can take: which class of Vision Transformer a name stands for, and which kinds of position that has."""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Any

import timm
import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from mpp.base.errors import ConfigError
from mpp.config.sections import ModelConfig


@dataclass(frozen=True)
class Architecture:
    """Its own numbers, where a config says nothing else."""

    width: int
    heads: int
    registers: int
    scaled: bool  # with layer scale
    eva: bool  # timm's Eva, the class with rotary positions; otherwise its VisionTransformer
    absolute: bool  # positions are added to the tokens
    rotary: bool  # queries and keys are rotated
    axial: bool  # with one set of frequencies for rows and columns, which can be said in numbers
    dynamic: bool  # images of any size in one pass: patch embeddings are a map then

    @property
    def registers_word(self) -> str:
        return "num_reg_tokens" if self.eva else "reg_tokens"

    @property
    def pooled_norm(self) -> str:
        """timm's word for moving the final norm behind the pooling."""
        return "use_fc_norm" if self.eva else "fc_norm"


def in_words(name: str, arguments: Mapping[str, Any]) -> str:
    """vit_tiny_patch16_224, and in brackets what of its shape is not its own.  arguments: of `timm.create_model`."""
    own = {"depth": "depth", "embed_dim": "width", "num_heads": "heads"}
    changed = ", ".join(f"{word} {arguments[key]}" for key, word in own.items() if key in arguments)
    return f"{name} ({changed})" if changed else name


@functools.cache
def architecture_of(name: str) -> Architecture:
    """Raises ConfigError for what is no Vision Transformer of timm's."""
    if not timm.is_model(name):
        meant = re.sub("[^a-z0-9]", "_", name.lower())
        begins = lambda known: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(meant, known, strict=False)))
        ratio = lambda known: SequenceMatcher(None, meant, known[: len(meant)], autojunk=False).ratio()
        near = sorted(timm.list_models("*patch*"), key=lambda known: (-begins(known), -ratio(known), len(known), known))[:3]
        raise ConfigError(f"model.arch={name} is not a timm model; try one of timm.list_models('vit_*'), such as {', '.join(near)}")
    try:
        with torch.random.fork_rng(devices=[]):
            net: Any = timm.create_model(
                name, pretrained=False, num_classes=0, depth=1, device="meta"
            )  # no weights, so it takes milliseconds
    except (TypeError, AssertionError, ValueError, RuntimeError):
        net = None  # one that is not a row of blocks
    if not isinstance(net, VisionTransformer | Eva) or not hasattr(net.patch_embed, "grid_size"):
        kind = "model without a depth in blocks" if net is None else type(net).__name__
        raise ConfigError(
            f"model.arch={name} is a {kind}; the encoder must be a timm VisionTransformer or Eva, such as vit_small_patch16_224"
        )
    rope = getattr(net, "rope", None)
    first: Any = net.blocks[0]
    return Architecture(
        net.embed_dim, first.attn.num_heads if hasattr(first, "attn") else 1, 0 if net.reg_token is None else net.reg_token.shape[1], getattr(first, "gamma_1", None) is not None or hasattr(getattr(first, "ls1", None), "gamma"),
        isinstance(net, Eva), net.pos_embed is not None, rope is not None, isinstance(rope, RotaryEmbeddingCat), net.dynamic_img_size,
    )  # fmt: skip


def position_arguments(config: ModelConfig, known: Architecture) -> dict[str, Any]:
    """timm's arguments for the kind of positions.  Raises ConfigError for one that the architecture cannot take."""
    arguments: dict[str, Any] = {"dynamic_img_size": False} if known.dynamic else {}
    if config.position == "rotary":
        if not known.rotary or known.absolute:
            has = "learned and rotary positions together" if known.rotary else "no rotary positions"
            raise ConfigError(f"model.position=rotary: {config.arch} has {has}; take model.arch={_rotary(config.arch)}")
        width, heads = config.width or known.width, config.heads or known.heads
        if width % heads or width // heads % 4:
            raise ConfigError(
                f"model.position=rotary rotates pairs of each head's dimensions, half of them by the row and half by the column: width={width} over "
                f"heads={heads} must be a multiple of 4; the nearest width below is {max(1, width // (4 * heads)) * 4 * heads}"
            )
        return arguments | _frequencies(config, known, width // heads // 4)
    if config.position == "none":
        if known.eva:
            return arguments | {"use_abs_pos_emb": False, "use_rot_pos_emb": False}
        return arguments | {"pos_embed": "none"}
    if known.rotary:
        raise ConfigError(
            f"model.position={config.position}: {config.arch} has rotary positions; set model.position=rotary, or take model.arch={_plain(config.arch)}"
        )
    if not known.absolute:
        raise ConfigError(
            f"model.position={config.position}: {config.arch} has no positions; set model.position=none, or take another architecture"
        )
    return arguments


def _frequencies(config: ModelConfig, known: Architecture, count: int) -> dict[str, Any]:
    """timm's angle at place i of n is i / n * reference * temperature ** (-k / count), of frequency k of `count`; wanted are turns over i / (n - 1),
    so that the edges are at 0 and 1, from the highest at k = 0 to the lowest at k = count - 1, both met (CAPI's code)."""
    if config.rotary_frequencies is None:
        return {}
    if not known.axial:
        raise ConfigError(
            f"model.rotary_frequencies={list(config.rotary_frequencies)}: the frequencies of {config.arch} cannot be set; leave them out, or take "
            f"model.arch={_rotary(config.arch)}"
        )
    highest, lowest = config.rotary_frequencies
    reference = [2 * math.pi * highest * (side / (side - 1) if side > 1 else 1.0) for side in config.grid]
    return {"ref_feat_shape": reference, "rope_temperature": (highest / lowest) ** (count / (count - 1)) if count > 1 else 1.0}


def _rotary(arch: str) -> str:
    """An architecture with rotary positions, of the same size where there is one."""
    near = re.sub(r"_patch\d.*", "_patch16_rope_224", arch)
    return near if timm.is_model(near) else "vit_base_patch16_rope_224"


def _plain(arch: str) -> str:
    near = re.sub(r"_patch\d.*", "_patch16_224", arch)
    return near if timm.is_model(near) else "vit_base_patch16_224"
