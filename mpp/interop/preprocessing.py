"""What becomes of an image before the encoder sees it, as each outside tells it: the short side to the resolution, the centre square, bicubic."""

from collections.abc import Sequence
from typing import Any


def timm_preprocessing(size: tuple[int, int], mean: Sequence[float], std: Sequence[float], crop: float) -> dict[str, Any]:
    """Of timm's pretrained_cfg.  size: (height, width); crop: the share of the short side."""
    return {"input_size": [3, *size], "interpolation": "bicubic", "crop_pct": crop, "mean": list(mean), "std": list(std)}


def transformers_preprocessing(side: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """preprocessor_config.json."""
    return {
        "image_processor_type": "BitImageProcessor",  # ViTImageProcessor squeezes images into a square
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def worded_preprocessing(side: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """For people."""
    crop, interpolation = "centre square of the short side", "bicubic, antialiased"
    return {"resolution": side, "crop": crop, "interpolation": interpolation, "mean": list(mean), "std": list(std)}
