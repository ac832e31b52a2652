"""An encoder from anywhere, with what it takes to use it, and the digest by which results of one encoder are joined."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpp.config.sections import ModelConfig
from mpp.model.encoder import build_encoder, timm_arguments
from mpp.model.tokens import class_tokens_of
from mpp.recipe.decoders.base import DecoderSection, Given

# What a module computes beyond its weights; drop-out, drop-path and the kind of attention kernel change nothing in eval mode.
FUNCTION = ("eps", "num_heads", "head_dim", "scale", "kernel_size", "stride", "padding", "dilation", "groups", "ceil_mode", "approximate")
NO_FUNCTION = ("Identity", "Dropout", "DropPath", "PatchDropout")


@dataclass(frozen=True)
class LoadedPredictor:
    """The decoder that a run of ours trained its encoder with, where its first block is a feature of the image, too."""

    section: DecoderSection
    given: Given
    net: nn.Module  # a recipe/decoders/base.Predictor, in eval mode

    @property
    def digest(self) -> str:
        """sha256 of what it is built from and of its weights, hexadecimal."""
        about = json.dumps([self.section.model_dump(mode="json"), list(self.given.grid), self.given.prefix])
        return hashlib.sha256((about + weights_digest(self.net.state_dict())).encode()).hexdigest()

    def fresh(self, seed: int) -> "LoadedPredictor":
        """The same at random initialisation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return replace(self, net=self.section.build(self.given).eval())


@dataclass(frozen=True)
class LoadedEncoder:
    net: nn.Module  # timm's model without its classifier, in eval mode
    model: ModelConfig | None  # None: not an architecture that mpp trains
    image_size: int  # pixels a side it was trained at
    mean: tuple[float, float, float]  # of the input normalisation, colours in 0..1
    std: tuple[float, float, float]
    source: str  # what the weights are, for tables and logs
    digest: str  # sha256 of architecture and weights, hexadecimal
    fresh: Callable[[int], nn.Module]  # seed -> the same architecture at random initialisation
    architecture: tuple[str, dict[str, Any]]  # timm.create_model(name, **arguments) builds `net`
    decoder: Mapping[str, Tensor] = field(default_factory=dict)  # that of a foreign MAE, under our decoder's names; empty without one
    decoder_heads: int | None = None  # attention heads of its blocks; None: nothing says
    norm_eps: float | None = None  # of its norms, where that is not what timm builds
    notes: tuple[str, ...] = ()  # what was assumed or left out in reading it
    pretraining: dict[str, Any] | None = (
        None  # recipe, seed and samples seen of the run of ours it is from (interop/pretraining.py); None: not known
    )
    predictor: LoadedPredictor | None = None  # None: the source has none, or is no run of ours


def digest_of(net: nn.Module) -> str:
    """sha256 over what the encoder computes: kinds and constants of its layers; name, shape and float32 bytes of its weights.

    The same for the same encoder in any file; its input size counts by the positions it has.
    """
    layers = [
        (name, type(module).__name__, {key: _plain(value) for key in FUNCTION if (value := getattr(module, key, None)) is not None})
        for name, module in net.named_modules()
        if type(module).__name__ not in NO_FUNCTION
    ]
    several = f"{count} class tokens" if (count := class_tokens_of(net)) > 1 else ""  # which weights alone do not tell from registers
    return hashlib.sha256((json.dumps(layers, sort_keys=True) + several + weights_digest(net.state_dict())).encode()).hexdigest()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over name, shape and float32 bytes of every tensor."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(f"{name} {tuple(weights[name].shape)}".encode())
        found.update(weights[name].detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else [float(part) for part in value] if isinstance(value, tuple | list) else None


def load_plain(model: ModelConfig, weights: Mapping[str, Tensor], mean: Any, std: Any, source: str) -> LoadedEncoder:
    """An encoder that mpp can build.  Raises RuntimeError (torch's) where the weights do not fit `model`."""
    net = build_encoder(model, seed=0).vit
    net.load_state_dict({name: torch.as_tensor(tensor) for name, tensor in weights.items()})
    return LoadedEncoder(
        net.eval(), model, model.image_size, tuple(mean), tuple(std), source, digest_of(net), lambda seed: build_encoder(model, seed).vit,
        (model.arch, timm_arguments(model)),
    )  # fmt: skip
