"""Encoders that mpp has not trained: timm's models by name, folders of timm and transformers, and files of MAE, SimMIM, BEiT and timm.

A file's architecture is inferred from its shapes; what is assumed or left out is said in the encoder's notes.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from mpp.base.errors import CheckpointError, ConfigError
from mpp.base.rng import INIT, seed_of
from mpp.base.text import say
from mpp.config.sections import ModelConfig
from mpp.interop.foreign_names import HEAD_WIDTH, architecture_from_shapes, translate
from mpp.interop.loaded_encoder import LoadedEncoder, digest_of
from mpp.interop.weight_files import read_json, read_weights
from mpp.model.encoder import build_encoder
from mpp.model.tokens import class_tokens_of, note_class_tokens, set_norm_eps, sincos_positions

TIMM, RANDOM = "timm:", "random"
WEIGHTS = ("model.safetensors", "encoder.safetensors", "pytorch_model.bin")  # of a folder, the first that is there
TRANSFORMERS_KINDS = ("vit", "vit_mae")
NORM_EPS = 1e-6  # of mpp's encoders, and of timm's Vision Transformers
# Of a plain ViT that mpp itself would build from a ModelConfig; whatever differs is built by timm.
PLAIN = {"mlp_ratio": 4.0, "qkv_bias": True, "fc_norm": False}


def open_timm(source: str) -> LoadedEncoder:
    """timm:NAME with timm's published weights, timm:NAME@random, or timm:NAME@FILE.  Raises ConfigError, CheckpointError."""
    name, _, where = source.removeprefix(TIMM).partition("@")
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(f"{source}: timm {timm.__version__} has no model {name}; timm.list_models('*PART*') names those it has")
    notes: list[str] = []
    if where:
        net = _build(name, {}, seed_of(0, INIT, 0))
        if where != RANDOM:
            _fill(net, read_weights(Path(where))[0], source, notes)
    else:
        try:
            with _hub_at_work(source):
                net = timm.create_model(name, pretrained=True, num_classes=0)
        except (OSError, RuntimeError) as error:  # a network or a cache without it; a name without weights
            reason = " ".join(str(_first_cause(error)).split())[:160]
            raise CheckpointError(
                f"{source}: timm cannot get its weights ({reason}); where there is no network, point HF_HOME to a cache that holds them, or give "
                f"a file, {TIMM}{name}@/path/to/model.safetensors (for probes also {TIMM}{name}@{RANDOM}, without weights)"
            ) from error
    words = f"{name} (timm{f', {Path(where).name}' if where else ''})"
    return _loaded(net, name, {}, getattr(net, "pretrained_cfg", None) or {}, words, notes)


@contextmanager
def _hub_at_work(source: str) -> Iterator[None]:
    """Says once that weights are looked for, and keeps the library from saying so at each of its tries."""
    if os.environ.get("RANK", "0") == "0":
        say(
            f"note: {source}: its weights come from the hub, or the cache of an earlier time (HF_HUB_OFFLINE=1: from the cache alone; without a "
            "network the hub is given up after a minute)",
            error=True,
        )
    heard = logging.getLogger("huggingface_hub")
    level = heard.level
    heard.setLevel(logging.ERROR)
    try:
        yield
    finally:
        heard.setLevel(level)


def _first_cause(error: BaseException) -> BaseException:
    """Of a chain of errors the one that all others are told by, such as a name that no server knows."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def open_folder(folder: Path) -> LoadedEncoder:
    """A folder with weights and the config.json of timm (local-dir) or transformers (ViT, ViTMAE).  Raises CheckpointError."""
    file = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if file is None:
        raise CheckpointError(
            f"{folder} holds none of {', '.join(WEIGHTS)}; weights in several pieces have to be joined into one file first"
        )
    about = read_json(folder / "config.json")
    weights, _ = read_weights(file)
    if "architecture" in about:
        name, arguments, notes = about["architecture"], dict(about.get("model_args") or {}), list[str]()
        net = _build(name, arguments, 0)
        _fill(net, weights, str(folder), notes)
        ours = about.get("mpp") or {}
        eps = ours.get("norm_eps", None)
        note_class_tokens(net, ours.get("class_tokens"))
        return _loaded(net, name, arguments, about.get("pretrained_cfg") or {}, _words(folder, "timm", about), notes, eps=eps)
    kind = about.get("model_type")
    if kind not in TRANSFORMERS_KINDS:
        raise CheckpointError(
            f"{folder} holds a {kind or 'model of no named kind'}; mpp reads folders of timm, and of transformers' {' and '.join(TRANSFORMERS_KINDS)}"
        )
    if about.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"{folder}: hidden_act={about['hidden_act']}; mpp's encoders have gelu, so they would compute something else")
    processor = folder / "preprocessor_config.json"
    shown = read_json(processor) if processor.exists() else {}
    config = {"mean": shown.get("image_mean"), "std": shown.get("image_std")}
    words, eps = _words(folder, kind, about), about.get("layer_norm_eps", 1e-12)
    found = _inferred(weights, folder, config, words, about.get("num_attention_heads"), eps)
    return replace(found, decoder_heads=about.get("decoder_num_attention_heads") if found.decoder else None)


def open_file(file: Path) -> LoadedEncoder:
    """A file of weights alone, in safetensors or torch's format.  Raises CheckpointError."""
    weights, metadata = read_weights(file)
    if "mpp" not in metadata:
        return _inferred(weights, file, {}, "", None, NORM_EPS)
    about, notes = json.loads(metadata["mpp"]), list[str]()
    net = _build(about["architecture"], about["model_args"], 0)
    _fill(net, weights, str(file), notes)
    note_class_tokens(net, about.get("class_tokens"))
    model = ModelConfig.model_validate_json(json.dumps(about["model"])) if about.get("model") else None
    config = about["pretrained_cfg"]
    return _loaded(net, about["architecture"], about["model_args"], config, about["source"], notes, model=model, eps=about.get("norm_eps"))


def _inferred(weights: dict[str, Tensor], path: Path, config: dict[str, Any], words: str, heads: int | None, eps: float) -> LoadedEncoder:
    """A Vision Transformer known by its tensors; heads: None where nothing says how many."""
    try:
        found = translate(weights)
        name, arguments = architecture_from_shapes(found.encoder, heads)
        decoder, notes = dict(found.decoder), list[str]()
        if found.decoder_positions is not None:
            side = arguments["img_size"] // arguments["patch_size"]
            fixed = sincos_positions(found.decoder_positions.shape[-1], (side, side))
            if not torch.allclose(found.decoder_positions[0, -len(fixed) :].float(), fixed, atol=1e-4):
                notes.append("its decoder's positions are not the fixed sine-cosine ones and are left out")
    except (CheckpointError, KeyError) as error:
        raise CheckpointError(f"{path}: {error if isinstance(error, CheckpointError) else f'it has no tensor {error}'}") from error
    if found.dropped:
        notes.append(f"not of the encoder and left out: {', '.join(found.dropped[:4])}{', ...' if len(found.dropped) > 4 else ''}")
    if heads is None and not any("relative_position_bias_table" in name for name in found.encoder):
        heads = arguments["num_heads"]
        usual = "width / 64" if arguments["embed_dim"] == heads * HEAD_WIDTH else "as in published models of that width"
        notes.append(f"{heads} attention heads are assumed ({usual}): a file of weights does not say")
    model = None
    plain = name.startswith("vit") and all(arguments[key] == value for key, value in PLAIN.items())
    if plain and not {"reg_tokens", "no_embed_class", "init_values", "pre_norm"} & arguments.keys() and eps == NORM_EPS:
        model = ModelConfig(
            image_size=arguments["img_size"], patch_size=arguments["patch_size"], width=arguments["embed_dim"], depth=arguments["depth"],
            heads=arguments["num_heads"], class_tokens=int(arguments["class_token"]),
        )  # fmt: skip
    net = _build(name, arguments, 0)
    _fill(net, found.encoder, str(path), notes)
    words = words or f"{path.name} ({found.form})"
    return _loaded(net, name, arguments, config, words, notes, model=model, eps=eps, decoder=decoder)


def _loaded(
    net: nn.Module,
    name: str,
    arguments: dict[str, Any],
    config: Mapping[str, Any],
    words: str,
    notes: list[str],
    *,
    model: ModelConfig | None = None,
    eps: float | None = None,
    decoder: Mapping[str, Tensor] | None = None,
) -> LoadedEncoder:
    """config: timm's pretrained_cfg, of which mean, std and input_size are used.  eps: of every LayerNorm; None: as timm builds it."""
    eps = None if model is not None else eps
    set_norm_eps(net, eps)
    mean, std = config.get("mean"), config.get("std")
    if not mean or not std:
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        notes.append("nothing says how its images were normalised: ImageNet's mean and deviation are assumed")
    size = getattr(getattr(net, "patch_embed", None), "img_size", None) or config.get("input_size", (3, 224, 224))[1:]
    if size[0] != size[-1]:
        raise CheckpointError(f"{words} is for images of {size[0]} x {size[-1]} pixels; mpp's probes and recipes take square ones")

    def fresh(seed: int) -> nn.Module:
        if model is not None:
            return build_encoder(model, seed).vit
        return note_class_tokens(set_norm_eps(_build(name, arguments, seed), eps), class_tokens_of(net))

    return LoadedEncoder(
        net.eval(), model, int(size[0]), tuple(mean), tuple(std), words, digest_of(net), fresh, (name, {**arguments, "num_classes": 0}),
        decoder or {}, None, eps, tuple(notes),
    )  # fmt: skip


def _build(name: str, arguments: Mapping[str, Any], seed: int) -> nn.Module:
    """timm's model without a classifier, at timm's random initialisation, without touching torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return timm.create_model(name, pretrained=False, **{**arguments, "num_classes": 0})
        except (TypeError, AssertionError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"timm {timm.__version__} cannot build {name} as its config says ({error}); try another version of timm"
            ) from error


def _fill(net: nn.Module, weights: Mapping[str, Tensor], source: str, notes: list[str]) -> None:
    """Every tensor into its place, as float32; those of a classifier are left out and noted.  Raises CheckpointError for any other difference."""
    own = net.state_dict()
    config: Mapping[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or "head"
    names = (heads,) if isinstance(heads, str) else tuple(heads)
    extra = [name for name in weights if name not in own]
    head = [name for name in extra if name.startswith(tuple(f"{name}." for name in names))]
    unknown = sorted(set(extra) - set(head))
    missing = [name for name in own if name not in weights]
    other = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    if unknown or missing or other:
        kinds = [("it lacks", missing), ("it has beyond the model", unknown), ("of another shape are", other)]
        problems = "; ".join(f"{words} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" for words, names in kinds if names)
        raise CheckpointError(f"{source} is no {type(net).__name__} as its shapes or config say: {problems}")
    if head:
        notes.append(f"its classifier is left out: {', '.join(head)}")
    if halves := {str(weights[name].dtype) for name in own if weights[name].is_floating_point()} - {"torch.float32"}:
        notes.append(f"its weights are {', '.join(sorted(halves))}, here made float32")
    net.load_state_dict({name: weights[name].to(own[name].dtype) for name in own})


def _words(folder: Path, form: str, about: Mapping[str, Any]) -> str:
    return (about.get("mpp") or {}).get("source") or f"{folder.name} ({form})"
