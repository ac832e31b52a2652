"""An encoder as a folder of transformers: ViTModel, or ViTMAEForPreTraining with its decoder.  Written without that library, which need not be here.

What those classes cannot express is refused with the reason.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpp.base.errors import ConfigError
from mpp.config.pretrain import PretrainConfig
from mpp.interop.foreign_names import decoder_to_transformers, vit_to_transformers
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.model.tokens import class_tokens_of, sincos_positions

BLOCK = r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
EXPRESSIBLE = re.compile(rf"cls_token|pos_embed|(patch_embed\.proj|norm)\.(weight|bias)|{BLOCK}")
BEYOND = {  # what a tensor of this name stands for
    "reg_token": "registers",
    "relative_position": "relative positions",
    "rel_pos": "relative positions",
    "rope": "rotary positions",
    "norm_pre": "a norm before its blocks",
    "fc_norm": "its final norm behind the pooling",
    "ls1": "layer scale",
    "gamma": "layer scale",
    "q_norm": "norms of queries and keys",
}


def refuse_vit(encoder: LoadedEncoder) -> None:
    """Raises ConfigError with the reason where a transformers ViTModel is another function than this encoder."""
    net: Any = encoder.net
    weights = net.state_dict()
    odd = [name for name in weights if not EXPRESSIBLE.fullmatch(name)]
    reasons = [words for part, words in BEYOND.items() if any(part in name for name in odd)]
    if odd and not reasons:
        reasons.append(f"the tensor {odd[0]}")
    if (count := class_tokens_of(net)) > 1:
        reasons = [f"{count} class tokens", *(words for words in reasons if words != "registers" or count < net.num_prefix_tokens)]
    if getattr(net, "rope", None) is not None:
        reasons.append("rotary positions")
    if type(net) is not VisionTransformer:
        reasons.insert(0, f"the architecture of timm's {type(net).__name__}")
    elif "cls_token" not in weights or "norm.weight" not in weights:
        reasons.append("no class token" if "cls_token" not in weights else "no final norm")
    elif "pos_embed" not in weights:
        reasons.append("no positions")
    elif weights["pos_embed"].shape[1] == net.patch_embed.num_patches:
        reasons.append("a class token without a position")
    elif len({net.patch_embed.img_size[0], net.patch_embed.img_size[1]}) != 1:
        reasons.append("images that are not square")
    elif any(type(module) is not nn.GELU or module.approximate != "none" for name, module in net.named_modules() if name.endswith(".act")):
        reasons.append("another activation than gelu")
    if reasons:
        raise ConfigError(
            f"{encoder.source} has {', '.join(dict.fromkeys(reasons))}, which transformers' ViTModel cannot express; take --to timm or --to safetensors"
        )


def refuse_vit_mae(encoder: LoadedEncoder, config: PretrainConfig | None) -> None:
    """As `refuse_vit`, of ViTMAEForPreTraining; config: of the run whose encoder it is, None where it is no run's."""
    if config is None:
        raise ConfigError(
            f"{encoder.source} comes without a decoder; --to transformers-mae takes a run folder, --to transformers the encoder alone"
        )
    refuse_vit(encoder)
    unlike = [
        f"{key}={found}"
        for key, found, wanted in [
            ("mask.name", config.mask.name, "random"),
            ("corruption.name", config.corruption.name, "drop"),
            ("decoder.name", config.decoder.name, "transformer"),
            ("decoder.position", getattr(config.decoder, "position", "sincos2d"), "sincos2d"),
            ("decoder.tokens", getattr(config.decoder, "tokens", "hidden"), "hidden"),
            ("target.name", config.target.name, "pixels"),
            ("target.loss", getattr(config.target, "loss", "l2"), "l2"),
        ]
        if found != wanted
    ]
    if unlike:
        raise ConfigError(f"{encoder.source} was trained with {', '.join(unlike)}, and ViTMAEForPreTraining is MAE; take --to transformers")


def vit_files(encoder: LoadedEncoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a ViTModel.

    Its pooler, which AutoModel adds and would draw at random, is the identity: `pooler_output` is the normalised class token.
    """
    width = encoder.net.embed_dim
    pooler = {"pooler.dense.weight": torch.eye(int(width)), "pooler.dense.bias": torch.zeros(int(width))}  # type: ignore[arg-type]
    config = _vit_config(encoder) | {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "pooler_act": "linear",
        "pooler_output_size": width,
    }
    return config, vit_to_transformers(encoder.net.state_dict()) | pooler


def vit_mae_files(encoder: LoadedEncoder, run: PretrainConfig, decoder: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a ViTMAEForPreTraining.  decoder: under our names."""
    made, target, mask, grid = run.decoder, run.target, run.mask, run.model.image_size // run.model.patch_size
    assert made.name == "transformer" and target.name == "pixels" and mask.name == "random"  # refuse_vit_mae
    fixed = sincos_positions(made.width, (grid, grid))
    positions = torch.cat([torch.zeros(1, made.width), fixed])[None]
    config = _vit_config(encoder) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": made.width,
        "decoder_num_hidden_layers": made.depth,
        "decoder_num_attention_heads": made.heads,
        "decoder_intermediate_size": 4 * made.width,
        "mask_ratio": mask.ratio,
        "norm_pix_loss": target.normalise,
    }
    return config, vit_to_transformers(encoder.net.state_dict(), "vit.") | decoder_to_transformers(decoder, positions)


def _vit_config(encoder: LoadedEncoder) -> dict[str, Any]:
    net: Any = encoder.net
    return {
        "hidden_size": net.embed_dim,
        "num_hidden_layers": len(net.blocks),
        "num_attention_heads": net.blocks[0].attn.num_heads,
        "intermediate_size": net.blocks[0].mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": net.norm.eps,
        "image_size": encoder.image_size,
        "patch_size": net.patch_embed.patch_size[0],
        "num_channels": 3,
        "qkv_bias": net.blocks[0].attn.qkv.bias is not None,
        "dtype": "float32",
        "mpp": {"source": encoder.source},
    }
