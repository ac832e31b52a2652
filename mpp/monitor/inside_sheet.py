"""The board's picture of an encoder: filters, positions, and how far each head looks.  Drawn without matplotlib, whose import and layout would take longer
than the look itself; mpp/inside.py draws the same with axes and more."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from mpp.monitor.attention_by_layer import LayerSpread
from mpp.monitor.insides import Components

MARGIN, TILE, CHART = 10, 36, 300  # pixels
POSITIONS = 8  # positions a side that have a tile: more could not be seen
SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis, at -1, -1/2, 0, 1/2, 1
INK, PALE = "black", "#d0d0d0"
HEAD = "#0072B2"


def sheet(
    filters: Components | None,
    patch: tuple[int, int],
    similar: Tensor | None,
    grid: tuple[int, int],
    layers: Sequence[LayerSpread],
    title: str,
) -> Image.Image:
    """filters: of colours, `patch` (height, width) pixels; similar: cosines of positions [N, N]; a panel for each that is there."""
    panels: list[tuple[str, Image.Image]] = []
    if filters is not None:
        caption = f"patch embedding: {len(filters.directions)} components; {filters.enough()} explain 90%"
        panels.append((caption, tiled(filter_tiles(filters.directions, patch), 7)))
    if similar is not None:
        rows, columns = thinned(grid[0]), thinned(grid[1])
        panels.append(
            ("positions: cosine of each to all (dark -1, bright 1)", tiled(position_tiles(similar, grid, rows, columns), len(columns)))
        )
    if layers:
        panels.append(("mean attention distance, pixels: a dot a head, by block", chart(layers)))
    width = sum(max(panel.width, 200) + 2 * MARGIN for _, panel in panels) or 200
    height = 3 * 14 + max((panel.height for _, panel in panels), default=0) + 3 * MARGIN
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, 4), title, fill=INK)
    left = MARGIN
    for caption, panel in panels:
        for line, words in enumerate(_lines(draw, caption, max(panel.width, 200))):
            draw.text((left, 20 + 12 * line), words, fill=INK)
        page.paste(panel, (left, 3 * 14 + MARGIN))
        left += max(panel.width, 200) + 2 * MARGIN
    return page


def thinned(count: int) -> list[int]:
    """At most POSITIONS of so many places, evenly spread, both ends among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, POSITIONS)).tolist()})


def filter_tiles(directions: Tensor, patch: tuple[int, int]) -> list[np.ndarray]:
    """Components [k, 3 h w] or [k, h w] -> uint8 [h, w, 3] each: grey is 0, and the largest entry reaches an end."""
    values = directions.reshape(len(directions), -1, *patch).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().double().numpy()
    return [np.round(127.5 + 127.5 * each / max(np.abs(each).max(), 1e-12)).astype(np.uint8) for each in values]


def position_tiles(similar: Tensor, grid: tuple[int, int], rows: Sequence[int], columns: Sequence[int]) -> list[np.ndarray]:
    """Of the positions in these rows and columns, row by row: uint8 [grid rows, grid columns, 3] each."""
    values = similar.reshape(*grid, *grid).cpu().float().numpy()
    return [coloured(values[row, column]) for row in rows for column in columns]


def coloured(values: np.ndarray) -> np.ndarray:
    """-1..1 -> uint8 [..., 3]."""
    return (
        np.stack([np.interp(values, np.linspace(-1, 1, len(SCALE)), channel) for channel in zip(*SCALE, strict=True)], -1)
        .round()
        .astype(np.uint8)
    )


def tiled(tiles: Sequence[np.ndarray], columns: int) -> Image.Image:
    """Enlarged by whole pixels to about TILE, row by row."""
    height, width = tiles[0].shape[:2]
    scale = max(1, round(TILE / max(height, width)))
    across, down = width * scale + 3, height * scale + 3
    page = Image.new("RGB", (columns * across, -(-len(tiles) // columns) * down), "white")
    for number, tile in enumerate(tiles):
        picture = Image.fromarray(tile).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        page.paste(picture, (number % columns * across, number // columns * down))
    return page


def chart(layers: Sequence[LayerSpread]) -> Image.Image:
    """Distance in pixels of every head, by layer from 1; the pale line is a head that looks everywhere alike."""
    left, foot, page = 34, 22, Image.new("RGB", (CHART, CHART), "white")
    draw = ImageDraw.Draw(page)
    most = 1.1 * max(each.uniform for each in layers)
    values = [each.spread.distance.nan_to_num(-1).tolist() for each in layers]
    most = max([most, *(1.05 * value for heads in values for value in heads)]) or 1.0
    x = lambda number: left + (number + 0.5) * (CHART - left - 6) / len(layers)
    y = lambda pixels: CHART - foot - pixels / most * (CHART - foot - 8)
    for tick in ticks(most):
        draw.line([(left, y(tick)), (CHART - 6, y(tick))], fill="#eeeeee")
        draw.text((left - 5, y(tick)), f"{tick:g}", fill=INK, anchor="rm")
    every = -(-len(layers) // 12)
    for number, heads in enumerate(values):
        half = (x(1) - x(0)) / 2 if len(layers) > 1 else 20
        draw.line([(x(number) - half, y(layers[number].uniform)), (x(number) + half, y(layers[number].uniform))], fill=PALE, width=2)
        for value in heads:
            if value >= 0:
                draw.ellipse([x(number) - 3, y(value) - 3, x(number) + 3, y(value) + 3], outline=HEAD, width=2)
        if number % every == 0:
            draw.text((x(number), CHART - foot + 5), str(number + 1), fill=INK, anchor="mt")
    draw.line([(left, 8), (left, CHART - foot), (CHART - 6, CHART - foot)], fill=INK)
    return page


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to `most`, four to ten of them."""
    step = 10.0 ** np.floor(np.log10(most))
    step = next(step * part for part in (1, 0.5, 0.2, 0.1) if most / (step * part) >= 4)
    return [round(step * number, 10) for number in range(int(most / step) + 1)]


def _lines(draw: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
