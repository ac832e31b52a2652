"""A new run that begins from another's weights (init_from): another run's, or those of any plain ViT that mpp reads.

Another image or patch size is no obstacle: positions and patch embedding are resampled by the rule of fine-tuning (model/classifier.py).
Whatever else makes it another model is refused, with the words that build the right one (interop/same_model.py).
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mpp.base.errors import ConfigError
from mpp.base.text import say
from mpp.config.pretrain import PretrainConfig
from mpp.interop.encoder_folder import PREFIX
from mpp.interop.foreign_encoder import RANDOM, TIMM
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.interop.read_encoder import read_encoder
from mpp.interop.same_model import refuse_another
from mpp.model.backbone import with_final_norm
from mpp.model.classifier import resize_positions
from mpp.model.tokens import class_tokens_of, resized_positions, sincos_positions
from mpp.recipe.model import PretrainingModel
from mpp.recipe.places import Grid
from mpp.remote.urls import is_url
from mpp.train.commit import Commit, read_config, read_tensors, whole_commit
from mpp.train.copies import local

PLACES, EMBEDDING, DECODER_PLACES = f"{PREFIX}pos_embed", f"{PREFIX}patch_embed.proj.weight", "decoder.pos_embed"
POOL = "attn_pool"  # timm's pooling by attention, behind the tokens: no part of an encoder here
MAE_DECODER = {"width": 512, "heads": 16}  # of the published ones (MAE, the authors' models_mae.py)
SHAPING = ("width", "depth", "heads", "mlp_ratio", "memory")  # keys of a decoder by which its weights are others
NAMED = 4  # tensors that are said by name


def initialise_from(model: PretrainingModel, config: PretrainConfig) -> str:
    """The newest weights of another run (also in a store, s3://...), or those of any plain ViT that mpp reads (config.init_from): the encoder, which must be the same but
    for image and patch size, and of the rest what has the same name and shape.  Says what became of each tensor.

    Returns the encoder's sha256.  Raises ConfigError, CheckpointError.
    """
    source = config.init_from or ""
    if source.startswith(TIMM) and source.endswith(f"@{RANDOM}"):
        raise ConfigError(
            f"init_from={source} has no weights to begin from; give {source.removesuffix(f'@{RANDOM}')} for timm's published ones, or leave "
            "init_from out, which begins at random"
        )
    commit = whole_commit(Path(local(source)))
    if commit is not None and commit.record.get("program") == "finetune":
        commit = None  # its encoder/ folder is what it chose
    loaded = read_encoder(source, commit=commit)
    weights, resampled, notes = _encoder(loaded, model, config)
    decoder = _decoder_section(commit, loaded)
    weights |= _rest(commit, loaded, model, config, resampled)

    own = model.state_dict()
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}  # positions, scales: the new model's own
    taken = {name for name in own if name in weights and name not in fixed and weights[name].shape == own[name].shape}
    notes += _decoder_notes(source, decoder, config, taken)
    model.load_state_dict({name: weights[name] if name in taken else own[name] for name in own})
    if os.environ.get("RANK", "0") == "0":
        where = (f"{source} at step {commit.step}" if is_url(source) else str(commit.folder)) if commit else source
        say(_account(where, taken, resampled, fixed, own.keys() - taken - fixed, weights.keys() - taken - fixed))
        if not np.allclose((loaded.mean, loaded.std), (config.data.mean, config.data.std), atol=1e-3):
            notes.append(
                "those weights were trained with another data.mean and data.std; to go on with theirs give "
                f"'data.mean={_listed(loaded.mean)}' 'data.std={_listed(loaded.std)}'"
            )
        for note in notes:
            say(f"note: {note}")
    return loaded.digest


def _encoder(loaded: LoadedEncoder, model: PretrainingModel, config: PretrainConfig) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Its tensors by the names of the pretraining model, at the sizes of ours; how those were resampled that were; what else to tell people."""
    theirs: Any = loaded.net
    ours: Any = model.encoder.vit
    if not isinstance(theirs, VisionTransformer | Eva):
        raise ConfigError(
            f"init_from={config.init_from} is a {type(theirs).__name__}, which mpp does not train; give weights of a plain Vision Transformer, "
            f"such as {TIMM}vit_base_patch16_224"
        )
    theirs, beside = with_final_norm(theirs), {}
    if getattr(theirs, POOL, None) is not None:
        beside = {f"{PREFIX}{POOL}.{name}": tensor for name, tensor in theirs.attn_pool.state_dict().items()}
        theirs.attn_pool = None
    patch, grid, positions = tuple(theirs.patch_embed.patch_size), tuple(theirs.patch_embed.grid_size), theirs.pos_embed
    new_patch, new_grid = tuple(ours.patch_embed.patch_size), tuple(ours.patch_embed.grid_size)
    if type(theirs.patch_embed) is not PatchEmbed and (patch, grid) != (new_patch, new_grid):
        raise ConfigError(
            f"init_from={config.init_from} has a {type(theirs.patch_embed).__name__} of {_by(patch)} pixels before its blocks, which is not "
            f"resampled; set model.image_size={theirs.patch_embed.img_size[0]} model.patch_size={patch[0]}, or give weights of a plain Vision Transformer"
        )
    resize_positions(theirs, tuple(ours.patch_embed.img_size), None if patch == new_patch else new_patch[0])
    refuse_another(theirs, loaded.architecture[0].partition(".")[0], ours, config.model, f"init_from={config.init_from}")

    resampled = {}
    if patch != new_patch:
        resampled[EMBEDDING] = f"patches of {_by(patch)} to {_by(new_patch)} pixels, by FlexiViT's pseudo-inverse"
    if grid != new_grid and positions is not None and ours.pos_embed.requires_grad:
        resampled[PLACES] = _moved(grid, new_grid)
    weights = {PREFIX + name: tensor for name, tensor in theirs.state_dict().items()}
    notes = _encoder_notes(loaded, ours, config)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and name in weights:
            wanted = parameter if name != PLACES else _fixed_positions(positions, grid)
            found = weights[name] if name != PLACES else positions
            if not torch.allclose(found.float(), wanted, atol=1e-3):
                key = "model.layer_scale=1" if ".gamma_" in name else "model.position=learned"
                notes.append(f"its {name} is another and is left out; {key} would take it")
    return weights | beside, resampled, notes


def _fixed_positions(positions: Tensor, grid: Grid) -> Tensor:
    """What positions [1, P + N, D] of this grid are where they are the fixed sine-cosine ones: none before the patches."""
    fixed = sincos_positions(positions.shape[-1], grid)
    return torch.cat([fixed.new_zeros(positions.shape[1] - len(fixed), fixed.shape[1]), fixed])[None]


def _encoder_notes(loaded: LoadedEncoder, ours: Any, config: PretrainConfig) -> list[str]:
    """In what the weights, taken as they are, become another function."""
    notes, net = list[str](), loaded.net
    theirs_eps, eps = (getattr(norm, "eps", None) for norm in (net.norm, ours.norm))
    if theirs_eps != eps:
        notes.append(f"its norms have eps={theirs_eps:g}, here they have {eps:g}")
    if (there := class_tokens_of(net)) != (here := class_tokens_of(ours)):
        notes.append(f"the first {there} of its tokens stood for the whole image, here {here}; model.class_tokens={there} is as it was")
    was, now = loaded.model, config.model
    if was and was.position == "rotary" and was.rotary_frequencies != now.rotary_frequencies:
        notes.append(
            f"it was trained with model.rotary_frequencies={_word(was.rotary_frequencies)}, here they are {_word(now.rotary_frequencies)}"
        )
    return notes


def _rest(
    commit: Commit | None, loaded: LoadedEncoder, model: PretrainingModel, config: PretrainConfig, resampled: dict[str, str]
) -> dict[str, Tensor]:
    """What is not of the encoder; learned positions of a decoder of the same kind at our grid, which is noted in `resampled`."""
    if commit is None:
        return {f"decoder.{name}": tensor for name, tensor in loaded.decoder.items()}
    weights = {name: tensor for name, tensor in read_tensors(commit, "weight/").items() if not name.startswith(PREFIX)}
    was = read_config(commit)
    old, new, places = was.model.grid, model.encoder.grid, weights.get(DECODER_PLACES)
    if places is not None and old != new and was.decoder.name == config.decoder.name:
        weights[DECODER_PLACES] = resized_positions(places, old, new)
        resampled[DECODER_PLACES] = _moved(old, new)
    return weights


def _decoder_section(commit: Commit | None, loaded: LoadedEncoder) -> dict[str, Any]:
    """What is known of its decoder under the keys of the decoder section; empty: it has none, or nothing of it is known."""
    if commit is not None:
        return read_config(commit).decoder.model_dump()
    if not loaded.decoder:
        return {}
    depth = 1 + max(int(name.split(".")[1]) for name in loaded.decoder if name.startswith("blocks."))
    heads = {"heads": loaded.decoder_heads} if loaded.decoder_heads else {}
    return {"name": "transformer", "width": len(loaded.decoder["embed.weight"]), "depth": depth, **heads}


def _decoder_notes(source: str, theirs: Mapping[str, Any], config: PretrainConfig, taken: Collection[str]) -> list[str]:
    """What to say of a decoder of the same kind that is not taken whole.  Raises ConfigError where blocks would be taken with other heads."""
    ours = config.decoder.model_dump()
    if theirs.get("name") != ours["name"]:
        return []
    other = {key: theirs[key] for key in SHAPING if key in theirs and theirs[key] != ours[key]}
    words = " ".join(f"decoder.{key}={value}" for key, value in other.items())
    blocks = any(name.startswith("decoder.blocks.") and ".attn" in name for name in taken)
    if "heads" in other and blocks:  # weights alone would fit
        raise ConfigError(
            f"init_from={source} has a decoder of {other['heads']} attention heads, and here it has {ours['heads']}; set {words}"
        )
    if "heads" not in theirs and blocks and theirs["width"] == MAE_DECODER["width"] and ours["heads"] != MAE_DECODER["heads"]:
        return [
            f"its decoder is taken with decoder.heads={ours['heads']}; a file of weights does not say how many it has, and those that MAE's "
            f"authors published, as wide as this one, have {MAE_DECODER['heads']}"
        ]
    return [f"its decoder is another, of which the weights that do not fit begin afresh; {words} would take all of it"] if other else []


def _account(
    where: str, taken: Collection[str], resampled: Mapping[str, str], fixed: Collection[str], afresh: Collection[str], left: Collection[str]
) -> str:
    """What became of each tensor, in one line."""
    moved = {name: words for name, words in resampled.items() if name in taken}
    encoder = sum(name.startswith(PREFIX) and name not in moved for name in taken)
    parts = [f"weights from {where}", f"as they are: {encoder} tensors of the encoder, {len(taken) - len(moved) - encoder} others"]
    if moved:
        parts.append("resampled: " + "; ".join(f"{name} ({words})" for name, words in moved.items()))
    if fixed:
        parts.append(f"this run's own, fixed: {_names(fixed)}")
    parts.append(f"{len(afresh)} begin afresh" + (f": {_names(afresh)}" if afresh else ""))
    if left:
        parts.append(f"left out of it: {_names(left)}")
    return " | ".join(parts)


def _names(names: Collection[str]) -> str:
    if len(names) <= NAMED:
        return ", ".join(sorted(names))
    counts = Counter(name.removeprefix(PREFIX).partition(".")[0] for name in names)
    return ", ".join(f"{count} of {part}" for part, count in sorted(counts.items()))


def _moved(old: Grid, new: Grid) -> str:
    return f"{_by(old)} to {_by(new)} places, bicubic and antialiased"


def _by(sides: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in sides)


def _listed(values: tuple[float, ...]) -> str:
    return str([float(value) for value in values])


def _word(frequencies: tuple[float, float] | None) -> str:
    return "null" if frequencies is None else str(list(frequencies))
