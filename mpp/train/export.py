"""The encoder outside its run: `encoder/model.safetensors` and `encoder/config.json`, in timm's own format.

timm.create_model("local-dir:RUN/encoder", pretrained=True)
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mpp.config import ModelConfig
from mpp.errors import CheckpointError
from mpp.files import write_atomically
from mpp.model.encoder import build_encoder, timm_arguments
from mpp.train.commit import newest_commit, read_config, read_tensors

PREFIX = "encoder.vit."  # of the encoder's parameters inside the pretraining model


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder with what it takes to use it."""

    net: nn.Module  # timm's model without its classifier, in eval mode
    model: ModelConfig | None  # None: not an architecture that mpp trains
    image_size: int  # pixels a side it was trained at
    mean: tuple[float, float, float]  # of the input normalisation, colours in 0..1
    std: tuple[float, float, float]
    source: str  # what the weights are, for tables and logs
    digest: str  # sha256 of architecture and weights, hexadecimal
    fresh: Callable[[int], nn.Module]  # seed -> the same architecture at random initialisation


def digest_of(architecture: dict, weights: Mapping[str, Tensor]) -> str:
    """sha256 over the architecture and the name, shape and float32 bytes of every weight: the same for the same encoder in any file."""
    found = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name in sorted(weights):
        found.update(f"{name} {tuple(weights[name].shape)}".encode())
        found.update(weights[name].detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def write_encoder(folder: Path, weights: dict[str, Tensor], model: ModelConfig, mean: tuple, std: tuple, source: str) -> None:
    """Write float32 `weights` (names as timm's) with their config; the folder's files are replaced one by one, each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    width = weights["patch_embed.proj.weight"].shape[0]
    config = {
        "architecture": model.arch,
        "num_classes": 0,
        "num_features": width,
        "global_pool": "token" if model.class_token else "avg",
        "model_args": {key: value for key, value in timm_arguments(model).items() if key != "num_classes"},
        "pretrained_cfg": {
            "input_size": [3, model.image_size, model.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "mpp": {"model": model.model_dump(mode="json"), "source": source},
    }
    save_file(
        {name: tensor.float().contiguous() for name, tensor in weights.items()},
        str(folder / "model.safetensors.tmp"),
        metadata={"format": "pt"},
    )
    (folder / "model.safetensors.tmp").replace(folder / "model.safetensors")
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def read_encoder(path: str | Path) -> LoadedEncoder:
    """The encoder of a run (its newest commit) or of an exported encoder/ folder.  Raises CheckpointError."""
    folder = Path(path)
    if (folder / "model.safetensors").exists():
        try:
            about = json.loads((folder / "config.json").read_text())
            model = ModelConfig.model_validate_json(json.dumps(about["mpp"]["model"]))
            weights = load_file(str(folder / "model.safetensors"))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} is not an encoder folder that mpp wrote ({error}); give a run folder or its encoder/ folder"
            ) from error
        mean, std, source = about["pretrained_cfg"]["mean"], about["pretrained_cfg"]["std"], about["mpp"]["source"]
    else:
        commit = newest_commit(folder)
        if commit is None:
            raise CheckpointError(
                f"encoder={path} holds neither checkpoints/*/COMMIT.json nor model.safetensors; give a run folder with a checkpoint"
            )
        commit.verify()
        config = read_config(commit)
        model, mean, std = config.model, config.data.mean, config.data.std
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors(commit, "weight/" + PREFIX).items()}
        source = f"{folder.name} at {commit.samples_seen} samples"
    encoder = build_encoder(model, seed=0)
    try:
        encoder.vit.load_state_dict({name: torch.as_tensor(tensor) for name, tensor in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {path} do not fit its own model section: {error}") from error
    net, architecture = encoder.vit.eval(), model.model_dump(mode="json")
    fresh = lambda seed: build_encoder(model, seed).vit
    digest = digest_of(architecture, net.state_dict())
    return LoadedEncoder(net, model, model.image_size, tuple(mean), tuple(std), source, digest, fresh)
