"""What an encoder's own pretraining was, so that results of several seeds of one recipe can be told from results of several recipes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpp.base.errors import ConfigError
from mpp.train.commit import Commit, commits, read_config
from mpp.train.run_folder import LIMITS, PATHS


def pretraining_of(commit: Commit, network: str = "encoder") -> dict[str, Any]:
    """{"recipe": sha256, "seed", "samples_seen"} of the pretraining run that wrote it; of a branch also {"branched_from": {"checkpoint",
    "samples_seen", "commit"}}.  network: "teacher" for the average, which is another recipe's result.

    The recipe is what changes results: the run's config without its seed, its folder, and how it is computed, logged and kept (system, log, checkpoint).
    Images count by their identity, not by where they lie.
    """
    config = read_config(commit)
    known = config.that_changes_results() | {"init_from": config.init_from}
    del known["seed"]
    for key in (*PATHS, *LIMITS):
        section, _, name = key.partition(".")
        known.get(section, {}).pop(name, None)
    known |= {
        "images": commit.record.get("manifests"),
        "changes": [change for change in commit.record.get("changes", []) if not change.get("trunk")],
    }
    known |= {"network": network} if network != "encoder" else {}
    recipe = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    trunk = commit.record.get("branched_from")
    branched = {"branched_from": {key: trunk[key] for key in ("checkpoint", "samples_seen", "commit")}} if trunk else {}
    return {"recipe": recipe, "seed": config.seed, "samples_seen": commit.samples_seen, **branched}


def pretraining_beside(folder: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of an encoder/ folder that `write_encoder` wrote, where about = config.json's "mpp"; one from before that said so is asked of the run it lies in."""
    if "pretraining" in about:
        return about["pretraining"]
    found = next((commit for commit in commits(folder.resolve().parent) if commit.seal == about.get("commit")), None)
    try:
        return pretraining_of(found) if found else None
    except ConfigError:  # an older mpp's, whose keys are no longer known
        return None
