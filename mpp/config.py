"""Every knob of pretraining, typed, on one page: default, unit, source; probing has its own page (config_probe.py).

    schema (below) <- YAML file <- dotted `key=value` words

Sections that change results: model, mask, corruption, target, decoder, optim, data, seed.  Sections that only change speed or what is
written down: system, log, checkpoint.  All are frozen; an unknown key is refused with the nearest known one.

Sources: "ViT B.1.2" is arXiv 2010.11929 appendix B.1.2, "MAE" is arXiv 2111.06377; "ours" marks what a source leaves open (README).
"""

import argparse
import ast
import inspect
import json
import re
import textwrap
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError, model_validator

from mpp.config_names import nearest
from mpp.errors import ConfigError, Parser


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # `1e6` may stand for a count


Count = Annotated[int, BeforeValidator(_integral), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_integral), Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]
Pair = Annotated[tuple[float, float], Field(strict=False)]


FIXED = (
    "optim.name",
    "optim.ema",
    "optim.total_samples",
    "optim.epochs",
    "optim.steps",
)  # what the state holds; a length grows without more words


def may_change(key: str) -> bool:
    """Whether a resumed run may change it when asked to in so many words (resume_changes)."""
    return key.startswith("optim.") and key not in FIXED


def _changeable(keys: tuple[str, ...]) -> tuple[str, ...]:
    for key in keys:
        if not may_change(key):
            raise ValueError(
                f"{key} cannot be changed on resume: only keys of optim can, such as optim.base_lr, and not {', '.join(FIXED)}"
            )
    return keys


def _listed(value: Any) -> Any:
    return (
        tuple(filter(None, value.replace(" ", "").split(","))) if isinstance(value, str) else value
    )  # brackets mean something to some shells


Changes = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(strict=False), AfterValidator(_changeable)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


# ------------------------------------------------------------------------------------------------------------------ what is learned


class ModelConfig(Section):
    """The encoder: a timm Vision Transformer, and what of it differs from the architecture's own numbers."""

    arch: str = "vit_base_patch16_224"  # any Vision Transformer of timm.list_models("vit_*")
    image_size: Positive = 224  # pixels a side
    patch_size: Positive = 16  # pixels a side
    width: Positive | None = None  # embedding dimensions; null: the architecture's
    depth: Positive | None = None  # blocks; null: the architecture's
    heads: Positive | None = None  # attention heads; null: the architecture's
    class_token: StrictBool = True
    position: Literal["learned", "sincos2d"] = "learned"  # learned 1-D (ViT 3.1) or fixed 2-D sine-cosine (MAE A.1)
    drop_path: Fraction = 0.0  # stochastic depth, rate of the last block

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        if self.image_size % self.patch_size:
            lower = self.image_size // self.patch_size * self.patch_size
            near = [str(size) for size in (lower, lower + self.patch_size) if size]
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}; the nearest that fit are {' and '.join(near)}"
            )
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        return self

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


class RandomMask(Section):
    name: Literal["random"] = "random"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the patches, exact count (ViT B.1.2: 50 %; MAE: 75 %)


class ReplaceCorruption(Section):
    """Embeddings of the chosen patches are replaced; the encoder still sees every position (ViT B.1.2)."""

    name: Literal["replace"] = "replace"
    mask: Fraction = 0.8  # by the learnable [mask] embedding (ViT B.1.2)
    swap: Fraction = 0.1  # by the clean embedding of another patch of the image (ViT B.1.2; scope ours)
    keep: Fraction = 0.1  # left as they are, but predicted (ViT B.1.2)

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(self.mask + self.swap + self.keep - 1) > 1e-9:
            raise ValueError(f"mask={self.mask} + swap={self.swap} + keep={self.keep} must sum to 1")
        return self


class DropCorruption(Section):
    """The encoder sees the visible patches only (MAE)."""

    name: Literal["drop"] = "drop"


class MeanColorTarget(Section):
    name: Literal["mean_color"] = "mean_color"  # ViT B.1.2 (1)
    bits: Annotated[int, Field(ge=1, le=4)] = 3  # a channel: 2 ** (3 * bits) classes


class ColorGridTarget(Section):
    name: Literal["color_grid"] = "color_grid"  # ViT B.1.2 (2)
    bits: Annotated[int, Field(ge=1, le=4)] = 3  # a channel
    grid: Positive = 4  # cells a side


class PixelsTarget(Section):
    name: Literal["pixels"] = "pixels"  # ViT B.1.2 (3); MAE with normalise
    loss: Literal["l1", "l2"] = "l2"
    normalise: StrictBool = False  # per patch: subtract its mean, divide by its standard deviation (MAE)


class LinearDecoder(Section):
    name: Literal["linear"] = "linear"


class TransformerDecoder(Section):
    name: Literal["transformer"] = "transformer"
    depth: Positive = 8  # MAE
    width: Positive = 512  # MAE
    heads: Positive = 16  # MAE

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4 (sine-cosine positions) and of heads={self.heads}")
        return self


class OptimConfig(Section):
    """AdamW; linear warm-up, then half a cosine; the clock is samples seen."""

    base_lr: Annotated[float, Field(gt=0)] = 2e-4  # ViT B.1.2
    lr_batch: Positive | None = None  # learning rate = base_lr * global_batch / lr_batch; null: not scaled (ViT B.1.2); MAE: 256
    final_lr: Annotated[float, Field(ge=0)] = 0.0  # at the end of the cosine
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)  # ViT 4.1
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.05  # decoupled; matrices only (ours)
    clip_norm: Annotated[float, Field(ge=0)] = 1.0  # global gradient norm; 0: off (ViT table 3; ours for B.1.2)
    warmup_samples: Count = 40_960_000  # 10k steps of 4096 (ViT B.1.2)
    total_samples: Positive = 4_096_000_000  # 1M steps of 4096 (ViT B.1.2)


class DataConfig(Section):
    """Which samples, in which order, and how they are cropped."""

    shards: str = "data/train"  # a folder with manifest.json (data_prep/make_shards.py)
    holdout_samples: Positive = 1024  # for hold-out loss and skill
    holdout_shards: str | None = None  # where they come from; null: the last ones of `shards`, which are then not trained on
    global_batch: Positive = 4096  # views a step over all processes (ViT B.1.2)
    views: Positive = 1  # of each decoded image in a batch (repeated sampling, MAE-ST 3.2: 4); schedules and samples seen count views
    views_differ_in: Literal["crop", "mask"] = "crop"  # crop: each view has its own crop, flip and mask; mask: they share crop and flip
    streams: Positive | None = (
        None  # V: the world size must divide V, V must divide global_batch / views; null: the latter's largest divisor up to 1024
    )
    block: Positive | None = None  # permute inside blocks of this many positions of a stream; null: the whole stream
    crop_scale: Pair = (0.05, 1.0)  # share of the area, uniform (inception crop; ViT B.1.2 leaves it open)
    crop_ratio: Pair = (0.75, 4 / 3)  # width / height, log-uniform
    flip: StrictBool = True  # horizontal, half of the samples
    mean: Triple = (0.5, 0.5, 0.5)  # of the input normalisation, colours in 0..1 (ViT code)
    std: Triple = (0.5, 0.5, 0.5)
    max_pixels: Positive = 100_000_000  # larger images are bad samples
    max_bad_fraction: Fraction = 0.0  # of the samples seen; beyond it, and beyond one sample, the run stops (0: the first one stops it)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={list(self.crop_scale)} must be two numbers 0 < low <= high <= 1")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio={list(self.crop_ratio)} must be two numbers 0 < low <= high")
        if min(self.std) <= 0:
            raise ValueError(f"std={list(self.std)} must be positive")
        return self


# --------------------------------------------------------------------------------------------- how fast, and what is written down


class SystemConfig(Section):
    precision: Literal["bf16", "fp32"] = "bf16"  # of matrix products (autocast); parameters and losses are float32 either way
    gradient_precision: Literal["fp32", "bf16"] = (
        "fp32"  # in which processes exchange gradients; bf16: half the traffic, rounded (at zero_stage 1-3 with bf16, of linear layers alone)
    )
    micro_batch_max: Positive = 128  # views a process takes at once; accumulation is the smallest that fits
    workers: Count | None = None  # loader processes for each rank; null: its share of the cores less one, at most 16
    images: Literal["shards", "ram", "device"] = "shards"  # ram, device: small sets, decoded once into one tensor there
    decode: Literal["cpu", "device"] = "cpu"  # device: JPEGs of `images: shards` by a GPU's nvJPEG (levels differ by a few)
    zero_stage: Literal[0, 1, 2, 3] = 0  # DeepSpeed ZeRO
    compile: StrictBool = False  # torch.compile
    fused_attention: StrictBool | None = None  # null: on GPUs only (on CPUs plain matrix products are faster for short sequences)
    patience_seconds: Annotated[float, Field(gt=0)] = 60.0  # how long a process may stand still while others wait for it; then the job ends
    patience_slow_seconds: Annotated[float, Field(gt=0)] = (
        1800.0  # the same while it starts, loads, compiles, measures or saves, or all stand still
    )
    deepspeed: dict[str, Any] = {}  # further DeepSpeed settings, passed through


class LogConfig(Section):
    every_steps: Positive = 50
    holdout_every_steps: Positive = 500
    pictures_every_steps: Positive = 2000
    pictures: Annotated[int, Field(ge=0, le=64)] = 8  # images a picture
    samples: StrictBool = False  # samples.rankN.tsv: which sample, crop and mask stood at each position (to compare two clusters)


class CheckpointConfig(Section):
    every_minutes: Annotated[float, Field(gt=0)] | None = 15.0
    every_samples: Positive | None = None
    keep: Annotated[int, Field(ge=2)] = 2  # newest commits kept


class PretrainConfig(Section):
    run_dir: str | None = None  # null: runs/<name of the YAML file>
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    resume: Literal["auto", "must"] | Count = (
        "auto"  # auto: newest whole commit, fresh if there never was one; must: a commit has to be there; N: that step
    )
    resume_changes: Changes = ()  # keys of optim that this start changes on purpose, for the steps from here on, such as optim.base_lr,optim.clip_norm
    init_from: str | None = (
        None  # another run (its newest weights), or a plain ViT's checkpoint, MAE's decoder included; fresh optimiser and clock
    )
    model: ModelConfig = ModelConfig()
    mask: RandomMask = RandomMask()
    corruption: Annotated[ReplaceCorruption | DropCorruption, Field(discriminator="name")] = ReplaceCorruption()
    target: Annotated[MeanColorTarget | ColorGridTarget | PixelsTarget, Field(discriminator="name")] = MeanColorTarget()
    decoder: Annotated[LinearDecoder | TransformerDecoder, Field(discriminator="name")] = LinearDecoder()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    system: SystemConfig = SystemConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _a_row_that_exists(self) -> Self:
        if self.corruption.name == "drop" and self.decoder.name == "linear":
            raise ValueError("corruption.name=drop needs decoder.name=transformer: a linear decoder has no token for a dropped patch")
        if not 0 < round(self.model.patches * self.mask.ratio) < self.model.patches:
            raise ValueError(f"mask.ratio={self.mask.ratio} of {self.model.patches} patches must leave some visible and some hidden")
        if self.target.name == "color_grid" and self.target.grid > self.model.patch_size:
            raise ValueError(f"target.grid={self.target.grid} must not exceed model.patch_size={self.model.patch_size}")
        if self.optim.total_samples < self.data.global_batch:
            raise ValueError(
                f"optim.total_samples={self.optim.total_samples} is less than one step of data.global_batch={self.data.global_batch}"
            )
        if self.optim.warmup_samples > self.optim.total_samples:
            raise ValueError(f"optim.warmup_samples={self.optim.warmup_samples} exceeds optim.total_samples={self.optim.total_samples}")
        return self

    def that_changes_results(self) -> dict[str, Any]:
        """What a resumed run must not change."""
        return self.model_dump(mode="json", include={"seed", "model", "mask", "corruption", "target", "decoder", "optim", "data"})


# ------------------------------------------------------------------------------------------------------------- YAML and words -> schema


class _Yaml(yaml.SafeLoader):
    """Scalars as YAML 1.2 has them: `3e-4` and `1e6` are numbers, `no` is a word, `1:30` is not 90; a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"a key must be a word, not a list or mapping (line {key.start_mark.line + 1})")
            if key.value in seen:
                raise ConfigError(f"key '{key.value}' stands twice (line {key.start_mark.line + 1}); keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in [
    ("bool", r"true|false|True|False", "tfTF"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?[0-9](_?[0-9])*", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9](_?[0-9])*(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
]:
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Yaml.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))
_Yaml.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value.replace("_", "")))


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either reading of YAML would take for something else than text."""


_Dumper.yaml_implicit_resolvers = {
    first: _Yaml.yaml_implicit_resolvers.get(first, []) + yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])
    for first in {*_Yaml.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}

Schema = TypeVar("Schema", bound=Section)


def load(schema: type[Schema], path: str | Path | None, words: typing.Sequence[str] = ()) -> Schema:
    """The schema's defaults, overridden by a YAML file, overridden by `a.b=value` words.  Raises ConfigError."""
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise ConfigError(
                f"cannot read the config {path}: {error.strerror}; give the path of a YAML file, such as configs/mpp_b16.yaml"
            ) from error
        tree = _parse(text, str(path)) or {}
        if not isinstance(tree, dict):
            raise ConfigError(f"{path} must hold sections with keys, not {type(tree).__name__}")
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise ConfigError(f"'{word}' is not of the form key=value, such as optim.base_lr=1e-3")
        branch = tree
        *sections, last = key.split(".")
        for section in sections:
            if not isinstance(branch.get(section), dict):
                branch[section] = {}
            branch = branch[section]
        branch[last] = _parse(text, f"'{word}'")
    try:
        return schema.model_validate(_with_defaults(schema, tree))
    except ValidationError as error:
        raise ConfigError(_one_line(error, schema)) from None


def dump(config: Section) -> str:
    """The config as YAML that `load` reads back to an equal config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class KeysParser(Parser):
    """A command line of key=value words: --help ends with every key of the config."""

    def __init__(self, schema: type[Section], **more: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **more)
        self.schema = schema

    def format_help(self) -> str:
        self.epilog = explain(self.schema)
        return super().format_help()


def explain(schema: type[Section]) -> str:
    """Every key with its default and the comment behind it, a line each: what --help shows."""
    lines = list(_explained(schema, ""))
    wide = min(44, max(len(words) for words, _ in lines))
    return "keys, their defaults and units:\n" + "\n".join(f"  {words:{wide}}  {comment}".rstrip() for words, comment in lines)


def _explained(schema: type[BaseModel], prefix: str) -> typing.Iterator[tuple[str, str]]:
    comments: dict[str, str] = {}
    for parent in reversed(schema.__mro__):
        if issubclass(parent, Section) and parent is not Section:
            comments |= _comments_of(parent)
    for name, field in schema.model_fields.items():
        kinds = [kind for kind in _kinds_of(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not kinds:
            default = field.get_default()
            shown = (
                yaml.dump(default, Dumper=_Dumper, default_flow_style=True, width=1 << 16)
                if default is None or isinstance(default, str)
                else ""
            )
            text = (shown or json.dumps(default)).removesuffix("\n").removesuffix("\n...")
            yield f"{prefix}{name}={text if not field.is_required() else ''}", comments.get(name, "")
        for kind in kinds:
            row = next(iter(_explained(kind, "")))[0] if len(kinds) > 1 or "name" in kind.model_fields else ""
            for words, comment in _explained(kind, f"{prefix}{name}."):
                chosen = isinstance(field.default, kind) or not row
                yield words, comment if chosen else f"({prefix}{name}.{row}) {comment}".rstrip()


def _kinds_of(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        return [kind for part in typing.get_args(annotation) for kind in _kinds_of(part)]
    return [annotation]


def _comments_of(schema: type[BaseModel]) -> dict[str, str]:
    """What stands behind each field of a section in the source: these files are the one page on which a knob is described."""
    lines, _ = inspect.getsourcelines(schema)
    found: dict[str, str] = {}
    for statement in ast.parse(textwrap.dedent("".join(lines))).body[0].body:  # type: ignore[attr-defined]
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            behind = [lines[number - 1].partition("  # ")[2].strip() for number in range(statement.lineno, (statement.end_lineno or 0) + 1)]
            found[statement.target.id] = " ".join(words for words in behind if words and not words.startswith("fmt:")).removeprefix(
                "fmt: skip  # "
            )
    return found


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"{origin} is not YAML{where}: {getattr(error, 'problem', error)}") from None


def _with_defaults(schema: type[BaseModel], tree: dict[str, Any]) -> dict[str, Any]:
    """A section written as nothing (`model:` alone) means its defaults; a union section without a name means its default row."""
    out = {}
    for key, value in tree.items():
        default = schema.model_fields[key].default if key in schema.model_fields else None
        if value is None and default is not None:
            continue
        if isinstance(value, dict) and "name" not in value and default is not None and hasattr(default, "name"):
            value = {"name": default.name, **value}
        out[key] = value
    return out


def _known_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        pending = [field.annotation]
        while pending:
            kind = pending.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _known_keys(kind, f"{prefix}{name}.")
            elif typing.get_origin(kind) in (typing.Union, types.UnionType, Annotated):
                pending += typing.get_args(kind)
    return sorted(set(keys))


def _one_line(error: ValidationError, schema: type[BaseModel]) -> str:
    problems = []
    for problem in error.errors():
        section, *rest = [str(part) for part in problem["loc"]] or [""]
        row = None  # of a union section: pydantic puts its name after the section's
        if rest and hasattr(schema.model_fields[section].default, "name") and rest[0] not in _known_keys(schema):
            row = rest.pop(0) if len(rest) > 1 else None
        key = ".".join([section, *(part for part in rest if not part.startswith(("constrained-", "function-", "literal[")))])
        if problem["type"] == "extra_forbidden" and key in _known_keys(schema):
            problems.append(f"key '{key}' does not belong to {section}.name={row}")
        elif problem["type"] == "extra_forbidden":
            inside = problem["input"] if isinstance(problem["input"], dict) else {}
            asked = [f"{key}.{name}" for name in inside] or [key]  # of an unknown section, what was asked for in it
            problems += [f"unknown key '{name}'{nearest(name, _known_keys(schema))}" for name in asked]
        elif problem["type"] == "value_error":
            problems.append((f"{key}: " if key else "") + str(problem["ctx"]["error"]))
        elif problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
            problems.append(f"{key}={problem['input']!r}: must be a section, such as '{key}={{...}}' with keys inside, or {key}.KEY=value")
        elif problem["type"] == "missing":
            problems.append(f"{key} is missing; the value given is {problem['input']!r}")
        else:
            problems.append(f"{key}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}")
    return "; ".join(dict.fromkeys(problems))
