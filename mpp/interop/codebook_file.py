"""A codebook as one file: safetensors with the centres, how many patches each had, and in the header what they are of.

Anybody's safetensors reader opens it: `centres` float32 [C, V], `counts` int64 [C], and JSON under the header's "mpp.codebook".
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from mpp.base.errors import CheckpointError
from mpp.config.schema import Count, Pair, Positive, Section, Triple
from mpp.disk.files import seal_of
from mpp.interop.loaded_encoder import weights_digest
from mpp.interop.weight_files import read_weights, write_weights
from mpp.recipe.targets import TargetConfig

HEADER = "mpp.codebook"
FORMAT = 1


class Facts(Section):
    """What the centres are of, and how they were found."""

    format: int = FORMAT
    mpp: str  # version
    of: TargetConfig  # whose goals they are centres of
    encoder: str | None = None  # digest of the one that `of` names, if it names one
    patch_size: Positive  # pixels a side
    image_size: Positive  # pixels a side
    mean: Triple  # of the input normalisation, in whose units goals are
    std: Triple
    crop_scale: Pair
    crop_ratio: Pair
    flip: bool
    vertical_flip: bool = False  # as in files from before it could be otherwise
    turns: bool = False
    shards: str  # sha256 of their manifest
    seed: Count
    patches: Positive  # that the centres were fitted to
    error: float  # mean squared difference of a goal's value from its centre's, over those patches
    holdout_error: float  # over patches of images that were not fitted to
    perplexity: float  # e to the entropy of the codes' shares there


@dataclass(frozen=True)
class CodebookFile:
    centres: Tensor  # float32 [C, V]
    counts: Tensor  # int64 [C], of the patches fitted to
    facts: Facts

    @property
    def digest(self) -> str:
        """sha256 over what a target makes of it, hexadecimal: the same wherever the file and the encoder it names lie."""
        facts = self.facts.model_dump(mode="json", include={"of", "encoder", "patch_size", "mean", "std"})
        facts["of"].pop("encoder", None)
        return seal_of(facts | {"centres": weights_digest({"centres": self.centres})})


def write_codebook(path: Path, codebook: CodebookFile) -> None:
    """Whole or not at all."""
    tensors = {"centres": codebook.centres.cpu(), "counts": codebook.counts.cpu()}
    record = codebook.facts.model_dump(mode="json") | {"tensors": weights_digest(tensors)}
    write_weights(path, tensors, {HEADER: json.dumps(record | {"seal": seal_of(record)})})


def read_codebook(path: Path) -> CodebookFile:
    """Raises CheckpointError for a file that `write_codebook` has not written, or that is no longer as it was."""
    tensors, metadata = read_weights(path)
    if HEADER not in metadata:
        raise CheckpointError(f"{path} is no codebook: its header has no {HEADER}; give a file that mpp/fit_codebook.py wrote")
    try:
        record = json.loads(metadata[HEADER])
        whole = record["seal"] == seal_of(record) and record["tensors"] == weights_digest(tensors)
        known = {key: value for key, value in record.items() if key not in ("seal", "tensors")}
        version = known["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its header cannot be read ({error!r}); fit it again with mpp/fit_codebook.py") from error
    if not whole:
        raise CheckpointError(f"{path} is damaged: it does not fit its own seal; fit it again with mpp/fit_codebook.py")
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this mpp reads {FORMAT}; fit it again with mpp/fit_codebook.py")
    try:
        facts = Facts.model_validate_json(json.dumps(known))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(
            f"{path}: this mpp does not know its {where} ({problem['msg']}); fit it again with mpp/fit_codebook.py"
        ) from error
    return CodebookFile(tensors["centres"].to(torch.float32), tensors["counts"], facts)
