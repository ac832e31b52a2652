"""Weights and what is said of them, as files: safetensors, torch's own format, and JSON beside them."""

import argparse
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mpp.base.errors import CheckpointError
from mpp.disk.files import write_atomically

# What training code keeps beside weights, such as `args` of MAE's and DINO's own checkpoints: a bag of names, whose making runs nothing.
HARMLESS: list[Any] = [argparse.Namespace]
WRAPPERS = ("model", "state_dict", "teacher")  # keys under which training code keeps the weights of what one would use


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata of a safetensors file; nothing in the file is executed.  Raises CheckpointError."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        with file.open("rb") as opened:
            if opened.read(2) not in (
                b"PK",
                b"\x80\x02",
            ):  # torch's formats, a zip archive or a bare pickle: its unpickler stumbles over others
                raise ValueError("neither of torch's formats")
        with torch.serialization.safe_globals(HARMLESS):
            tree = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{file} cannot be read as weights: it holds a {named[1]} beside them, and from a file of others (weights_only=True) tensors, "
                "numbers and texts alone are read; if you trust whoever made it, keep the weights alone: "
                f"python -c \"import torch; torch.save(torch.load({str(file)!r}, weights_only=False)['model'], 'weights.pth')\""
            ) from error
        raise CheckpointError(
            f"{file} cannot be read as weights ({' '.join(str(error).split())[:160]}); give a .safetensors file, or one that torch.load opens with "
            "weights_only=True"
        ) from error
    for _ in range(2):
        key = next((key for key in WRAPPERS if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping)), None)
        tree = tree if key is None else tree[key]
    tensors = {name: tensor for name, tensor in tree.items() if isinstance(tensor, Tensor)} if isinstance(tree, Mapping) else {}
    if not tensors:
        raise CheckpointError(
            f"{file} holds no tensors by name, at its top or under {', '.join(WRAPPERS)}; give a file with a model's state dict"
        )
    return tensors, {}


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A whole safetensors file, the same bytes for the same content; floating-point tensors as float32."""
    tensors = {name: (tensor.float() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in weights.items()}
    write_atomically(path, _in_order(save(tensors, metadata={"format": "pt", **metadata})))


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted, which the library writes in another order each time."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % 8)  # tensors begin at a multiple of 8 bytes
    return len(words).to_bytes(8, "little") + words + data[8 + size :]


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it says what the weights beside it are") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no mapping; it says what the weights beside it are")
    return found


def write_json(path: Path, tree: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(tree, indent=2) + "\n").encode())
