"""What `import mpp` gives: a pretrained encoder as a torch module, with the preprocessing, the pooling and the extraction that the probes use.

Nothing is computed here: encoders come from interop/read_encoder.py, crops from data/, layers, pooling and tables from transfer/.
Letters: n images, B batch, S pixels a side, P prefix tokens, D width of what is asked for.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mpp.base.errors import BadSample, ConfigError, DataError
from mpp.config.schema import checked
from mpp.data.array_images import SplitName, is_array
from mpp.data.augment import Centre
from mpp.data.class_folders import is_hidden, walk
from mpp.data.crop import cut
from mpp.data.decode import check_header, encoded, storable
from mpp.data.folder_images import FolderImages
from mpp.data.images import LabelledImages
from mpp.data.labelled import open_labelled
from mpp.data.shard_format import MANIFEST
from mpp.interop.foreign_encoder import TIMM
from mpp.interop.loaded_encoder import LoadedEncoder, weights_digest
from mpp.interop.read_encoder import read_encoder
from mpp.model.backbone import Backbone
from mpp.model.normalise import normalise
from mpp.processes.world import World
from mpp.transfer.extraction import extract
from mpp.transfer.extractors import EncoderExtractor
from mpp.transfer.features import FeatureConfig, own_variant
from mpp.transfer.rows import spec_of

Picture = Image.Image | bytes | str | Path


def load_encoder(
    source: str | Path,
    *,
    pooling: Literal["mean", "cls", "both"] = "mean",
    layers: int | Sequence[int] = -1,
    resolution: int | None = None,
    crop: float = 1.0,
    network: Literal["encoder", "teacher"] = "encoder",
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str | torch.device | None = None,
) -> "ImageEncoder":
    """An encoder, frozen and in eval mode.

    source: a run (its newest whole commit), one of its checkpoints, an encoder folder or file, `timm:NAME`, or another project's checkpoint; what is no
    file here and a name of timm's counts as timm's.
    pooling: the mean of the patch tokens, the class token (of several their mean), or both side by side.
    layers: blocks passed, 0 what enters the first, -1 what leaves the last; of several the features stand side by side.
    resolution: pixels a side (None: as pretrained; positions are resampled for another).  crop: the centre square's share of the short side.
    network: "teacher" for the average that a run has learned from.  precision: of matrix products.  device: None for the GPU where there is one.
    Raises CheckpointError, ConfigError.
    """
    there = usable_device(device)
    loaded = read_encoder(_as_timm(source), network=network)
    known = {"pooling": pooling, "resolution": resolution, "crop": crop, "precision": precision}
    asked = checked(FeatureConfig, known | {"layers": (layers,) if isinstance(layers, int) else tuple(layers)})
    return ImageEncoder(loaded, asked, there)


def usable_device(asked: str | torch.device | None) -> torch.device:
    """None: the GPU, if there is one.  Raises ConfigError where torch cannot compute."""
    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # no such name, no driver, a torch without CUDA, no kernels
        why = str(error).strip().split("\n")[0]
        raise ConfigError(f"device={str(asked)!r}: torch cannot compute there ({why}); take device='cpu', or leave it out") from error
    return device


def _as_timm(source: str | Path) -> str | Path:
    import timm

    bare = isinstance(source, str) and not Path(source).exists() and timm.is_model(source.partition("@")[0].partition(".")[0])
    return f"{TIMM}{source}" if bare else source


@dataclass(frozen=True)
class FeatureSet:
    """Features of n images, in the order of their set."""

    values: np.ndarray  # float32 [n, D]
    labels: np.ndarray  # int32 [n]: places in `classes`; -1 for an image without one
    names: list[str]  # of the images within the set: a path, or shard and key
    classes: list[str]  # empty without labels

    def __len__(self) -> int:
        return len(self.values)


class ImageEncoder(nn.Module):
    """Normalised images -> pooled features, as the probes have them.  To fine-tune it: `encoder.requires_grad_(True).train()`."""

    def __init__(self, loaded: LoadedEncoder, asked: FeatureConfig, device: torch.device):
        super().__init__()
        backbone = Backbone(loaded.net)
        own = own_variant(backbone, asked.layers, asked.pooling)
        spec = spec_of(backbone, loaded.digest, loaded, [own], asked)
        self._asked, self._own, self._extractor = asked, own, EncoderExtractor(backbone, spec, device)
        self.backbone = self._extractor.backbone  # its weights are this module's
        self.source: str = loaded.source  # what the weights are, in words
        self.digest: str = loaded.digest  # sha256 of architecture and weights as they were read
        self.image_size: int = spec.resolution  # pixels a side that `forward` takes
        self.mean, self.std = spec.mean, spec.std  # of the input normalisation, colours in 0..1
        self.width: int = len(self._extractor.layout.columns(own))  # D
        self._columns = self._extractor.layout.columns(own)
        self._weights = weights_digest(self.backbone.state_dict())
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks passed, counted from 0."""
        return self._own.layers

    @property
    def pooling(self) -> str:
        return self._own.pooling

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches in an image, of the last of `layers`."""
        if not self.backbone.is_transformer:
            reduction = self.backbone.net.feature_info[self.layers[-1] - 1]["reduction"]
            return (-(-self.image_size // reduction),) * 2
        height, width = self.backbone.patch_size
        return self.image_size // height, self.image_size // width

    def preprocess(self, image: Picture) -> Tensor:
        """float32 [3, S, S], normalised, on the CPU: of an image of any mode that Pillow has opened, of a file's bytes, or of a file.

        The centre square, resized as for the probes: to the bit what `features` makes of the file, also of an image that Pillow has opened and nothing
        was done to yet.  EXIF turns, grey of 16 bits, transparency and CMYK are taken as everywhere in mpp (data/decode.py).  Raises DataError.
        """
        return normalise(torch.from_numpy(self._square(image)), self.mean, self.std)

    def _square(self, image: Picture) -> np.ndarray:
        """uint8 [3, S, S]."""
        try:
            data = (
                encoded(image)
                if isinstance(image, Image.Image)
                else storable(image if isinstance(image, bytes) else Path(image).read_bytes())
            )
            _, width, height = check_header(data, self._asked.max_pixels)
            box = Centre(self.image_size, self._asked.crop).box(width, height)
            return np.ascontiguousarray(cut(data, width, height, [box], self.image_size, self._asked.max_pixels)[0])
        except BadSample as reason:
            name = image if isinstance(image, str | Path) else getattr(image, "filename", "") or "this image"
            raise DataError(f"{name}: {reason}; give another image") from reason

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, S, S], as `preprocess` gives them -> float32 [B, D], on the encoder's device."""
        tokens, further = self._extractor.of_normalised(self._given(images), self._extractor.spec.layers)
        return self._extractor.pooled(tokens, further)[:, self._columns.to(self.device)]

    def tokens(self, images: Tensor) -> Tensor:
        """The same images -> patch tokens float32 [B, rows, columns, W] of the last of `layers`, under the encoder's final norm."""
        layer = self.layers[-1]
        found = self._extractor.of_normalised(self._given(images), [layer])[0][layer]
        return found[:, self.backbone.prefix :].unflatten(1, self.grid)

    def _given(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1:] != (3, self.image_size, self.image_size):
            wanted = f"[B, 3, {self.image_size}, {self.image_size}]"
            raise ValueError(
                f"images of shape {list(images.shape)} must be {wanted}; stack what preprocess gives, or load with resolution="
            )
        return images.to(self.device, torch.float32)

    def features(
        self,
        images: str | Path | Sequence[str | Path],
        *,
        split: SplitName = "train",
        batch: int = 256,
        workers: int | None = None,
        cache: str | Path | None = None,
    ) -> FeatureSet:
        """Of a whole set: a folder of shards, a folder of one folder a class, a folder of images, one of torchvision's arrays, or a list of files.

        split: of an array set.  batch: images at a time.  workers: loader processes (None: the cores less one, at most 16; 0: none).  cache: a folder that
        keeps the table for the next time, as features.cache of the probes does.  Progress is told on stderr.
        Raises DataError, naming the image, for one that cannot be read: none is left out.
        """
        found = _opened(images, split)
        config = self._asked.model_copy(update={"batch": batch, "workers": workers})
        with self._measured() as extractor, nullcontext(cache) if cache else tempfile.TemporaryDirectory() as folder:
            world = World(0, 1, 1, self.device)
            table = extract(found, np.arange(len(found)), {"encoder": extractor}, config, Path(folder), world)["encoder"].features
            values = np.array(table.of(self._own).numpy())  # a copy: the file may go
        return FeatureSet(values, np.array(found.labels), [found.name_of(sample) for sample in range(len(found))], list(found.classes))

    @contextmanager
    def _measured(self) -> Iterator[EncoderExtractor]:
        """The extractor in eval mode, called by the weights that it has now: those of one that was fine-tuned are not those that were read."""
        modes, extractor = {module: module.training for module in self.modules()}, self._extractor
        if (weights := weights_digest(self.backbone.state_dict())) != self._weights:
            extractor = EncoderExtractor(
                self.backbone, replace(extractor.spec, encoder=f"{self.digest} with weights {weights}"), self.device
            )
        self.backbone.eval()
        try:
            yield extractor
        finally:
            for module, training in modes.items():
                module.training = training

    def extra_repr(self) -> str:
        rows, columns = self.grid
        place = f"{self._own} of {self.image_size} px" + (f", {rows} x {columns} patches" if self.backbone.is_transformer else "")
        return f"{self.source}: {place} -> {self.width}; {self.device}"

    def __repr__(self) -> str:
        return f"ImageEncoder({self.extra_repr()})"


def _opened(images: str | Path | Sequence[str | Path], split: SplitName) -> LabelledImages:
    """Raises DataError."""
    if not isinstance(images, str | Path):
        if not images:
            raise DataError("features of no file: the list is empty; give one image at least")
        return FolderImages.of_files(Path(), [str(path) for path in images])
    folder = Path(images)
    if folder.is_dir() and not is_array(str(images)) and not (folder / MANIFEST).exists():
        flat = not any(entry.is_dir() and not is_hidden(entry.name) for entry in os.scandir(folder))
        if flat and (inside := sorted(file.name for file in walk(folder, Counter()))):
            return FolderImages.of_files(folder, [str(folder / name) for name in inside])
    return open_labelled(str(images), split)
