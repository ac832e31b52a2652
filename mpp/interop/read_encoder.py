"""The way in: an encoder from a run, a folder, a file or timm's own, whoever trained it."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from mpp.base.errors import CheckpointError
from mpp.base.progress import Progress
from mpp.base.text import say
from mpp.config.sections import ModelConfig
from mpp.interop.encoder_folder import PREFIXES, fault_of
from mpp.interop.foreign_encoder import TIMM, WEIGHTS, open_file, open_folder, open_timm
from mpp.interop.loaded_encoder import LoadedEncoder, LoadedPredictor, load_plain
from mpp.interop.pretraining import pretraining_beside, pretraining_of
from mpp.interop.weight_files import read_json, read_weights
from mpp.model.encoder import Encoder
from mpp.recipe.decoders.base import Given
from mpp.recipe.targets import base as targets
from mpp.recipe.teacher import TeacherKnobs
from mpp.train.commit import Commit, not_finite, read_config, read_tensors, some, whole_commit
from mpp.train.copies import local

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def read_encoder(source: str | Path, *, quiet: bool = False, commit: Commit | None = None, network: str = "encoder") -> LoadedEncoder:
    """The encoder of a run (its newest whole commit; also in a store, s3://...), of one checkpoint folder, an exported folder or file, `timm:NAME`, or another project's checkpoint.

    commit: of the run, where the caller has read it.  network: "teacher" for the average that a run of pretraining has learned from.  What was assumed or left out is said on stderr, unless `quiet`.  Raises CheckpointError,
    ConfigError; also for weights that are not finite.
    """
    with Progress(f"reading the encoder {source}", at_once=True):
        loaded = _open(local(str(source)), commit, network)
        decoder = loaded.predictor.net.state_dict() if loaded.predictor else loaded.decoder
        tensors = {**loaded.net.state_dict(), **{f"decoder.{name}": tensor for name, tensor in decoder.items()}}
        broken = [name for name, tensor in tensors.items() if not_finite(tensor)]
    if broken:
        raise CheckpointError(
            f"{source} holds numbers that are not finite, in {some(broken)}; give an earlier checkpoint, or another encoder"
        )
    if not quiet and os.environ.get("RANK", "0") == "0":
        for note in loaded.notes:
            say(f"note: {source}: {note}", error=True)
    return loaded


def _open(source: str, commit: Commit | None = None, network: str = "encoder") -> LoadedEncoder:
    path = Path(source)
    if network == "teacher" and commit is None and path.is_dir():
        commit = whole_commit(path)
    if network == "teacher" and not has_teacher(commit):
        raise CheckpointError(
            f"{source} has no teacher: that is what a pretraining run, or its checkpoint, has whose target learns from an average of its encoder "
            "(such as target.name=features); leave --teacher (in Python: network) out for the encoder"
        )
    if source.startswith(TIMM):
        return open_timm(source)
    if path.is_file():
        return open_file(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{source} is neither a folder nor a file; give a run, an encoder/ folder, a checkpoint of weights, or {TIMM}NAME for one of timm's"
        )
    if (path / "encoder.safetensors").exists():
        return open_file(path / "encoder.safetensors")
    if any((path / name).exists() for name in WEIGHTS):
        about = read_json(path / "config.json")
        if fault := fault_of(path, about):
            raise CheckpointError(
                f"{path} is damaged: {fault}; give the command that wrote it again, or the run instead of its encoder/ folder"
            )
        return _open_own(path, about) if "model" in (about.get("mpp") or {}) else open_folder(path)
    commit = commit or whole_commit(path)
    if commit is None and (path / "encoder" / "config.json").exists():
        return _open(str(path / "encoder"))  # of repeats, which have their checkpoints in folders of their own
    if commit is None:
        raise CheckpointError(
            f"{source} holds neither checkpoints/*/COMMIT.json nor {', '.join(WEIGHTS)}; give a run folder with a checkpoint, an encoder/ "
            f"folder, a checkpoint of weights, or {TIMM}NAME for one of timm's"
        )
    if commit.record.get("program") == "finetune":
        if (path / "COMMIT.json").exists():
            raise CheckpointError(
                f"{source} is a checkpoint of fine-tuning; give its run, {path.parent.parent}, whose encoder/ holds what was chosen"
            )
        return _open(str(path / "encoder"))  # its weights, or their average, as the run chose
    config = read_config(commit)
    weights = read_tensors(commit, PREFIXES[network])
    words = f"{'' if network == 'encoder' else 'teacher of '}{commit.folder.parent.parent.name} at {commit.samples_seen} samples"
    found = _fitting(path, config.model, weights, config.data.mean, config.data.std, words)
    predictor = _predictor(commit, found) if network == "encoder" else None
    return replace(found, pretraining=pretraining_of(commit, network), predictor=predictor)


def has_teacher(commit: Commit | None) -> bool:
    """Whether it holds an average of the encoder that the run learns from."""
    return commit is not None and commit.record.get("program") != "finetune" and isinstance(read_config(commit).target, TeacherKnobs)


def _predictor(commit: Commit, loaded: LoadedEncoder) -> LoadedPredictor | None:
    """The run's decoder, where its first block is a feature, too."""
    config, vit = read_config(commit), cast("VisionTransformer", loaded.net)
    if not config.decoder.has_feature:
        return None
    encoder = Encoder(vit)
    weights = read_tensors(commit, "weight/decoder.")
    head, outputs = None, len(weights.get("head.weight", ()))
    if not outputs:  # not a linear one: the target's own
        about = targets.Given(config.model.patch_size, encoder.width, encoder.depth, config.data.mean, config.data.std)
        target = config.target.build(about)
        head, outputs = target.head, target.outputs
    given = Given(encoder.width, outputs, encoder.prefix, encoder.grid, encoder.depth, config.mask.groups, target_head=head)
    net = config.decoder.build(given)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {commit.folder} do not fit its own decoder section: {error}") from error
    return LoadedPredictor(config.decoder, given, net.eval())


def _open_own(folder: Path, about: dict[str, Any]) -> LoadedEncoder:
    """A folder that write_encoder wrote."""
    weights, _ = read_weights(folder / "model.safetensors")
    try:
        model = ModelConfig.model_validate_json(json.dumps(about["mpp"]["model"]))
        mean, std, source = about["pretrained_cfg"]["mean"], about["pretrained_cfg"]["std"], about["mpp"]["source"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is not an encoder folder that mpp wrote ({error}); give a run folder or its encoder/ folder"
        ) from error
    return replace(_fitting(folder, model, weights, mean, std, source), pretraining=pretraining_beside(folder, about["mpp"]))


def _fitting(path: Path, model: ModelConfig, weights: Mapping[str, Tensor], mean: Any, std: Any, source: str) -> LoadedEncoder:
    try:
        return load_plain(model, weights, mean, std, source)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {path} do not fit its own model section: {error}") from error
