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

from mpp.config.sections import ModelConfig
from mpp.errors import CheckpointError
from mpp.files import write_atomically
from mpp.interop.foreign_encoder import TIMM, WEIGHTS, open_file, open_folder, open_timm, read_json, read_weights
from mpp.interop.loaded_encoder import LoadedEncoder, load_plain
from mpp.model.encoder import timm_arguments
from mpp.text import say
from mpp.train.commit import Commit, not_finite, read_config, read_tensors, seal_of, sha256_of, some, whole_commit

PREFIX = "encoder.vit."  # of the encoder's parameters inside the pretraining model


def write_encoder(
    folder: Path, weights: dict[str, Tensor], model: ModelConfig, mean: tuple, std: tuple, source: str, commit: str | None = None
) -> None:
    """Write float32 `weights` (names as timm's) with their config.  source: what they are, in words; commit: the seal of the one they are of."""
    about = {"model": model.model_dump(mode="json"), "source": source, "commit": commit}
    write_folder(folder, weights, timm_config(model.arch, timm_arguments(model), model.image_size, mean, std, about))


def write_folder(folder: Path, weights: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """model.safetensors, then config.json with a seal over both (config["mpp"]), so that a half-written or damaged folder is noticed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS[0], weights, {})
    config = config | {"mpp": config["mpp"] | {"weights_sha256": sha256_of(folder / WEIGHTS[0])}}
    write_json(folder / "config.json", config | {"mpp": config["mpp"] | {"seal": _seal(config)}})


def _seal(config: Mapping[str, Any]) -> str:
    return seal_of(dict(config) | {"mpp": {key: value for key, value in config["mpp"].items() if key != "seal"}})


def fault_of(folder: Path, config: Mapping[str, Any]) -> str | None:
    """What of a folder that `write_folder` wrote is no longer as it was; of folders from before there were seals, nothing is known."""
    about = config.get("mpp")
    if not isinstance(about, dict) or not {"seal", "weights_sha256"} & about.keys():
        return None
    if about.get("seal") != _seal(config):
        return "config.json does not fit its own seal"
    return None if about["weights_sha256"] == sha256_of(folder / WEIGHTS[0]) else f"{WEIGHTS[0]} is not what config.json was written for"


def is_written(folder: Path, commit: str) -> bool:
    """Whether the folder is there, whole, and of the commit with this seal."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return config["mpp"]["commit"] == commit and fault_of(folder, config) is None
    except (OSError, ValueError, KeyError, TypeError):
        return False


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


def read_encoder(source: str | Path, *, quiet: bool = False, commit: Commit | None = None) -> LoadedEncoder:
    """The encoder of a run (its newest whole commit), of one checkpoint folder, an exported folder or file, `timm:NAME`, or another project's checkpoint.

    commit: of the run, where the caller has read it.  What was assumed or left out is said on stderr, unless `quiet`.  Raises CheckpointError,
    ConfigError; also for weights that are not finite.
    """
    loaded = _open(str(source), commit)
    tensors = {**loaded.net.state_dict(), **{f"decoder.{name}": tensor for name, tensor in loaded.decoder.items()}}
    if broken := [name for name, tensor in tensors.items() if not_finite(tensor)]:
        raise CheckpointError(
            f"{source} holds numbers that are not finite, in {some(broken)}; give an earlier checkpoint, or another encoder"
        )
    if not quiet and os.environ.get("RANK", "0") == "0":
        for note in loaded.notes:
            say(f"note: {source}: {note}", error=True)
    return loaded


def _open(source: str, commit: Commit | None = None) -> LoadedEncoder:
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
        if fault := fault_of(path, about):
            raise CheckpointError(
                f"{path} is damaged: {fault}; give the command that wrote it again, or the run instead of its encoder/ folder"
            )
        return _open_own(path, about) if "model" in (about.get("mpp") or {}) else open_folder(path)
    commit = commit or whole_commit(path)
    if commit is None:
        raise CheckpointError(
            f"{source} holds neither checkpoints/*/COMMIT.json nor {', '.join(WEIGHTS)}; give a run folder with a checkpoint, an encoder/ "
            f"folder, a checkpoint of weights, or {TIMM}NAME for one of timm's"
        )
    if commit.record.get("program") == "finetune":
        if (path / "COMMIT.json").exists():
            raise CheckpointError(
                f"{source} is a checkpoint of fine-tuning; give its run, {path.parent.parent}, whose encoder/ holds what was chosen"
            )
        return _open(str(path / "encoder"))  # its weights, or their average, as the run chose
    config = read_config(commit)
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors(commit, "weight/" + PREFIX).items()}
    words = f"{commit.folder.parent.parent.name} at {commit.samples_seen} samples"
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
