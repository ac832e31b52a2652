"""What mpp/export.py does: an encoder for other libraries, and the certificate of how far it is from mpp's own there."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mpp.base import text
from mpp.base.progress import Progress
from mpp.config.pretrain import PretrainConfig
from mpp.disk.files import make_folder
from mpp.interop.certificate import CERTIFICATE, certify, check, import_transformers, write_certificate
from mpp.interop.encoder_folder import timm_config
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.interop.preprocessing import transformers_preprocessing
from mpp.interop.read_encoder import read_encoder
from mpp.interop.to_transformers import refuse_vit, refuse_vit_mae, vit_files, vit_mae_files
from mpp.interop.weight_files import write_json, write_weights
from mpp.model.tokens import class_tokens_of
from mpp.train.commit import read_config, read_tensors, whole_commit
from mpp.train.copies import local

USE = {
    "timm": "timm.create_model('local-dir:{0}', pretrained=True)",
    "transformers": "transformers.AutoModel.from_pretrained('{0}')",
    "transformers-mae": "transformers.ViTMAEForPreTraining.from_pretrained('{0}')",
    "safetensors": "safetensors.torch.load_file('{0}/encoder.safetensors')",
}


@dataclass(frozen=True)
class Source:
    encoder: LoadedEncoder  # with the decoder of a run, where there is one
    run: PretrainConfig | None  # None where it is no run


def check_all(folders: Sequence[Path]) -> int:
    """Measure the certificates in these folders again."""
    for folder in certified(folders):
        with Progress(f"checking {folder}", at_once=True):
            found = check(folder)
        show(folder, found)
    return 0


def export(path: str, out: str, targets: Sequence[str], teacher: bool = False) -> int:
    """path: of anything that mpp reads as an encoder.  teacher: of a run, the average that it learned from.  Raises UserError."""
    source = open_teacher(path) if teacher else open_source(path)
    refuse(source, targets)  # before anything is written
    text.say(f"encoder   {source.encoder.source} ({path}), sha256 {source.encoder.digest}")
    for kind in targets:
        folder = Path(out) / kind
        make_folder(folder, "OUT")
        (folder / CERTIFICATE).unlink(missing_ok=True)  # it is of what was there before
        write = WRITERS[kind]
        with Progress(f"writing {folder}, and opening it again", at_once=True):
            write(source, folder, {})
            made = certify(source.encoder, kind, folder)
            write(source, folder, {"mpp.certificate": json.dumps(made)})  # the same tensors: only the header grows
            write_certificate(made, folder)
            found = check(folder)
        show(folder, found)
        text.say(f"          {USE[kind].format(folder)}")
    return 0


def open_source(path: str) -> Source:
    commit = whole_commit(Path(local(path)))
    encoder = read_encoder(path, commit=commit)
    if commit is None or commit.record.get("program") == "finetune":  # a fine-tuned run has no decoder
        return Source(encoder, None)
    config = read_config(commit)
    decoder = read_tensors(commit, "weight/decoder.") if config.decoder.name == "transformer" else {}
    return Source(replace(encoder, decoder=decoder), config)


def open_teacher(path: str) -> Source:
    """Without the decoder, which is the student's.  Raises CheckpointError where there is none."""
    return Source(read_encoder(path, network="teacher"), None)


def refuse(source: Source, targets: Sequence[str]) -> None:
    """Raises ConfigError where a target cannot express the encoder, or its library is not there to open it again."""
    if "transformers" in targets:
        refuse_vit(source.encoder)
    if "transformers-mae" in targets:
        refuse_vit_mae(source.encoder, source.run)
    if any(kind.startswith("transformers") for kind in targets):
        import_transformers()


def certified(folders: Sequence[Path]) -> list[Path]:
    """Those folders, or the exports inside of them."""
    found: list[Path] = []
    for folder in folders:
        inside = [folder / kind for kind in WRITERS if (folder / kind / CERTIFICATE).exists()]
        found += inside if inside and not (folder / CERTIFICATE).exists() else [folder]
    return found


def show(folder: Path, made: Mapping[str, Any]) -> None:
    off = ", ".join(f"{name} {delta:.2g}" for name, delta in made["max_delta"].items())
    text.say(f"{made['target']:18}{folder}: max|delta| {off} (bound {made['bound']:.2g}); encoder {made['encoder']['digest'][:16]}...")


# Each writes one target's files, with further metadata in the header of its safetensors file.


def write_timm(source: Source, folder: Path, metadata: dict[str, str]) -> None:
    write_weights(folder / "model.safetensors", source.encoder.net.state_dict(), metadata)
    write_json(folder / "config.json", timm_folder_config(source.encoder))


def write_plain(source: Source, folder: Path, metadata: dict[str, str]) -> None:
    encoder, config = source.encoder, timm_folder_config(source.encoder)
    about = {key: config[key] for key in ("architecture", "model_args", "pretrained_cfg")} | config["mpp"]
    write_weights(folder / "encoder.safetensors", encoder.net.state_dict(), {"mpp": json.dumps(about), **metadata})


def write_transformers(source: Source, folder: Path, metadata: dict[str, str]) -> None:
    write_transformers_folder(folder, source.encoder, *vit_files(source.encoder), metadata)


def write_transformers_mae(source: Source, folder: Path, metadata: dict[str, str]) -> None:
    assert source.run is not None  # refuse
    write_transformers_folder(folder, source.encoder, *vit_mae_files(source.encoder, source.run, source.encoder.decoder), metadata)


WRITERS: dict[str, Callable[[Source, Path, dict[str, str]], None]] = {
    "timm": write_timm,
    "transformers": write_transformers,
    "transformers-mae": write_transformers_mae,
    "safetensors": write_plain,
}


def write_transformers_folder(
    folder: Path, encoder: LoadedEncoder, config: dict[str, Any], tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    write_weights(folder / "model.safetensors", tensors, metadata)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", transformers_preprocessing(encoder.image_size, encoder.mean, encoder.std))


def timm_folder_config(encoder: LoadedEncoder) -> dict[str, Any]:
    net: Any = encoder.net
    name, arguments = encoder.architecture
    about: dict[str, Any] = {"source": encoder.source, "class_tokens": class_tokens_of(net)}  # the first of its prefix tokens
    if encoder.model is not None:
        about["model"] = encoder.model.model_dump(mode="json")
    elif encoder.norm_eps is not None:
        about["norm_eps"] = encoder.norm_eps
    traits = getattr(net, "pretrained_cfg", None) or {}
    ends = {key: traits[key] for key in ("first_conv", "classifier") if traits.get(key)}
    fixed = bool(traits.get("fixed_input_size")) or "img_size" in arguments
    return timm_config(name, arguments, (encoder.image_size,) * 2, encoder.mean, encoder.std, about, fixed_input_size=fixed, **ends)
