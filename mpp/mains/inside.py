"""What mpp/inside.py does, top to bottom: an encoder and images -> pictures, and inside.json with the numbers behind them.

Images pass through in small batches; of attention and patch tokens sums are kept, and maps of the drawn images alone.  OUT/inside.json:

    format        1
    encoder       given, source (what the weights are), digest, parameters
    images        given, identity, count, resolution [height, width] in pixels, crop, seed, shown (their numbers in the set)
    random_init   the seed of what is drawn beside, or null; its own figures stand under "random" in the sections below
    filters       layer, patch [height, width] in pixels, components [k][3][h][w] ([k][1][h][w] of grey images: what the
                  filters do to them), explained [k...] (shares of the variance), random {explained}
    positions     absolute {grid [rows, columns], cosine [N][N]}
                  rotary   {grid, kernel [2 rows - 1][2 columns - 1]}, by offset, the middle is no offset
                  relative [{name, bias [heads][2 rows - 1][2 columns - 1]}], by the key's offset from the query
    attention     diagonal (pixels), layers [{name, place, patches (that attention is shared out among), uniform_pixels, distance_pixels [heads],
                  distance_share [heads] (of the image's diagonal), entropy_nats [heads], entropy_share [heads] (of log patches),
                  to_prefix [heads] (share given to class tokens and registers)}], random {layers}
    maps          grid, rollout [images][N], last_block [images][heads][N], asked ("class tokens" or "patches"); rows of 1
    tokens        grid, explained [3], colours [images][N][3] in 0..1, random {explained}
    absent        what is not there: why
    files         what is drawn: file name
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpp.base.errors import ConfigError
from mpp.base.machine import allow_open_files
from mpp.base.rng import INIT, seed_of
from mpp.base.text import counted, say
from mpp.config.inside import InsideConfig
from mpp.data.augment import Centre
from mpp.data.crop_dataset import CropDataset
from mpp.data.images import Images
from mpp.data.labelled import open_images
from mpp.data.order import FIXED
from mpp.data.pixels import StoredPixels
from mpp.disk.files import make_folder, write_atomically
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.interop.read_encoder import read_encoder
from mpp.mains.probe_job import run_folder_of
from mpp.model.backbone import Backbone
from mpp.model.normalise import normalise
from mpp.monitor.attention import diagonal
from mpp.monitor.attention_by_layer import LayerSpread, Maps, MapsOfBatch, Patches, SpreadByLayer, images_at_once, one_a_block
from mpp.monitor.insides import (
    Components,
    RelativeBias,
    TokenSums,
    absolute_positions,
    as_colours,
    by_offset,
    cosines,
    filter_layer,
    is_grey,
    principal_filters,
    relative_biases,
    rotary_kernel,
)
from mpp.transfer import inside_plots as plots
from mpp.transfer.split import subset

FILE = "inside.json"


@dataclass
class Insides:
    """Of one encoder; None or empty: it has none, and `absent` says why."""

    filters: Components | None = None
    patch: tuple[int, int] = (0, 0)  # pixels, of a filter
    layer: str = ""  # the module that has them
    grid: tuple[int, int] = (0, 0)  # of the patch tokens
    class_tokens: int = 0
    absolute: Tensor | None = None  # cosines [N, N]
    rotary: Tensor | None = None  # by offset
    relative: list[RelativeBias] = field(default_factory=list)
    layers: list[LayerSpread] = field(default_factory=list)
    maps: Maps | None = None
    tokens: Components | None = None
    colours: Tensor | None = None  # [images, N, 3]
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Crops:
    """The images, cut to the encoder's size: nothing of it is drawn, so no seed matters."""

    data: CropDataset
    size: tuple[int, int]  # pixels, (height, width)
    shown: np.ndarray  # int64, ids

    def images(self, ids: np.ndarray) -> Tensor:
        """uint8 [B, 3, H, W].  Raises DataError for one that cannot be read."""
        return self.data.batch([(FIXED, int(sample), place) for place, sample in enumerate(ids)])["image"]


def look_inside(config: InsideConfig) -> int:
    """Raises UserError."""
    allow_open_files()
    loaded = read_encoder(config.encoder)
    backbone = sized(loaded, config)
    images = open_images(config.images)
    crops = choose(config, images, backbone[1])
    out = Path(config.out) if config.out else run_folder_of(config.encoder) / "inside"
    make_folder(out, "out")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    height, width = crops.size
    say(f"encoder   {loaded.source} ({config.encoder}), {sum(each.numel() for each in loaded.net.parameters()):,} parameters")
    say(
        f"images    {counted(len(crops.data.ids), 'image')} of {config.images}, {width} x {height} pixels, {len(crops.shown)} of them drawn"
    )

    own = insides(backbone[0], loaded, crops, config, device, whole=True)
    fresh = None
    if config.random_init is not None:
        net = loaded.fresh(seed_of(config.random_init, INIT, 0)).eval()  # as a run with this seed starts
        fresh = insides(Backbone(net).at_size(*crops.size), loaded, crops, config, device, whole=False)

    shown = crops.images(crops.shown)
    parts = Path(config.images).parts
    place = "/".join(parts[-2:] if parts[-1] in ("train", "val", "test") else parts[-1:])
    title = f"{loaded.source}; {counted(len(crops.data.ids), 'image')} of {place}"
    files = draw(own, fresh, shown, loaded.source, title)
    for name in plots.FILES:  # those of an earlier look at another encoder
        if name not in files:
            (out / name).unlink(missing_ok=True)
    for name, data in files.items():
        write_atomically(out / name, data)
    write_atomically(out / FILE, (json.dumps(facts(own, fresh, loaded, images, crops, config, files)) + "\n").encode())
    for line in words(own, fresh):
        say(line)
    for name, why in own.absent.items():
        say(f"absent    {name}: {why}")
    say(f"pictures  {', '.join(files)} and {FILE} in {out}")
    return 0


def sized(loaded: LoadedEncoder, config: InsideConfig) -> tuple[Backbone, tuple[int, int]]:
    """A copy at the size asked for, (height, width) in pixels.  Raises ConfigError for one that is no whole number of patches."""
    backbone = Backbone(loaded.net)
    own = getattr(getattr(loaded.net, "patch_embed", None), "img_size", None) or (loaded.image_size,) * 2
    asked = config.resolution if config.resolution is not None else (int(own[0]), int(own[1]))
    height, width = (asked, asked) if isinstance(asked, int) else asked
    for side, patch in zip((height, width), backbone.patch_size, strict=True):
        if side % patch:
            near = " and ".join(str(size) for size in (side // patch * patch, side // patch * patch + patch) if size)
            raise ConfigError(
                f"resolution={config.resolution} must be a multiple of the patch size {patch}; the nearest that fit are {near}"
            )
    return backbone.at_size(height, width), (height, width)


def choose(config: InsideConfig, images: Images, size: tuple[int, int]) -> Crops:
    """Raises ConfigError for images to be drawn that are not there."""
    if missing := [each for each in config.show if each >= len(images)]:
        raise ConfigError(
            f"show={list(config.show)}: {config.images} holds the images 0 to {len(images) - 1}; {missing[0]} is none of them"
        )
    ids = subset(len(images), config.count, config.seed)
    shown = np.array(config.show, dtype=np.int64)
    if not config.show:
        shown = ids[np.unique(np.linspace(0, len(ids) - 1, min(config.maps, len(ids))).round().astype(np.int64))]
    data = CropDataset(StoredPixels(images, config.max_pixels), Centre(size, config.crop), 0, ids, leaves_none_out=True)
    return Crops(data, size, shown)


@torch.no_grad()
def insides(backbone: Backbone, loaded: LoadedEncoder, crops: Crops, config: InsideConfig, device: torch.device, whole: bool) -> Insides:
    """whole: its positions and attention maps, too, of which nothing is drawn beside."""
    backbone = backbone.to(device)
    found, net = Insides(), backbone.net
    look_at_weights(found, backbone, crops.size, config, whole, loaded.std if is_grey(crops.images(crops.shown)) else None)

    # Sums over all images.
    patches = Patches(found.grid, (crops.size[0] / found.grid[0], crops.size[1] / found.grid[1]), backbone.prefix, backbone.class_tokens)
    spreads, tokens = SpreadByLayer(net, patches), TokenSums()
    batch = images_at_once(net, patches, config.batch)
    pixels = lambda ids: normalise(crops.images(ids).to(device).float(), loaded.mean, loaded.std)
    last = lambda images: backbone.layers(images, [backbone.depth])[0][:, backbone.prefix :].float()
    for first in range(0, len(crops.data.ids), batch):
        images = pixels(crops.data.ids[first : first + batch])
        with spreads.watching(len(images)):
            seen = last(images)
        tokens.add(seen)
    found.layers = spreads.found()
    for why in dict.fromkeys(spreads.absent.values()):
        names = [name for name, reason in spreads.absent.items() if reason == why]
        found.absent[f"attention of {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"] = why
    if not found.layers:
        found.absent["attention"] = "no layer's probabilities can be had: it has none, or computes them in a way of its own"
    if seen.shape[1] != found.grid[0] * found.grid[1]:
        found.absent["patch tokens as colours"] = f"its {seen.shape[1]} tokens are no grid of {found.grid[0]} x {found.grid[1]}"
        return found
    mean, found.tokens = tokens.found()

    # The drawn images themselves.
    maps, parts, colours = one_a_block(net, found.layers), [], []
    for first in range(0, len(crops.shown), batch):
        of_batch = MapsOfBatch(net, patches)
        with ExitStack() as stack:
            if maps and whole:
                stack.enter_context(of_batch.watching())
            colours.append(last(pixels(crops.shown[first : first + batch])).cpu())
        parts += [of_batch.found()] if maps and whole else []
    found.colours = as_colours(torch.cat(colours), mean.cpu(), found.tokens.directions.cpu())
    if parts:
        found.maps = Maps(torch.cat([part.rollout for part in parts]), torch.cat([part.last for part in parts]))
    elif whole and found.layers:
        found.absent["rollout and maps of the last block"] = "its blocks have no one layer of attention each between all patches"
    return found


def look_at_weights(
    found: Insides, backbone: Backbone, size: tuple[int, int], config: InsideConfig, whole: bool, grey: Sequence[float] | None
) -> None:
    net, found.class_tokens = backbone.net, backbone.class_tokens
    reduction = backbone.patch_size if backbone.is_transformer else (int(net.feature_info[-1]["reduction"]),) * 2
    found.grid = (math.ceil(size[0] / reduction[0]), math.ceil(size[1] / reduction[1]))
    if backbone.is_transformer:  # its own word, which differs where a small network stands before the patches
        found.grid = tuple(getattr(getattr(net, "patch_embed", None), "grid_size", None) or found.grid)
    convolution = filter_layer(net)
    if convolution is None:
        found.absent["filters"] = "no convolution takes colours"
    else:
        found.filters = principal_filters(convolution.weight, config.filters, grey)
        found.patch = (convolution.weight.shape[2], convolution.weight.shape[3])
        found.layer = next(name for name, module in net.named_modules() if module is convolution)
    if not whole:
        return
    own_grid = found.grid if backbone.is_transformer else (size[0] // backbone.patch_size[0], size[1] // backbone.patch_size[1])
    absolute, kernel = absolute_positions(net, own_grid), rotary_kernel(net, own_grid)
    found.absolute = None if absolute is None else cosines(absolute)
    found.rotary = None if kernel is None else by_offset(kernel, own_grid)
    found.relative = list(relative_biases(net))
    if absolute is None and kernel is None and not found.relative:
        found.absent["positions"] = "it has none that are a vector, a turn or a bias for each place"


def draw(own: Insides, fresh: Insides | None, shown: Tensor, source: str, title: str) -> dict[str, bytes]:
    """By file name, PNG.  source: of the weights; title: of what is measured on images, too."""
    files: dict[str, bytes] = {}
    if own.filters is not None:
        files["filters.png"] = plots.filters(own.filters, fresh.filters if fresh else None, own.patch, source)
    if own.absolute is not None:
        files["positions.png"] = plots.positions(own.absolute, own.grid, source)
    if own.rotary is not None:
        files["rotary.png"] = plots.rotary(own.rotary, source)
    if own.relative:
        files["relative.png"] = plots.relative(own.relative, source)
    if own.layers:
        files["attention.png"] = plots.attention(own.layers, fresh.layers if fresh else [], title)
    if own.maps is not None:
        files["maps.png"] = plots.maps(shown, own.maps, own.grid, title)
    if own.colours is not None and own.tokens is not None:
        share = own.tokens.first(3)
        files["tokens.png"] = plots.tokens(shown, own.colours, fresh.colours if fresh else None, own.grid, share, title)
    return files


def words(own: Insides, fresh: Insides | None) -> list[str]:
    lines = []
    beside = lambda value: "" if value is None else f" (random initialisation {value})"
    if own.filters is not None:
        random = str(fresh.filters.enough()) if fresh and fresh.filters else None
        lines.append(
            f"filters   {own.filters.enough()} of {len(own.filters.explained)} components explain 90% of the variance{beside(random)}"
        )
    if own.layers:
        mean = lambda layers: [each.scalars() for each in layers]
        show = lambda name, form: form(mean(own.layers)[0][name]) + " to " + form(mean(own.layers)[-1][name])
        other = lambda name, form: (
            form(mean(fresh.layers)[0][name]) + " to " + form(mean(fresh.layers)[-1][name]) if fresh and fresh.layers else None
        )
        pixels = lambda value: "-" if value is None else f"{value:.1f}"
        share = lambda value: "-" if value is None else f"{value:.2f}"
        lines.append(
            f"distance  {show('distance', pixels)} pixels from the first to the last layer, mean of heads{beside(other('distance', pixels))}"
        )
        lines.append(f"entropy   {show('entropy', share)} of looking everywhere alike{beside(other('entropy', share))}")
    if own.tokens is not None:
        random = f"{fresh.tokens.first(3):.1%}" if fresh and fresh.tokens else None
        lines.append(f"tokens    three components explain {own.tokens.first(3):.1%} of the variance of patch tokens{beside(random)}")
    return lines


def facts(
    own: Insides,
    fresh: Insides | None,
    loaded: LoadedEncoder,
    images: Images,
    crops: Crops,
    config: InsideConfig,
    files: Mapping[str, bytes],
) -> dict[str, Any]:
    """What inside.json holds (see above)."""
    found: dict[str, Any] = {
        "format": 1,
        "encoder": {
            "given": config.encoder, "source": loaded.source, "digest": loaded.digest,
            "parameters": sum(each.numel() for each in loaded.net.parameters()),
        },
        "images": {
            "given": config.images, "identity": images.identity, "count": len(crops.data.ids), "resolution": list(crops.size),
            "crop": config.crop, "seed": config.seed, "shown": crops.shown.tolist(),
        },
        "random_init": config.random_init,
    }  # fmt: skip
    if own.filters is not None:
        shaped = own.filters.directions.reshape(len(own.filters.directions), -1, *own.patch)
        found["filters"] = {
            "layer": own.layer,
            "patch": list(own.patch),
            "components": plain(shaped),
            "explained": plain(own.filters.explained),
        }
        if fresh and fresh.filters is not None:
            found["filters"]["random"] = {"explained": plain(fresh.filters.explained)}
    positions: dict[str, Any] = {}
    if own.absolute is not None:
        positions["absolute"] = {"grid": list(own.grid), "cosine": plain(own.absolute)}
    if own.rotary is not None:
        positions["rotary"] = {"grid": list(own.grid), "kernel": plain(own.rotary)}
    if own.relative:
        positions["relative"] = [{"name": each.name, "bias": plain(each.bias)} for each in own.relative]
    if positions:
        found["positions"] = positions
    if own.layers:
        across = diagonal(*crops.size)
        found["attention"] = {"diagonal": round(across, 3), "layers": layer_facts(own.layers, across)}
        if fresh and fresh.layers:
            found["attention"]["random"] = {"layers": layer_facts(fresh.layers, across)}
    if own.maps is not None:
        who = "class tokens" if own.class_tokens else "patches"
        found["maps"] = {"grid": list(own.grid), "rollout": plain(own.maps.rollout), "last_block": plain(own.maps.last), "asked": who}
    if own.tokens is not None and own.colours is not None:
        found["tokens"] = {"grid": list(own.grid), "explained": plain(own.tokens.explained[:3]), "colours": plain(own.colours, 3)}
        if fresh and fresh.tokens is not None:
            found["tokens"]["random"] = {"explained": plain(fresh.tokens.explained[:3])}
    return found | {"absent": own.absent, "files": {name.removesuffix(".png"): name for name in files}}


def layer_facts(layers: Sequence[LayerSpread], across: float) -> list[dict[str, Any]]:
    """across: pixels, the image's diagonal."""
    return [
        {
            "name": each.layer.name, "place": each.layer.place, "patches": each.patches, "uniform_pixels": round(each.uniform, 4),
            "distance_pixels": plain(each.spread.distance), "distance_share": plain(each.spread.distance / across),
            "entropy_nats": plain(each.spread.entropy), "entropy_share": plain(each.spread.entropy / max(math.log(each.patches), 1e-12)),
            "to_prefix": plain(each.spread.to_prefix),
        }
        for each in layers
    ]  # fmt: skip


def plain(values: Tensor, digits: int = 5) -> Any:
    """Nested lists of numbers of so many significant digits; null for what is not finite."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(each) for each in value]
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None

    return short(values.detach().cpu().double().tolist())
