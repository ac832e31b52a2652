"""What a target's section asks for from outside of its run: an encoder that was trained before, a codebook that was fitted before.

Both are read by every process before the processes join, and known by a digest of what they compute, so that a run which goes on with others is
refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from mpp.base.errors import ConfigError
from mpp.base.text import counted
from mpp.config.schema import Words, as_given
from mpp.config.sections import ModelConfig
from mpp.data.streams import is_stream
from mpp.interop.codebook_file import CodebookFile, read_codebook
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.interop.read_encoder import read_encoder
from mpp.model.backbone import Backbone, with_final_norm
from mpp.model.encoder import Encoder
from mpp.model.normalise import Triple
from mpp.model.tokens import choose_attention
from mpp.recipe.baselines import ValueBaselines
from mpp.recipe.codes import Codebook, CodebookKnobs
from mpp.recipe.places import Grid
from mpp.recipe.targets import TargetConfig
from mpp.recipe.targets.base import NOTHING, Given, Lent, Target
from mpp.recipe.teacher import FrozenKnobs, Teacher, TeacherKnobs

SAME = 1e-3  # of features whose values are about 1: what two orders of the same sums may differ by


@dataclass(frozen=True)
class Brought:
    """lent, sha256 of each thing by the key that names it, and what to tell people."""

    lent: Lent = NOTHING
    digests: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()


class _Data(Protocol):
    @property
    def shards(self) -> Words: ...
    @property
    def crop_scale(self) -> tuple[float, float]: ...
    @property
    def crop_ratio(self) -> tuple[float, float]: ...
    @property
    def flip(self) -> bool: ...
    @property
    def vertical_flip(self) -> bool: ...
    @property
    def turns(self) -> bool: ...


class _Config(Protocol):
    @property
    def model(self) -> ModelConfig: ...
    @property
    def target(self) -> TargetConfig: ...
    @property
    def data(self) -> _Data: ...


def bring(config: _Config, manifest: str | None, fused_attention: bool | None = None) -> Brought:
    """manifest: sha256 of that of data.shards; None where nothing of them is read.  Raises ConfigError and CheckpointError for what is not there,
    damaged, or of another kind than the run."""
    target = config.target
    if isinstance(target, FrozenKnobs):
        loaded = read_encoder(target.encoder)
        teacher = teacher_of(loaded, f"target.encoder={target.encoder}", config.model.image_size, config.model.grid, fused_attention)
        words = f"teacher {loaded.source}, sha256 {loaded.digest[:12]}...: {counted(teacher.depth, 'block')} x {teacher.width}, frozen"
        return Brought(Lent(teacher), {"target.encoder": loaded.digest}, (words,))
    if isinstance(target, CodebookKnobs):
        file = fitting_codebook(config, target.path, manifest)
        facts, key = file.facts, f"target.path={target.path}, fitted to goals of"
        of, its_teacher, _ = inner_target(
            facts.of, key, config.model.image_size, facts.patch_size, facts.mean, facts.std, facts.encoder, fused_attention
        )
        words = (
            f"codebook of {len(file.centres):,} centres, sha256 {file.digest[:12]}...: {facts.of.name} of {facts.patches:,} patches, "
            f"hold-out error {facts.holdout_error:.4f}, perplexity {facts.perplexity:.0f}"
        )
        notes = [
            f"note: the codebook was fitted with data.{name}={_listed(theirs)}, this run has {_listed(ours)}"
            for name in ("crop_scale", "crop_ratio", "flip", "vertical_flip", "turns")
            if (theirs := getattr(facts, name)) != (ours := getattr(config.data, name))
        ]
        return Brought(Lent(its_teacher, Codebook(file.centres, of)), {"target.path": file.digest}, (words, *notes))
    return Brought()


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def fitting_codebook(config: _Config, path: str, manifest: str | None) -> CodebookFile:
    """The codebook of this run's shards and sizes.  Raises ConfigError, CheckpointError."""
    model = config.model
    # None can be fitted to a stream: of an indexed sample of it.
    shards = "SHARDS" if is_stream(config.data.shards) else as_given(config.data.shards)
    sizes = f"model.image_size={model.image_size} model.patch_size={model.patch_size}"
    remedy = f"fit one with: python mpp/fit_codebook.py data.shards={shards} {sizes} out="
    if not Path(path).is_file():
        raise ConfigError(f"target.path={path} is not there; {remedy}{path}")
    file = read_codebook(Path(path))
    facts = file.facts
    if manifest is not None and facts.shards != manifest and not is_stream(config.data.shards):
        raise ConfigError(
            f"target.path={path} was fitted on other shards (manifest {facts.shards[:12]}..., that of data.shards={shards} is {manifest[:12]}...); "
            f"{remedy}ANOTHER"
        )
    for name, theirs, ours in (("patch_size", facts.patch_size, model.patch_size), ("image_size", facts.image_size, model.image_size)):
        if theirs != ours:
            raise ConfigError(
                f"target.path={path} was fitted with model.{name}={theirs}, this run has model.{name}={ours}; {remedy}ANOTHER"
            )
    return file


def inner_target(
    section: TargetConfig,
    key: str,
    image_size: int,
    patch_size: int,
    mean: Triple,
    std: Triple,
    digest: str | None = None,
    fused_attention: bool | None = None,
) -> tuple[Target, Teacher | None, str | None]:
    """The target whose goals a codebook has centres of, the teacher that it asks for, and the digest of that.

    key: how messages begin.  digest: of the encoder that it must be.  Raises ConfigError for a target without one vector of values a patch that
    stays as it is; CheckpointError for its encoder.
    """
    grid = (image_size // patch_size,) * 2
    lent, found = NOTHING, None
    try:
        section.fits(patch_size, "random")
    except ValueError as error:
        raise ConfigError(f"{key} {section.name}: {error}") from error
    if isinstance(section, FrozenKnobs):
        loaded = read_encoder(section.encoder)
        lent, found = Lent(teacher_of(loaded, f"{key} encoder={section.encoder}", image_size, grid, fused_attention)), loaded.digest
        if digest not in (None, found):
            raise ConfigError(
                f"{key} encoder={section.encoder}: it is another by now (sha256 {found[:12]}..., then {str(digest)[:12]}...); put it back, or fit the "
                "codebook again with mpp/fit_codebook.py"
            )
    built = None
    if not isinstance(section, CodebookKnobs | TeacherKnobs):
        built = section.build(Given(patch_size, 0, 0, mean, std, lent))  # there is no encoder that is trained
    if built is None or not isinstance(built.baselines, ValueBaselines):
        raise ConfigError(f"{key} {section.name}: centres are of values that stay as they are; take pixels, hog, chroma or frozen")
    return built, lent.teacher, found


def teacher_of(loaded: LoadedEncoder, key: str, image_size: int, grid: Grid, fused_attention: bool | None = None) -> Teacher:
    """An encoder that sees this run's images and gives a token for each of its patches; positions are resampled where it saw others.

    key: how messages begin.  Raises ConfigError.
    """
    _refuse_others(loaded, key)
    height, width = Backbone(loaded.net).patch_size
    if (height * grid[0], width * grid[1]) != (image_size, image_size):
        theirs = f"{height} pixels" if height == width else f"{height} x {width} pixels"
        raise ConfigError(
            f"{key} has patches of {theirs}: images of model.image_size={image_size} make {image_size // height} x {image_size // width} of them, and "
            f"this run has {grid[0]} x {grid[1]}; set model.patch_size={height} and an image size that it divides, or take another encoder"
        )
    net = Backbone(loaded.net).at_size(image_size, image_size).net.float()
    choose_attention(net.blocks, fused_attention)
    return Teacher(Encoder(with_final_norm(net)).eval().requires_grad_(False), loaded.mean, loaded.std)


@torch.no_grad()
def _refuse_others(loaded: LoadedEncoder, key: str) -> None:
    """Raises ConfigError where the encoder, opened between its patch embedding and its blocks, is not the function that it is as a whole."""
    image = torch.randn(1, 3, loaded.image_size, loaded.image_size, generator=torch.Generator().manual_seed(0))
    try:
        encoder = Encoder(with_final_norm(Backbone(loaded.net).at_size(loaded.image_size, loaded.image_size).net)).eval()
        ours, theirs = encoder(encoder.embed(image)), encoder.vit.forward_features(image)
        same = ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=SAME, rtol=SAME)
    except (AttributeError, TypeError, RuntimeError, ConfigError):
        same = False
    if not same:
        raise ConfigError(
            f"{key} is a {type(loaded.net).__name__}, whose tokens between the blocks mpp does not know; take a plain Vision Transformer, such as a "
            "run of mpp's or timm:vit_base_patch16_224"
        )
