"""Features for TensorBoard's projector: a table of numbers, a table of words, and a sheet of small pictures, found by a config beside the event files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from mpp.base.text import printable
from mpp.disk.files import write_atomically, writing

MOST = 1000  # images: what a browser turns without effort
LEAST_SIDE, MOST_SIDE = 16, 64  # pixels of a small picture: a sheet may be 8,192 wide


def write_projector(folder: Path, name: str, values: np.ndarray, words: Sequence[str], images: torch.Tensor) -> None:
    """values: float32 [n, D]; words: of each image, such as its class; images: uint8 [n, 3, H, W].  folder: that of the event files."""
    place = folder / "projector"
    place.mkdir(exist_ok=True)
    table = "".join("\t".join(f"{value:.5g}" for value in row) + "\n" for row in values)
    write_atomically(place / "features.tsv", table.encode())
    write_atomically(place / "words.tsv", "".join(printable(word.replace("\t", " ")) + "\n" for word in words).encode())
    side = min(MOST_SIDE, max(LEAST_SIDE, *images.shape[-2:]))
    columns = int(np.ceil(len(images) ** 0.5))
    sheet = Image.new("RGB", (columns * side, columns * side))
    for number, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        sheet.paste(
            Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR), (number % columns * side, number // columns * side)
        )
    with writing(place / "images.png"):
        sheet.save(place / "images.png")
    config = ProjectorConfig()
    embedding = config.embeddings.add(tensor_name=name, tensor_path="projector/features.tsv", metadata_path="projector/words.tsv")
    embedding.sprite.image_path = "projector/images.png"
    embedding.sprite.single_image_dim.extend([side, side])
    write_atomically(folder / "projector_config.pbtxt", text_format.MessageToString(config).encode())
