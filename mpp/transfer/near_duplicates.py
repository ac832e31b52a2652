"""Images that look nearly like one of train, though their bytes differ: resized, encoded anew, brightened or trimmed a little.  For a person to judge.

Two images are compared by the correlation of grey versions of 16 x 16 pixels, each of the whole image.  In 300 photographs of ImageNet the most alike of
any two reach .87; a photograph stored at another quality, half as large or in grey keeps .99 of itself, one brightened by a fifth or trimmed by 1.5 % at
every side .97.  So .95 suits photographs; of 1,000 handwritten digits, most of which have a neighbour above .9, .99 leaves 4.  Turned, mirrored or
cut-out copies are not found.

Letters: m images that figures are on.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mpp.data.decode import open_shrunk
from mpp.data.images import Images, read_each
from mpp.transfer.probes.knn import nearest

PICTURE = "near_duplicates.png"
SIDE = 16  # pixels of the grey versions
FLAT = 1.0  # levels of 256 that a pixel differs from the mean, in the root mean square, below which an image has no look of its own
PAIRS, COLUMNS, SHOWN = 24, 4, 112  # of the sheet: pairs at most, pairs a line, pixels an image
MAX_PIXELS = 1 << 30  # whoever extracts features has a limit of its own


@dataclass(frozen=True)
class Near:
    threshold: float  # of the correlation
    correlation: np.ndarray  # float32 [m], with the most alike image of train; 0 for images that are one flat colour
    nearest: np.ndarray  # int64 [m], id of that
    same: np.ndarray  # bool [m]: byte for byte in train, and so not counted here
    ids: np.ndarray  # int64 [m]

    @property
    def mask(self) -> np.ndarray:
        """bool [m]."""
        return (self.correlation >= self.threshold) & ~self.same

    def shown(self) -> list[int]:
        """Rows for the sheet, the most alike first, none of the same bytes: the closest, and where more are counted than fit, for the other half of the sheet
        the last that are counted."""
        order = [int(row) for row in np.argsort(-self.correlation, kind="stable") if not self.same[row]]
        counted, half = int(self.mask.sum()), PAIRS // 2
        return order[:half] + order[counted - half : counted] if counted > PAIRS else order[:PAIRS]

    def about(self) -> dict[str, Any]:
        """For results.json."""
        pairs = [
            {"image": int(self.ids[row]), "train": int(self.nearest[row]), "correlation": float(self.correlation[row])}
            for row in self.shown()
        ]
        return {"threshold": self.threshold, "images": int(self.mask.sum()), "shown": pairs}

    def words(self, name: str) -> str:
        """name: of what the m images are, such as "test image"."""
        count, m = int(self.mask.sum()), len(self.mask)
        others = f" beside {int(self.same.sum()):,} that are the same byte for byte," if self.same.any() else ""
        rule = f"correlation {self.threshold:g} or more of grey versions of {SIDE} x {SIDE} pixels"
        return f"near      {count:,} of {m:,} {name}s{others} look like one of train ({rule}); judge by {PICTURE}"


def find_near(
    images: Images, ids: np.ndarray, train: Images, fitted: np.ndarray, threshold: float, same: np.ndarray, device: torch.device
) -> Near:
    """ids: int64 [m], of `images`.  fitted: int64, ids of the images of train that may be fitted on.  Raises DataError for an image that cannot be read."""
    queries, bank = thumbnails(images, ids), thumbnails(train, fitted)
    similarity, place = nearest(queries, bank, np.arange(len(bank)), torch.arange(SIDE**2), 1, device)
    return Near(threshold, similarity[:, 0].numpy(), fitted[place[:, 0].numpy()], same, ids)


def thumbnails(images: Images, ids: np.ndarray) -> Tensor:
    """float32 [n, SIDE x SIDE]: grey, less their mean; zeros for an image of one flat colour."""

    def small(data: bytes) -> np.ndarray:
        grey = np.asarray(open_shrunk(data, (SIDE, SIDE), MAX_PIXELS).convert("L"), dtype=np.float32).ravel()
        grey -= grey.mean()
        return grey if np.sqrt((grey**2).mean()) >= FLAT else np.zeros_like(grey)

    return torch.from_numpy(np.stack([np.zeros(SIDE**2, np.float32), *read_each(images, ids, small)])[1:])


def sheet(near: Near, images: Images, train: Images) -> bytes:
    """A PNG of pairs (`Near.shown`): left the image measured, right that of train; red the counted ones."""
    order = near.shown()
    wide, high = 2 * SHOWN + 12, SHOWN + 34
    lines = max(1, -(-len(order) // COLUMNS))
    picture = Image.new("RGB", (COLUMNS * wide + 12, lines * high + 12), "white")
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(order):
        left, top = 12 + number % COLUMNS * wide, 12 + number // COLUMNS * high
        pair: Sequence[tuple[Images, int]] = ((images, int(near.ids[row])), (train, int(near.nearest[row])))
        for place, (source, sample) in enumerate(pair):
            picture.paste(_fitting(source.read(sample)), (left + place * SHOWN, top))
            draw.text(
                (left + place * SHOWN, top + SHOWN + 13),
                f"{'test' if images is not train else 'held'} {sample}" if place == 0 else f"train {sample}",
                "black",
            )
        mark = "counted" if near.mask[row] else "below"
        draw.text(
            (left, top + SHOWN + 1), f"{near.correlation[row]:.4f} ({mark} {near.threshold:g})", "#B00000" if near.mask[row] else "#606060"
        )
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def _fitting(data: bytes) -> Image.Image:
    """The whole image as a square of SHOWN - 2 pixels, as it is compared."""
    return open_shrunk(data, (SHOWN - 2, SHOWN - 2), MAX_PIXELS)
