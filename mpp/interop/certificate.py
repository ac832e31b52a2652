"""How far an exported encoder, opened again from its files by the library it was made for, is from mpp's own: CERTIFICATE.json.

The inputs follow a rule that needs no stored image.  `check` does everything anew: the files' sha256, the encoder they hold, the difference.
"""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

import mpp
from mpp.base.errors import CheckpointError, ConfigError
from mpp.disk.files import sha256_of
from mpp.interop.loaded_encoder import LoadedEncoder, weights_digest
from mpp.interop.preprocessing import worded_preprocessing
from mpp.interop.read_encoder import read_encoder
from mpp.interop.weight_files import read_json, read_weights, write_json
from mpp.model.encoder import Encoder
from mpp.model.normalise import normalise
from mpp.model.tokens import class_feature, class_tokens_of
from mpp.recipe.decoders import TransformerDecoder
from mpp.recipe.decoders.base import Given

CERTIFICATE = "CERTIFICATE.json"
FORMAT = 1
IMAGES = 2
RULE = "colour of image i, channel c, row y, column x = ((c + 1) x x + (i + 1) y y + 3 x y + 17 c + 29 i) mod 256, then (colour / 255 - mean) / std"
BOUND = 1e-4  # of the largest |value|: two libraries' float32 kernels differ by 1e-6 to 1e-5 of it
FILES = {
    "timm": ("config.json", "model.safetensors"),
    "transformers": ("config.json", "model.safetensors", "preprocessor_config.json"),
    "transformers-mae": ("config.json", "model.safetensors", "preprocessor_config.json"),
    "safetensors": ("encoder.safetensors",),
}
TOKENS = {
    "timm": "timm.create_model('local-dir:FOLDER', pretrained=True).forward_features(images)",
    "transformers": "AutoModel.from_pretrained(FOLDER)(images).last_hidden_state",
    "transformers-mae": "ViTMAEForPreTraining.from_pretrained(FOLDER).vit(images) with mask_ratio 0",
    "safetensors": "timm.create_model(architecture, **model_args) with these weights, .forward_features(images)",
}


def fixed_images(side: int) -> Tensor:
    """uint8 [IMAGES, 3, S, S] after RULE."""
    i, c, y, x = np.ogrid[:IMAGES, :3, :side, :side]
    return torch.from_numpy((((c + 1) * x * x + (i + 1) * y * y + 3 * x * y + 17 * c + 29 * i) % 256).astype(np.uint8))


def fixed_inputs(encoder: LoadedEncoder) -> Tensor:
    """float32 [IMAGES, 3, S, S], normalised as the encoder takes them."""
    return normalise(fixed_images(encoder.image_size), encoder.mean, encoder.std)


@torch.no_grad()
def deltas(encoder: LoadedEncoder, kind: str, folder: Path) -> tuple[dict[str, float], float]:
    """max |mpp's - the reopened export's| of tokens and pooled features, and the largest |value| of mpp's tokens."""
    images = fixed_inputs(encoder)
    theirs, predicted = _reopened(kind, folder)
    net: Any = encoder.net
    found = {"mpp": _rows(net.forward_features(images), net.num_features), "export": _rows(theirs(images), net.num_features)}
    if found["mpp"].shape != found["export"].shape:
        shapes = {name: tuple(tokens.shape) for name, tokens in found.items()}
        raise CheckpointError(
            f"{folder}: its tokens have the shape {shapes['export']}, those of mpp's encoder {shapes['mpp']}; export it again"
        )
    prefix = getattr(net, "num_prefix_tokens", 0) or 0
    pooled = {"tokens": lambda tokens: tokens, "mean": lambda tokens: tokens[:, prefix:].mean(1)}
    if class_tokens := class_tokens_of(net):
        pooled["cls"] = lambda tokens: class_feature(tokens, class_tokens)
    off = {name: float((pool(found["mpp"]) - pool(found["export"])).abs().max()) for name, pool in pooled.items()}
    if predicted is not None:
        ours = _predictions(encoder, read_json(folder / "config.json"), images)
        off["predictions"] = float((ours - predicted(images)).abs().max())
    return off, float(found["mpp"].abs().max())


def certify(encoder: LoadedEncoder, kind: str, folder: Path) -> dict[str, Any]:
    """Of a folder just written; raises CheckpointError where the export is not the encoder."""
    off, largest = deltas(encoder, kind, folder)
    prefix = getattr(encoder.net, "num_prefix_tokens", 0) or 0
    made: dict[str, Any] = {
        "format": FORMAT,
        "target": kind,
        "encoder": {"source": encoder.source, "digest": encoder.digest, "decoder_digest": weights_digest(encoder.decoder), "architecture": encoder.architecture[0], "model_args": encoder.architecture[1]},
        "inputs": {"rule": RULE, "shape": [IMAGES, 3, encoder.image_size, encoder.image_size]},
        "tokens": TOKENS[kind],
        "pooling": {"mean": f"mean of the tokens from {prefix} on", "cls": "token 0" if class_tokens_of(encoder.net) < 2 else f"mean of the first {class_tokens_of(encoder.net)} tokens"},
        "token_norm": "on: the final norm on every token, before pooling",
        "preprocessing": worded_preprocessing(encoder.image_size, encoder.mean, encoder.std),
        "max_delta": off,
        "largest_value": largest,
        "bound": BOUND * largest,
        "versions": {"mpp": mpp.__version__} | {name: found for name in ("torch", "timm", "transformers", "safetensors") if (found := _version(name))},
    }  # fmt: skip
    _within(made["max_delta"], made["bound"], folder)
    return made


def write_certificate(made: Mapping[str, Any], folder: Path) -> None:
    """Write CERTIFICATE.json beside the files it is of, which it names with their sha256."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in FILES[made["target"]]}
    write_json(folder / CERTIFICATE, {**made, "files": files})


def check(folder: Path) -> dict[str, Any]:
    """The certificate with its differences measured again.  Raises CheckpointError where anything is not what was certified."""
    if not (folder / CERTIFICATE).exists():
        raise CheckpointError(f"{folder} holds no {CERTIFICATE}; give a folder that mpp/export.py wrote to its end")
    made = read_json(folder / CERTIFICATE)
    kind = made.get("target")
    try:
        if made["format"] != FORMAT or kind not in FILES or set(made["files"]) != set(FILES[kind]):
            raise CheckpointError(
                f"{folder}/{CERTIFICATE} is not one that this mpp writes (format {made['format']}, target {kind}); export it again"
            )
        facts = {name: (made["files"][name]["bytes"], made["files"][name]["sha256"]) for name in FILES[kind]}
        digest, decoder, bound = made["encoder"]["digest"], made["encoder"]["decoder_digest"], float(made["bound"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/{CERTIFICATE} is damaged ({error!r}); export it again") from error
    for name, (size, sha256) in facts.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size or sha256_of(file) != sha256:
            raise CheckpointError(f"{file} is not the file that was certified (sha256 or size differ, or it is gone); export it again")
    encoder = read_encoder(folder, quiet=True)
    if encoder.digest != digest or (kind == "transformers-mae" and weights_digest(encoder.decoder) != decoder):
        raise CheckpointError(
            f"{folder} holds the encoder {encoder.digest[:16]}..., the certificate is of {digest[:16]}...; export it again"
        )
    off, largest = deltas(encoder, kind, folder)
    _within(off, min(bound, BOUND * largest), folder)
    return {**made, "max_delta": off}


def _within(off: Mapping[str, float], bound: float, folder: Path) -> None:
    for name, delta in off.items():
        if not delta <= bound:
            raise CheckpointError(
                f"{folder}: its {name} differ from mpp's by {delta:.3g}, more than the {bound:.3g} that float32 explains; the versions of the "
                f"libraries may not fit: compare them with those in {CERTIFICATE}"
            )


def _reopened(kind: str, folder: Path) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
    """images -> tokens by the library itself; and for MAE images -> predictions [B, N, O] under the fixed mask."""
    with torch.random.fork_rng(devices=[]):
        if kind == "timm":
            whole: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            return whole.forward_features, None
        if kind == "safetensors":
            weights, metadata = read_weights(folder / FILES[kind][0])
            about = json.loads(metadata["mpp"])
            net: Any = timm.create_model(about["architecture"], **about["model_args"], num_classes=0).eval()
            net.load_state_dict(weights)
            return net.forward_features, None
        transformers = import_transformers()
        name = "AutoModel" if kind == "transformers" else "ViTMAEForPreTraining"
        bars = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()
        try:
            model, info = getattr(transformers, name).from_pretrained(str(folder), output_loading_info=True)
        finally:
            if bars:
                transformers.utils.logging.enable_progress_bar()
    if wrong := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
        raise CheckpointError(
            f"{folder}: transformers {transformers.__version__} finds tensors missing, beyond or of another shape: {wrong[:3]}"
        )
    model.eval()
    if kind == "transformers":
        return lambda images: model(images).last_hidden_state, None

    def tokens(images: Tensor) -> Tensor:
        ratio, model.config.mask_ratio = model.config.mask_ratio, 0.0
        patches = torch.arange(model.vit.embeddings.patch_embeddings.num_patches)
        found = model.vit(images, noise=patches.float().expand(len(images), -1)).last_hidden_state
        model.config.mask_ratio = ratio
        return found

    def predictions(images: Tensor) -> Tensor:
        patches = model.vit.embeddings.patch_embeddings.num_patches
        return model(images, noise=_order(patches).float().expand(len(images), -1)).logits

    return tokens, predictions


def _order(patches: int) -> Tensor:
    """int64 [N]: the rank of each patch, whose lowest a fixed mask shows: patch n has rank 5 n mod N, or 7 n, 11 n ... where 5 divides N."""
    factor = next(prime for prime in (5, 7, 11, 13, 17, 19, 23) if patches % prime)
    return torch.arange(patches) * factor % patches


def _predictions(encoder: LoadedEncoder, config: Mapping[str, Any], images: Tensor) -> Tensor:
    """By mpp's own model, of every patch [B, N, O], from what the exported folder holds of the decoder."""
    net = Encoder(encoder.net)  # type: ignore[arg-type]
    section = TransformerDecoder(
        depth=config["decoder_num_hidden_layers"], width=config["decoder_hidden_size"], heads=config["decoder_num_attention_heads"]
    )
    with torch.random.fork_rng(devices=[]):
        decoder = section.build(Given(net.width, encoder.decoder["head.bias"].shape[0], net.prefix, net.grid, net.depth))
    decoder.load_state_dict(dict(encoder.decoder))
    patches = net.grid[0] * net.grid[1]
    kept = int(patches * (1 - config["mask_ratio"]))
    visible = _order(patches).argsort()[:kept].expand(len(images), -1)
    return decoder.eval()(net(net.embed(images), visible), visible, torch.arange(patches).expand(len(images), -1))


def _rows(tokens: Tensor, width: int) -> Tensor:
    """[B, T, D]; the cells of a feature map count as tokens."""
    if tokens.ndim == 3:
        return tokens
    return tokens.flatten(1, 2) if tokens.shape[-1] == width else tokens.flatten(2).transpose(1, 2)


def import_transformers() -> Any:
    """Raises ConfigError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"the transformers package, which has to open its own format again, cannot be imported ({error}); pip install 'transformers>=4.50', "
            "or take --to timm"
        ) from error
    return transformers


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
