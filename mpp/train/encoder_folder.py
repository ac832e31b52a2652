"""The encoder outside its run: `encoder/model.safetensors` and `encoder/config.json`, in timm's own format; and encoders read from anywhere.

timm.create_model("local-dir:RUN/encoder", pretrained=True)
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from mpp.config import ModelConfig
from mpp.errors import CheckpointError
from mpp.files import write_atomically
from mpp.model.encoder import timm_arguments
from mpp.text import say
from mpp.train.commit import newest_commit, read_config, read_tensors
from mpp.train.foreign_encoder import TIMM, WEIGHTS, open_file, open_folder, open_timm, read_json, read_weights
from mpp.train.loaded_encoder import LoadedEncoder, load_plain

PREFIX = "encoder.vit."  # of the encoder's parameters inside the pretraining model


def write_encoder(folder: Path, weights: dict[str, Tensor], model: ModelConfig, mean: tuple, std: tuple, source: str) -> None:
    """Write float32 `weights` (names as timm's) with their config; the folder's files are replaced one by one, each whole."""
    about = {"model": model.model_dump(mode="json"), "source": source}
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / "model.safetensors", weights, {})
    write_json(folder / "config.json", timm_config(model.arch, timm_arguments(model), model.image_size, mean, std, about))


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A whole safetensors file; floating-point tensors as float32."""
    tensors = {name: (tensor.float() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in weights.items()}
    write_atomically(path, save(tensors, metadata={"format": "pt", **metadata}))


def write_json(path: Path, tree: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(tree, indent=2) + "\n").encode())


def timm_config(
    name: str,
    arguments: Mapping[str, Any],
    image_size: int,
    mean: tuple,
    std: tuple,
    about: dict[str, Any],
    first_conv: str = "patch_embed.proj",
    classifier: str | tuple[str, ...] = "head",
    fixed_input_size: bool = True,
) -> dict[str, Any]:
    """config.json of timm's local-dir format; about: what only mpp reads."""
    return {
        "architecture": name,
        "num_classes": 0,
        "global_pool": arguments.get("global_pool"),
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes"},
        "pretrained_cfg": {
            "input_size": [3, image_size, image_size],
            "fixed_input_size": fixed_input_size,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": first_conv,
            "classifier": classifier,
        },
        "mpp": about,
    }


def read_encoder(source: str | Path, *, quiet: bool = False) -> LoadedEncoder:
    """The encoder of a run (its newest commit), an exported folder or file, `timm:NAME`, or another project's checkpoint.

    What was assumed or left out is said on stderr, unless `quiet`.  Raises CheckpointError, ConfigError.
    """
    loaded = _open(str(source))
    if not quiet and os.environ.get("RANK", "0") == "0":
        for note in loaded.notes:
            say(f"note: {source}: {note}", error=True)
    return loaded


def _open(source: str) -> LoadedEncoder:
    path = Path(source)
    if source.startswith(TIMM):
        return open_timm(source)
    if path.is_file():
        return open_file(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{source} is neither a folder nor a file; give a run, an encoder/ folder, a checkpoint of weights, or {TIMM}NAME for one of timm's"
        )
    if (path / "encoder.safetensors").exists():
        return open_file(path / "encoder.safetensors")
    if any((path / name).exists() for name in WEIGHTS):
        about = read_json(path / "config.json")
        return _open_own(path, about) if "model" in (about.get("mpp") or {}) else open_folder(path)
    commit = newest_commit(path)
    if commit is None:
        raise CheckpointError(
            f"{source} holds neither checkpoints/*/COMMIT.json nor {', '.join(WEIGHTS)}; give a run folder with a checkpoint, an encoder/ "
            f"folder, a checkpoint of weights, or {TIMM}NAME for one of timm's"
        )
    if commit.record.get("program") == "finetune":
        return _open(str(path / "encoder"))  # its weights, or their average, as the run chose
    commit.verify()
    config = read_config(commit)
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors(commit, "weight/" + PREFIX).items()}
    words = f"{path.name} at {commit.samples_seen} samples"
    return _fitting(path, config.model, weights, config.data.mean, config.data.std, words)


def _open_own(folder: Path, about: dict[str, Any]) -> LoadedEncoder:
    """A folder that write_encoder wrote."""
    weights, _ = read_weights(folder / "model.safetensors")
    try:
        model = ModelConfig.model_validate_json(json.dumps(about["mpp"]["model"]))
        mean, std, source = about["pretrained_cfg"]["mean"], about["pretrained_cfg"]["std"], about["mpp"]["source"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is not an encoder folder that mpp wrote ({error}); give a run folder or its encoder/ folder"
        ) from error
    return _fitting(folder, model, weights, mean, std, source)


def _fitting(path: Path, model: ModelConfig, weights: Mapping[str, Tensor], mean: Any, std: Any, source: str) -> LoadedEncoder:
    try:
        return load_plain(model, weights, mean, std, source)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {path} do not fit its own model section: {error}") from error
