"""Pictures of what is inside an encoder, as PNG bytes (mpp/inside.py).  How to read them: docs/inside.md.

Letters: N patches of a grid (rows, columns), H heads, k images.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from mpp.monitor.attention_by_layer import LayerSpread, Maps
from mpp.monitor.insides import Components, RelativeBias
from mpp.transfer.plots import COLOURS, finish, png, wrapped

FILES = ("filters.png", "positions.png", "rotary.png", "relative.png", "attention.png", "maps.png", "tokens.png")
ACROSS = 7  # filters of a row, as in the ViT paper
MOST = 14  # positions a side that have a tile: beyond, evenly spread ones
HEADS = 6  # of the last block whose maps are drawn
BIASED = 24  # layers, and heads, whose biases are drawn
GAP = 1  # cells between tiles


def filters(own: Components, fresh: Components | None, patch: tuple[int, int], title: str) -> bytes:
    """The components as small images, 0 in the middle of the scale, each by itself; beside them what they explain."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    count = len(own.directions)
    shaped = own.directions.reshape(count, -1, *patch)
    tiles = shaped.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().double().numpy()
    tiles = 0.5 + tiles / (2 * np.maximum(np.abs(tiles).max(axis=(1, 2, 3), keepdims=True), 1e-12))
    left.imshow(mosaic(list(tiles), ACROSS, 1.0), interpolation="nearest")
    left.axis("off")
    kind = "of what the filters do to grey patches" if shaped.shape[1] == 1 else "of the filters"
    left.set_title(f"the first {count} principal components {kind},\nrow by row ({patch[1]} x {patch[0]} pixels)", fontsize=10)
    for name, each, colour in (("this encoder", own, COLOURS[0]), ("random initialisation", fresh, "0.55")):
        if each is not None:
            share = 100 * np.cumsum(each.explained.cpu().double().numpy())
            label = f"{name}: 90 % in {each.enough()}"
            right.plot(np.arange(1, len(share) + 1), share, color=colour, label=label)
    right.axvline(count, color="0.7", linestyle=":", linewidth=1)
    right.set(xlabel="components", ylabel="variance explained, %", ylim=(0, 102), xlim=(0, len(own.explained) + 0.5))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(right, legend=False)
    right.legend(frameon=False, fontsize=9, loc="lower right")
    figure.suptitle(wrapped(title, 10), fontsize=11)
    return png(figure)


def positions(similar: Tensor, grid: tuple[int, int], title: str) -> bytes:
    """A tile for each position (evenly spread ones where they are many): its cosine to the positions of all patches, where they lie."""
    values = similar.reshape(*grid, *grid).cpu().float().numpy()
    rows, columns = (np.unique(np.linspace(0, count - 1, min(count, MOST)).round().astype(int)) for count in grid)
    page = mosaic([values[row, column] for row in rows for column in columns], len(columns), np.nan)
    wide = max(len(columns) / len(rows), len(rows) / len(columns)) if len(rows) else 1.0
    figure = Figure(figsize=(7.2, min(7.0 * (wide if len(rows) > len(columns) else 1), 10)), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(page, cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="cosine similarity")
    every = 1 if len(columns) <= MOST else 2
    for axis, chosen, side in ((axes.xaxis, columns, grid[1]), (axes.yaxis, rows, grid[0])):
        axis.set_ticks(
            [(side + GAP) * number + (side - 1) / 2 for number in range(0, len(chosen), every)],
            [str(place + 1) for place in chosen[::every]],
        )
    _frameless(axes)
    axes.set(xlabel="column of the patch", ylabel="row of the patch")
    axes.set_title(wrapped(f"{title}\nposition embeddings: each to all others", 7.2), fontsize=11)
    return png(figure)


def rotary(kernel: Tensor, title: str) -> bytes:
    """By offset [2 rows - 1, 2 columns - 1]."""
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    rows, columns = ((count - 1) / 2 for count in kernel.shape)
    extent = (-columns - 0.5, columns + 0.5, rows + 0.5, -rows - 0.5)
    shown = axes.imshow(
        kernel.cpu().numpy(), cmap="viridis", vmax=1, vmin=min(0.0, float(kernel.min())), extent=extent, interpolation="nearest"
    )
    figure.colorbar(shown, ax=axes, shrink=0.85, label="mean cosine of the turns")
    axes.set(xlabel="key to the right of the query, patches", ylabel="key below the query, patches")
    axes.set_title(wrapped(f"{title}\nrotary positions: what an offset leaves of a product", 6.4), fontsize=11)
    return png(figure)


def relative(biases: Sequence[RelativeBias], title: str) -> bytes:
    """A row of tiles a layer, a tile a head, by offset; all on one scale."""
    chosen = [biases[place] for place in np.unique(np.linspace(0, len(biases) - 1, min(len(biases), BIASED)).round().astype(int))]
    across = min(max(len(each.bias) for each in chosen), BIASED)
    side = [max(each.bias.shape[axis] for each in chosen) for axis in (1, 2)]
    tiles = []
    for each in chosen:
        own = each.bias.cpu().numpy()[:across]
        padding = [(0, across - len(own)), *((0, most - now) for most, now in zip(side, own.shape[1:], strict=True))]
        tiles += list(np.pad(own, padding, constant_values=np.nan))
    most = max(max(float(each.bias.abs().max()) for each in chosen), 1e-12)
    width, height = 2.2 + 0.5 * across, 1.6 + 0.5 * len(chosen)
    figure = Figure(figsize=(max(width, 6), height), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(mosaic(tiles, across, np.nan), cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.7, label="added to the logit (blue: looks away)")
    axes.set_xticks([(side[1] + GAP) * head + (side[1] - 1) / 2 for head in range(across)], [str(head + 1) for head in range(across)])
    axes.set_yticks([(side[0] + GAP) * row + (side[0] - 1) / 2 for row in range(len(chosen))], [each.name for each in chosen], fontsize=8)
    _frameless(axes)
    axes.set_xlabel("head; in each tile the key's offset from the query, none in the middle")
    axes.set_title(wrapped(f"{title}\nrelative position bias", max(width, 6)), fontsize=11)
    return png(figure)


def attention(own: Sequence[LayerSpread], fresh: Sequence[LayerSpread], title: str) -> bytes:
    """By layer: mean distance and entropy of each head, and what class tokens and registers are given, where there are any."""
    given = any(bool((each.spread.to_prefix > 0).any()) for each in own)
    panels = 3 if given else 2
    figure = Figure(figsize=(4.5 * panels, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.1))
    quantities = [
        ("mean attention distance, pixels", lambda each: each.spread.distance, [each.uniform for each in own]),
        (
            "entropy, share of its maximum, %",
            lambda each: 100 * each.spread.entropy / max(math.log(each.patches), 1e-12),
            [100.0] * len(own),
        ),
        ("given to class tokens and registers, %", lambda each: 100 * each.spread.to_prefix, []),
    ]
    number = np.arange(1, len(own) + 1)
    for axes, (label, value, uniform) in zip(figure.subplots(1, panels), quantities, strict=False):
        if uniform:
            axes.hlines(uniform, number - 0.5, number + 0.5, color="0.35", linestyle="--", linewidth=1, label="looking everywhere alike")
        for name, layers, colour, size, order in (
            ("random initialisation", fresh, "0.65", 12, 1),
            ("this encoder", own, COLOURS[0], 22, 2),
        ):
            if len(layers) != len(own):
                continue
            values = [value(each).numpy() for each in layers]
            means = [heads[np.isfinite(heads)].mean() if np.isfinite(heads).any() else np.nan for heads in values]
            axes.plot(number, means, color=colour, linewidth=1.2, zorder=order, label=f"{name}: mean of the heads")
            places = np.repeat(number, [len(heads) for heads in values])
            axes.scatter(
                places, np.concatenate(values), s=size, color=colour, alpha=0.75, linewidth=0, zorder=order, label=f"{name}: a head"
            )
        named = all(each.layer.place == f"block {place}" for place, each in enumerate(own, 1))
        axes.set(
            xlabel="block" if named else "layer of attention, from the first",
            ylabel=label,
            ylim=(0, 1.04 * axes.get_ylim()[1]),
            xlim=(0.5, len(own) + 0.5),
        )  # from 0, so matplotlib's own margin, a share of the values' range, would cut the highest heads in half
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish(axes, legend=False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5 if panels == 3 else 3, frameon=False, fontsize=9)
    figure.suptitle(wrapped(title, 4.5 * panels), fontsize=11)
    return png(figure)


def maps(images: Tensor, found: Maps, grid: tuple[int, int], title: str) -> bytes:
    """images: uint8 [k, 3, H, W].  A row an image: itself, rollout, the last block's mean over heads, some heads; each map from its least to its most."""
    heads = min(found.last.shape[1], HEADS)
    columns = ["image", "rollout", "last block,\nmean of heads", *(f"head {head + 1}" for head in range(heads))]
    figure, places = _images_grid(len(images), columns, (images.shape[2], images.shape[3]))
    for row, axes in enumerate(places):
        picture = images[row].permute(1, 2, 0).numpy()
        axes[0].imshow(picture, interpolation="nearest")
        shown = [found.rollout[row], found.last[row].mean(0), *found.last[row][:heads]]
        for place, values in zip(axes[1:], shown, strict=True):
            place.imshow(overlaid(picture, values.reshape(grid).numpy()), interpolation="nearest")
    figure.suptitle(wrapped(title, figure.get_figwidth()), fontsize=11)
    return png(figure)


def overlaid(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] in grey, and over it [rows, columns] from dark to bright, smoothly enlarged -> floats in 0..1, large enough to be seen."""
    from matplotlib import colormaps

    height, width = picture.shape[:2]
    scale = max(1, math.ceil(160 / max(height, width)))
    size = (width * scale, height * scale)
    level = (values - values.min()) / max(float(values.max() - values.min()), 1e-12)
    heat = np.asarray(Image.fromarray(level.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    grey = np.asarray(Image.fromarray(picture).convert("L").resize(size, Image.Resampling.NEAREST), dtype=np.float32)[..., None] / 255
    return np.clip(0.4 * grey + 0.6 * colormaps["inferno"](heat)[..., :3], 0, 1)


def tokens(images: Tensor, own: Tensor, fresh: Tensor | None, grid: tuple[int, int], share: float, title: str) -> bytes:
    """images: uint8 [k, 3, H, W]; own, fresh: colours of the patches [k, N, 3]; share: of the variance, of the three components."""
    rows = ["image", "this encoder", *(["random\ninitialisation"] if fresh is not None else [])]
    ratio = images.shape[2] / images.shape[3]
    figure = Figure(figsize=(0.9 + 1.25 * len(images), 0.9 + 1.25 * ratio * len(rows)), layout="constrained")
    places = figure.subplots(len(rows), len(images), squeeze=False)
    for column in range(len(images)):
        places[0, column].imshow(images[column].permute(1, 2, 0).numpy(), interpolation="nearest")
        for row, colours in enumerate((own, fresh), 1):
            if colours is not None:
                places[row, column].imshow(
                    colours[column].reshape(*grid, 3).numpy(), interpolation="nearest", aspect=ratio * grid[1] / grid[0]
                )
    for row, name in enumerate(rows):
        places[row, 0].set_ylabel(name, fontsize=9)
        for axes in places[row]:
            _frameless(axes, ticks=False)
    words = f"patch tokens of the last block as red, green and blue: three components, {100 * share:.0f} % of their variance"
    figure.suptitle(wrapped(f"{title}\n{words}", figure.get_figwidth()), fontsize=10)
    return png(figure)


def mosaic(tiles: Sequence[np.ndarray], across: int, between: float) -> np.ndarray:
    """Tiles of one shape [h, w] or [h, w, 3], row by row, with GAP cells of `between` round about."""
    height, width, *rest = tiles[0].shape
    down = -(-len(tiles) // across)
    page = np.full((down * (height + GAP) - GAP, across * (width + GAP) - GAP, *rest), between)
    for number, tile in enumerate(tiles):
        top, left = number // across * (height + GAP), number % across * (width + GAP)
        page[top : top + height, left : left + width] = tile
    return page


def _images_grid(rows: int, columns: Sequence[str], size: tuple[int, int]) -> tuple[Figure, np.ndarray]:
    ratio = size[0] / size[1]
    figure = Figure(figsize=(1.3 * len(columns), 0.9 + 1.3 * ratio * rows), layout="constrained")
    places = figure.subplots(rows, len(columns), squeeze=False)
    for axes in places.flat:
        _frameless(axes, ticks=False)
    for axes, name in zip(places[0], columns, strict=True):
        axes.set_title(name, fontsize=9)
    return figure, places


def _frameless(axes: Axes, ticks: bool = True) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    if not ticks:
        axes.set_xticks([])
        axes.set_yticks([])
