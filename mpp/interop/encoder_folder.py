"""The encoder outside its run: `encoder/model.safetensors` and `encoder/config.json`, in timm's own format; a classifier likewise, with its head.

timm.create_model("local-dir:RUN/encoder", pretrained=True)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mpp.config.sections import ModelConfig
from mpp.disk.files import seal_of, sha256_of
from mpp.interop.preprocessing import timm_preprocessing
from mpp.interop.weight_files import write_json, write_weights
from mpp.model.encoder import timm_arguments

WEIGHTS_FILE = "model.safetensors"
PREFIX = "encoder.vit."  # of the encoder's parameters inside the pretraining model
PREFIXES = {"encoder": "weight/" + PREFIX, "teacher": "ema/vit."}  # of each network's tensors in a checkpoint of pretraining


def write_encoder(
    folder: Path,
    weights: dict[str, Tensor],
    model: ModelConfig,
    mean: tuple,
    std: tuple,
    source: str,
    commit: str | None = None,
    pretraining: Mapping[str, Any] | None = None,
) -> None:
    """Write float32 `weights` (names as timm's) with their config.  source: what they are, in words; commit: the seal of the one they are of;
    pretraining: as `pretraining_of` gives it."""
    about = {"model": model.model_dump(mode="json"), "class_tokens": model.class_tokens, "source": source, "commit": commit}
    about |= {"pretraining": dict(pretraining)} if pretraining else {}
    write_folder(folder, weights, timm_config(model.arch, timm_arguments(model), (model.image_size,) * 2, mean, std, about))


def write_folder(folder: Path, weights: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """model.safetensors, then config.json with a seal over both (config["mpp"]), so that a half-written or damaged folder is noticed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS_FILE, weights, {})
    config = config | {"mpp": config["mpp"] | {"weights_sha256": sha256_of(folder / WEIGHTS_FILE)}}
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
    return (
        None if about["weights_sha256"] == sha256_of(folder / WEIGHTS_FILE) else f"{WEIGHTS_FILE} is not what config.json was written for"
    )


def is_written(folder: Path, commit: str) -> bool:
    """Whether the folder is there, whole, and of the commit with this seal."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return config["mpp"]["commit"] == commit and fault_of(folder, config) is None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_classifier(
    folder: Path,
    weights: Mapping[str, Tensor],
    arch: str,
    arguments: Mapping[str, Any],
    classes: Sequence[str],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    test_crop: float,
    about: Mapping[str, Any],
) -> None:
    """A fine-tuned model with its head: timm has the classes' names in `pretrained_cfg["label_names"]`.

    weights: float32, with timm's names, buffers included.  arguments: of timm.create_model.  about: where they come from.
    """
    arguments = {key: value for key, value in arguments.items() if key != "drop_path_rate"}  # of training only
    fixed = "img_size" in arguments
    config = timm_config(arch, arguments, size, mean, std, dict(about), fixed_input_size=fixed, classes=classes, crop=test_crop)
    write_folder(folder, {name: tensor.detach().cpu() for name, tensor in weights.items()}, config)


def timm_config(
    name: str,
    arguments: Mapping[str, Any],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    about: dict[str, Any],
    *,
    fixed_input_size: bool = True,
    classes: Sequence[str] = (),
    crop: float = 1.0,
    **ends: str | tuple[str, ...],
) -> dict[str, Any]:
    """config.json of timm's local-dir format.

    size: (height, width).  about: what only mpp reads.  classes: of its head, where it has one.  ends: names of its first and last layers.
    """
    traits = timm_preprocessing(size, mean, std, crop) | {"fixed_input_size": fixed_input_size, "num_classes": len(classes)}
    if classes:
        traits |= {"crop_mode": "center", "label_names": list(classes)}
    else:
        traits |= {"pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head", **ends}
    return {
        "architecture": name,
        "num_classes": len(classes),
        "global_pool": arguments.get("global_pool", "avg" if classes else None),
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes"},
        **({"label_names": list(classes)} if classes else {}),
        "pretrained_cfg": traits,
        "mpp": about,
    }
