"""A fine-tuned model outside its run: an encoder/ folder with its head, in timm's own format.

timm.create_model("local-dir:RUN/encoder", pretrained=True) has the classes' names in `pretrained_cfg["label_names"]`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mpp.errors import ConfigError
from mpp.interop.encoder_folder import write_folder
from mpp.interop.loaded_encoder import LoadedEncoder


def architecture_of(loaded: LoadedEncoder) -> tuple[str, dict[str, Any]]:
    """timm's name of an encoder's architecture and the arguments it was made with.  Raises ConfigError where they are not known."""
    arch, arguments = loaded.architecture
    if not arch:
        raise ConfigError(
            f"{loaded.source}: which of timm's architectures it is is not known, so no classifier can be built; export it first"
        )
    return arch, dict(arguments)


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
    write_folder(folder, {name: tensor.detach().cpu() for name, tensor in weights.items()}, config)
