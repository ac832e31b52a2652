"""A fine-tuned model outside its run: an encoder/ folder with its head, in timm's own format.

timm.create_model("local-dir:RUN/encoder", pretrained=True) has the classes' names in `pretrained_cfg["label_names"]`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from mpp.errors import ConfigError
from mpp.files import write_atomically
from mpp.model.encoder import timm_arguments
from mpp.train.export import LoadedEncoder


def architecture_of(loaded: LoadedEncoder) -> tuple[str, dict[str, Any]]:
    """timm's name of an encoder's architecture and the arguments it was made with.  Raises ConfigError where it does not know them."""
    if loaded.model is not None:
        return loaded.model.arch, timm_arguments(loaded.model)
    about = getattr(loaded.net, "pretrained_cfg", None) or {}
    if "architecture" not in about:
        raise ConfigError(
            f"{loaded.source}: a {type(loaded.net).__name__} that does not say which of timm's architectures it is cannot be fine-tuned"
        )
    return about["architecture"], dict(getattr(loaded.net, "_model_args", None) or {})


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
    """weights: float32, with timm's names, buffers included.  arguments: of timm.create_model.  about: where they come from.  Each file is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {key: value for key, value in arguments.items() if key != "drop_path_rate"}  # of training only
    config = {
        "architecture": arch,
        "num_classes": len(classes),
        "global_pool": arguments.get("global_pool", "avg"),
        "model_args": arguments,
        "label_names": list(classes),
        "pretrained_cfg": {
            "input_size": [3, *size],
            "fixed_input_size": "img_size" in arguments,
            "interpolation": "bicubic",
            "crop_pct": test_crop,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": len(classes),
            "label_names": list(classes),
        },
        "mpp": dict(about),
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(folder / "model.safetensors", save(contiguous, metadata={"format": "pt"}))
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
