"""A new run that begins from another's weights (init_from): another run's, or those of any plain ViT that mpp reads."""

import os
from pathlib import Path

import numpy as np
import torch

from mpp.config.pretrain import PretrainConfig
from mpp.config.sections import ModelConfig
from mpp.errors import ConfigError
from mpp.interop.encoder_folder import PREFIX
from mpp.interop.read_encoder import read_encoder
from mpp.recipe.model import PretrainingModel
from mpp.text import say
from mpp.train.checkpoint import check_fit
from mpp.train.commit import read_config, read_tensors, whole_commit


def initialise_from(model: PretrainingModel, config: PretrainConfig) -> None:
    """The newest weights of another run, or those of any plain ViT that mpp reads (config.init_from): the encoder, which must fit, and of the
    rest what has the same name and shape."""
    source, notes = config.init_from or "", list[str]()
    theirs_was: ModelConfig | None
    commit = whole_commit(Path(source))
    if commit is not None and commit.record.get("program") != "finetune":
        weights, where, data = read_tensors(commit, "weight/"), str(commit.folder), read_config(commit).data
        trained_with, theirs_was = (data.mean, data.std), read_config(commit).model
    else:
        loaded = read_encoder(source)
        theirs, ours = ([m.num_heads for m in net.modules() if hasattr(m, "num_heads")] for net in (loaded.net, model.encoder.vit))
        if theirs and theirs[0] != ours[0]:  # weights alone would fit
            raise ConfigError(
                f"init_from={source} has {theirs[0]} attention heads a block and the model {ours[0]}; set model.heads={theirs[0]}"
            )
        if loaded.decoder_heads and config.decoder.name == "transformer" and loaded.decoder_heads != config.decoder.heads:
            raise ConfigError(
                f"init_from={source} has a decoder of {loaded.decoder_heads} attention heads; set decoder.heads={loaded.decoder_heads}"
            )
        if loaded.norm_eps is not None:
            notes.append(f"its norms have eps={loaded.norm_eps:g}, here they have 1e-6")
        weights = {PREFIX + name: tensor for name, tensor in loaded.net.state_dict().items()}
        weights |= {f"decoder.{name}": tensor for name, tensor in loaded.decoder.items()}
        where, trained_with, theirs_was = source, (loaded.mean, loaded.std), loaded.model
    if theirs_was and theirs_was.position == "rotary" and theirs_was.rotary_frequencies != config.model.rotary_frequencies:
        notes.append(
            f"it was trained with model.rotary_frequencies={_word(theirs_was.rotary_frequencies)}, here they are "
            f"{_word(config.model.rotary_frequencies)}"
        )
    own = model.state_dict()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # fixed positions, and scales that stay at 1, are the new model's own
            if name in weights and not (
                weights[name].shape == own[name].shape and torch.allclose(weights[name].float(), own[name], atol=1e-3)
            ):
                key = "model.layer_scale=1" if ".gamma_" in name else "model.position=learned"
                notes.append(f"its {name} is another and is left out; {key} would take it")
            weights[name] = own[name]
    check_fit(
        {n: w for n, w in weights.items() if n.startswith(PREFIX)}, {n: w.shape for n, w in own.items() if n.startswith(PREFIX)}, where
    )
    taken = {n for n in own if n in weights and weights[n].shape == own[n].shape}
    model.load_state_dict({n: weights[n] if n in taken else own[n] for n in own})
    if os.environ.get("RANK", "0") == "0":
        afresh = len(own) - len(taken)
        say(
            f"weights from {where}: the encoder's and {sum(not n.startswith(PREFIX) for n in taken)} further tensors; {afresh} begin afresh"
        )
        if not np.allclose(trained_with, (config.data.mean, config.data.std), atol=1e-3):
            notes.append(
                f"those weights were trained with data.mean={list(trained_with[0])} data.std={list(trained_with[1])}, this run has others"
            )
        for note in notes:
            say(f"note: {note}")


def _word(frequencies: tuple[float, float] | None) -> str:
    return "null" if frequencies is None else str(list(frequencies))
