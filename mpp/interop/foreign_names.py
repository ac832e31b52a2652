"""Other projects' Vision Transformers under timm's names, and ours under transformers': names and shapes only, no files.

Known are MAE's, SimMIM's, BEiT's and timm's own names (DeiT's and DINO's too, which are timm's) and those of transformers 4 and 5 for
ViT and ViTMAE.  Every tensor is used or named as dropped; a name that is neither is an error.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mpp.base.errors import CheckpointError

Weights = Mapping[str, Tensor]

HEAD_WIDTH = 64  # of an attention head in the published sizes of ViT, MAE, SimMIM and BEiT up to ViT-L
WIDER_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # width -> heads: ViT-SO400M, -H, -g, -G (timm; arXiv 2111.06377 has ViT-H)
USED = re.compile(
    r"cls_token|pos_embed|reg_token|(patch_embed\.proj|norm|norm_pre|fc_norm)\.(weight|bias)|rel_pos_bias\.relative_position_bias_table|blocks\.\d+\..+"
)
DROPPED = re.compile(  # classifiers, the pretext task's own head, and what is computed anew
    r"(head|head_dist|lm_head|classifier|pooler|decoder)\..+|mask_token|.*relative_position_index|.*\.k_bias"
)
MAE_DECODER = {"decoder_embed": "embed", "decoder_blocks": "blocks", "decoder_norm": "norm", "decoder_pred": "head"}

# transformers 4 and every file on a disk; then transformers 5 in memory.
TRANSFORMERS_BLOCK = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
TRANSFORMERS_QKV = (
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
)
TRANSFORMERS_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
TRANSFORMERS_DECODER = {"decoder_embed": "embed", "decoder_norm": "norm", "decoder_pred": "head"}


@dataclass(frozen=True)
class Foreign:
    """What a checkpoint holds, under timm's names."""

    form: str  # whose names they were
    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor] = field(default_factory=dict)  # MAE's, under our decoder's names; empty without one
    decoder_positions: Tensor | None = None  # [1, P + N, W]
    dropped: tuple[str, ...] = ()


def translate(weights: Weights) -> Foreign:
    """Find out whose names these are, and give the tensors timm's.  Raises CheckpointError for a name that none of them has."""
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    if any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in weights):
        return _from_transformers(weights)
    inside = [name for name in weights if name.startswith("encoder.")]
    if "encoder.patch_embed.proj.weight" in inside:  # SimMIM: the encoder beside a decoder of one layer
        outside = {name: tensor for name, tensor in weights.items() if name not in inside}
        weights = {name.removeprefix("encoder."): weights[name] for name in inside} | outside
    if "patch_embed.proj.weight" not in weights:
        shown = ", ".join(list(weights)[:3])
        raise CheckpointError(
            f"no patch embedding is among its {len(weights)} tensors ({shown}, ...); known are ViTs of timm, MAE, SimMIM, BEiT and transformers"
        )
    is_mae = "decoder_embed.weight" in weights
    encoder: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    dropped, unknown = [], []
    for name, tensor in weights.items():
        first, _, rest = name.partition(".")
        if is_mae and name in ("mask_token", "decoder_pos_embed"):
            decoder[name] = tensor
        elif is_mae and first in MAE_DECODER:
            decoder[f"{MAE_DECODER[first]}.{rest}"] = tensor
        elif DROPPED.fullmatch(name):
            dropped.append(name)
        else:
            encoder[name] = tensor
            if not USED.fullmatch(name):
                unknown.append(name)
    _refuse(unknown)
    if is_mae:
        form = "MAE"
    elif inside and "patch_embed.proj.weight" not in inside:
        form = "SimMIM"
    else:
        form = "BEiT" if is_beit(encoder) else "timm"
    return Foreign(form, encoder, decoder, decoder.pop("decoder_pos_embed", None), tuple(dropped))


def is_beit(encoder: Weights) -> bool:
    """Relative positions, or separate query and value biases: timm's Beit, not its VisionTransformer."""
    return any(name.endswith(("relative_position_bias_table", "attn.q_bias", "gamma_1")) for name in encoder)


def _from_transformers(weights: Weights) -> Foreign:
    encoder: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    positions, dropped, unknown = None, [], []
    for name, tensor in weights.items():
        bare = name.removeprefix("vit.")
        block = re.fullmatch(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)", bare)
        in_decoder = re.fullmatch(r"decoder\.(?:decoder_layers|decoder_encoder\.layer)\.(\d+)\.(.+)\.(weight|bias)", bare)
        module, _, kind = bare.rpartition(".")
        if found := block or in_decoder:
            number, layer, kind = found.groups()
            side = encoder if block else decoder
            own = next((ours for ours, theirs in TRANSFORMERS_BLOCK.items() if layer in theirs), None)
            third = next((i for names in TRANSFORMERS_QKV for i, theirs in enumerate(names) if layer == theirs), None)
            if own is not None:
                side[f"blocks.{number}.{own}.{kind}"] = tensor
            elif third is not None:
                parts.setdefault(f"{'' if block else 'decoder.'}blocks.{number}.attn.qkv.{kind}", {})[third] = tensor
            else:
                unknown.append(name)
        elif bare in TRANSFORMERS_OUTSIDE:
            encoder[TRANSFORMERS_OUTSIDE[bare]] = tensor
        elif module in TRANSFORMERS_OUTSIDE:
            encoder[f"{TRANSFORMERS_OUTSIDE[module]}.{kind}"] = tensor
        elif (inner := module.removeprefix("decoder.")) in TRANSFORMERS_DECODER:
            decoder[f"{TRANSFORMERS_DECODER[inner]}.{kind}"] = tensor
        elif bare == "decoder.mask_token":
            decoder["mask_token"] = tensor
        elif bare == "decoder.decoder_pos_embed":
            positions = tensor
        elif DROPPED.fullmatch(bare) or bare == "embeddings.mask_token":
            dropped.append(name)
        else:
            unknown.append(name)
    for name, thirds in parts.items():
        if len(thirds) != 3:
            unknown.append(name)
            continue
        (decoder if name.startswith("decoder.") else encoder)[name.removeprefix("decoder.")] = torch.cat([thirds[i] for i in range(3)])
    _refuse(unknown)
    return Foreign("transformers", encoder, decoder, positions, tuple(dropped))


def _refuse(unknown: list[str]) -> None:
    if unknown:
        raise CheckpointError(
            f"nothing is known of its tensor {unknown[0]}{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}, and none is left out unseen; "
            "known are plain ViTs of timm, MAE, SimMIM, BEiT and transformers"
        )


def architecture_from_shapes(encoder: Weights, heads: int | None) -> tuple[str, dict[str, Any]]:
    """timm's name and arguments of the model whose weights these are, from their shapes.

    heads: where known; else the width of the relative position table, or those of published models of that width, mostly width / 64.
    Raises CheckpointError for what is no square ViT.
    """
    patch = encoder["patch_embed.proj.weight"]
    width, colours, height, across = patch.shape
    depth = 1 + max((int(name.split(".")[1]) for name in encoder if name.startswith("blocks.")), default=-1)
    hidden = encoder.get("blocks.0.mlp.fc1.weight")
    if colours != 3 or height != across or hidden is None:
        raise CheckpointError(
            f"its patch embedding is {tuple(patch.shape)} and it has {depth} blocks; an encoder of RGB images with square patches and MLP blocks is needed"
        )
    tables = {name: tensor for name, tensor in encoder.items() if name.endswith("relative_position_bias_table")}
    table = next(iter(tables.values()), None)
    heads = heads or (int(table.shape[1]) if table is not None else WIDER_HEADS.get(width, width // HEAD_WIDTH))
    if not heads or width % heads:
        raise CheckpointError(
            f"how many attention heads share its width of {width} is not to be seen; give a folder whose config.json says it"
        )
    prefix = sum(encoder[name].shape[1] for name in ("cls_token", "reg_token") if name in encoder)
    arguments: dict[str, Any] = {
        "patch_size": height,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": hidden.shape[0] / width,
        "num_classes": 0,
    }
    if is_beit(encoder):
        places = encoder["pos_embed"].shape[1] - prefix if "pos_embed" in encoder else None
        side = math.isqrt(places) if places is not None else (math.isqrt(table.shape[0] - 3) + 1) // 2 if table is not None else 0
        return "beit_base_patch16_224", arguments | {
            "img_size": side * height,
            "global_pool": "avg" if "fc_norm.weight" in encoder else "token",
            "qkv_bias": "blocks.0.attn.q_bias" in encoder,
            "use_abs_pos_emb": "pos_embed" in encoder,
            "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in tables,
            "use_rel_pos_bias": any(name.startswith("blocks.") for name in tables),
            "init_values": 0.1 if "blocks.0.gamma_1" in encoder else None,
        }
    if "pos_embed" not in encoder:
        raise CheckpointError("it has neither position embeddings nor relative positions; which image size it is for is not to be seen")
    places = encoder["pos_embed"].shape[1]
    embed_prefix = math.isqrt(places - prefix) ** 2 == places - prefix
    side = math.isqrt(places - prefix if embed_prefix else places)
    if not embed_prefix and side**2 != places:
        raise CheckpointError(f"its {places} position embeddings with {prefix} prefix tokens are no square grid of patches")
    arguments |= {
        "img_size": side * height,
        "class_token": "cls_token" in encoder,
        "qkv_bias": "blocks.0.attn.qkv.bias" in encoder,
        "global_pool": "token" if "cls_token" in encoder and "fc_norm.weight" not in encoder else "avg",
        "fc_norm": "fc_norm.weight" in encoder,
    }
    if "reg_token" in encoder:
        arguments["reg_tokens"] = int(encoder["reg_token"].shape[1])
    if not embed_prefix:
        arguments["no_embed_class"] = True
    if "blocks.0.ls1.gamma" in encoder:
        arguments["init_values"] = 1e-5
    if "norm_pre.weight" in encoder:
        arguments["pre_norm"] = True
    return "vit_base_patch16_224", arguments


def vit_to_transformers(weights: Weights, prefix: str = "") -> dict[str, Tensor]:
    """timm's ViT with a class token -> the tensors of a transformers ViTModel file; prefix "vit." as inside of a larger model."""
    outside = {ours: theirs for theirs, ours in TRANSFORMERS_OUTSIDE.items()}
    named: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.startswith("blocks."):
            named |= _block_to_transformers(name, tensor, f"{prefix}encoder.layer")
        elif name in outside:
            named[prefix + outside[name]] = tensor
        else:
            module, _, kind = name.rpartition(".")
            named[f"{prefix}{outside[module]}.{kind}"] = tensor
    return named


def decoder_to_transformers(decoder: Weights, positions: Tensor) -> dict[str, Tensor]:
    """Our transformer decoder and its positions [1, P + N, W] -> the decoder of a transformers ViTMAEForPreTraining file."""
    outside = {ours: theirs for theirs, ours in TRANSFORMERS_DECODER.items()}
    named = {"decoder.decoder_pos_embed": positions}
    for name, tensor in decoder.items():
        module, _, kind = name.rpartition(".")
        if name.startswith("blocks."):
            named |= _block_to_transformers(name, tensor, "decoder.decoder_layers")
        elif name == "mask_token":
            named["decoder.mask_token"] = tensor
        else:
            named[f"decoder.{outside[module]}.{kind}"] = tensor
    return named


def _block_to_transformers(name: str, tensor: Tensor, stack: str) -> dict[str, Tensor]:
    _, number, rest = name.split(".", 2)
    module, _, kind = rest.rpartition(".")
    if module == "attn.qkv":
        return {f"{stack}.{number}.{theirs}.{kind}": part for theirs, part in zip(TRANSFORMERS_QKV[0], tensor.chunk(3), strict=True)}
    return {f"{stack}.{number}.{TRANSFORMERS_BLOCK[module][0]}.{kind}": tensor}
