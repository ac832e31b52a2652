"""Measured on many real draws: what is hidden, in what shape, and what becomes of it."""

import numpy as np
from scipy import ndimage

from mpp.claims.subject import Subject
from mpp.recipe.places import KEPT, MASKED, SWAPPED, TURNS, VISIBLE, turns


def patches(subject: Subject) -> int:
    return subject.masks.kind.shape[1]


def hidden(subject: Subject) -> int | str:
    """Patches of a sample, which must be as many in every one."""
    return _each((subject.masks.kind != VISIBLE).sum(1).numpy())


def kinds(subject: Subject) -> list[int | str]:
    """How many of a sample's hidden patches are masked, swapped and kept."""
    return [_each((subject.masks.kind == kind).sum(1).numpy()) for kind in (MASKED, SWAPPED, KEPT)]


def predicted(subject: Subject) -> int:
    return subject.masks.predicted.shape[1]


def visible(subject: Subject) -> int:
    return subject.masks.visible.shape[1]


def swapped_from(subject: Subject) -> str:
    """Where a swapped patch's embedding comes from."""
    kind, source = subject.masks.kind.numpy(), subject.masks.source.numpy()
    count, own = kind.shape[1], np.arange(kind.shape[1])
    if (source != own)[kind != SWAPPED].any():
        return "other patches are moved, too"
    rows, places = np.nonzero(kind == SWAPPED)
    if not len(rows):
        return "no patch is swapped"
    steps = np.bincount((source[rows, places] - places) % count, minlength=count)
    if steps[0]:
        return "its own place, too"
    expected = len(rows) / (count - 1)
    evenly = ((steps[1:] - expected) ** 2 / expected).sum() < count - 1 + 6 * np.sqrt(2 * (count - 1))  # chi squared, six deviations
    return "any other place of the image, equally often" if evenly else "other places of the image, some more often"


def unit(subject: Subject) -> int:
    """The side, in patches, of the largest squares of the grid that are hidden or seen as wholes in every sample."""
    rows, columns = subject.config.model.grid
    shown = _visible(subject)
    for side in range(min(rows, columns), 1, -1):
        if rows % side == 0 and columns % side == 0:
            squares = shown.reshape(len(shown), rows // side, side, columns // side, side)
            if (squares == squares[:, :, :1, :, :1]).all():
                return side
    return 1


def evenness(subject: Subject) -> float:
    """How often the place that is hidden least is, in how often the mean one is."""
    often = 1 - _visible(subject).mean(0)
    return float(often.min() / often.mean())


def hidden_neighbours(subject: Subject) -> float:
    """Of a hidden patch's neighbours (above, below, beside it), the share that is hidden; by chance it is the share of all."""
    hides = ~_visible(subject)
    pairs = [(hides[:, 1:], hides[:, :-1]), (hides[:, :, 1:], hides[:, :, :-1])]
    both = sum(int((a & b).sum()) for a, b in pairs)
    return 2 * both / sum(int(a.sum() + b.sum()) for a, b in pairs)


def visible_pieces(subject: Subject) -> int | str:
    """Into how many connected pieces the visible patches fall, beyond the border one goes on at the other side."""
    found = []
    for shown in _visible(subject):
        pieces, _ = ndimage.label(np.tile(shown, (2, 2)))
        rows, columns = shown.shape
        joined = {frozenset(pieces[r::rows, c::columns].ravel()) for r, c in zip(*np.nonzero(shown), strict=True)}
        found.append(len(_merged(joined)))
    return _each(np.array(found))


def rolled(subject: Subject) -> str:
    """Whether the visible block lies across the border as often as inside."""
    shown = _visible(subject)
    across = (shown[:, 0].any(1) & shown[:, -1].any(1)) | (shown[:, :, 0].any(1) & shown[:, :, -1].any(1))
    return "across the border, too" if across.mean() > 0.25 else "inside of the grid"


def target_blocks(subject: Subject) -> list[int]:
    """How many blocks are predicted, each one connected; and patches in each."""
    groups = subject.config.mask.groups
    rows, columns = subject.config.model.grid
    blocks = subject.masks.predicted.reshape(len(subject.masks.predicted), groups, -1).numpy()
    for block in blocks.reshape(-1, blocks.shape[-1]):
        grid = np.zeros(rows * columns, bool)
        grid[block] = True
        if ndimage.label(grid.reshape(rows, columns))[1] != 1 or grid.sum() != len(block):
            return [0, 0]
    return [groups, blocks.shape[-1]]


def block_sides(subject: Subject) -> list[float]:
    """Height / width of the predicted blocks, the least and the largest."""
    columns = subject.config.model.grid[1]
    blocks = subject.masks.predicted.reshape(len(subject.masks.predicted) * subject.config.mask.groups, -1).numpy()
    row, column = np.divmod(blocks, columns)
    sides = (np.ptp(row, axis=1) + 1) / (np.ptp(column, axis=1) + 1)
    return [float(sides.min()), float(sides.max())]


def turned(subject: Subject) -> list[float]:
    """Shares of the samples that are turned by 0, 1, 2 and 3 quarters."""
    found = np.bincount(turns(subject.masks.source).numpy(), minlength=TURNS)
    return [float(share) for share in found / found.sum()]


def _visible(subject: Subject) -> np.ndarray:
    """bool [samples, rows, columns]."""
    return (subject.masks.kind == VISIBLE).numpy().reshape(-1, *subject.config.model.grid)


def _each(counts: np.ndarray) -> int | str:
    low, high = int(counts.min()), int(counts.max())
    return low if low == high else f"{low} to {high}"


def _merged(sets: set[frozenset[int]]) -> list[set[int]]:
    found: list[set[int]] = []
    for each in sets:
        touching = [other for other in found if other & each]
        found = [other for other in found if not other & each] + [set(each).union(*touching)]
    return found
