"""What all processes of a job must have in common before they do anything together: the command, the code, the packages."""

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mpp
from mpp.processes.peers import Peers

READ = "give a file or folder that all nodes share, or, of a run that still trains, one checkpoint: RUN/checkpoints/NNN"
PACKAGES = ("torch", "torchvision", "timm", "deepspeed", "webdataset", "numpy", "pillow", "safetensors")
OF_HOSTS = ("system.cache", "system.cache_gb", "shard_cache", "shard_cache_gb")  # each may have another disk
REMEDIES = {
    "program": "give all processes the same command",
    "config": "give all processes the same command and the same files of settings",
    "mpp": "have the same files of mpp on all hosts",
    "python": "install the same on all hosts",
} | dict.fromkeys(PACKAGES, "install the same on all hosts (constraints.txt pins what is tried)")


def agree(peers: Peers, program: str, settings: Mapping[str, Any]) -> None:
    """Collective, right behind the meeting.  settings: all of the program's, by dotted name.  Raises ConfigError, in all processes, that says which
    ranks differ from rank 0, and in what."""
    facts = {"program": program, "mpp": f"{mpp.__version__} ({code_digest()[:12]})", "python": platform.python_version()}
    facts |= {package: version(package) for package in PACKAGES}
    peers.agree(
        facts | {f"config.{name}": json.dumps(value, default=str) for name, value in settings.items() if name not in OF_HOSTS}, REMEDIES
    )


def agree_on_weights(peers: Peers, digests: Mapping[str, str]) -> None:
    """Collective, where each process has read weights for itself: a run may have committed anew between two of them, and a path may lead elsewhere on
    another host.  digests: sha256 by the key that names them.  Raises ConfigError, in all processes, where a rank has read others than rank 0."""
    peers.agree({f"weights.{key}": digest[:12] for key, digest in digests.items()}, {"weights": READ})


@functools.cache
def code_digest() -> str:
    """sha256 over mpp's own source files, hexadecimal."""
    digest, folder = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
