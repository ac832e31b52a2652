"""Many whole fine-tuning runs in one process, a tenth of a second each, and the small encoders and images they are given."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.forks import run_forked
from tests.pipeline.conftest import ROOT, environment, free_port

ARCH, HEADS, DEPTH, PATCH = "vit_tiny_patch16_224", 2, 3, 4
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

# All runs share one process group.  Pictures, which take half of a run, and waiting for the disk are left out; each look at the clock is a second.
PROGRAM = """
import contextlib, io, json, os, sys, time
from pathlib import Path
root, listed = sys.argv[1:]
sys.path.insert(0, root)
import torch
import torch.distributed as dist
from torch.nn import functional
import mpp.mains.finetune_end
import mpp.train.gathering
import mpp.train.speed
from mpp.base.errors import UserError
from mpp.finetune import main
world = mpp.train.gathering.start_distributed()
mpp.train.gathering.start_distributed = lambda *_: world  # one process group for all runs
dist.destroy_process_group = lambda: None
mpp.mains.finetune_end.draw_answers = lambda *_: None
os.fsync = lambda _: None
measure = mpp.mains.finetune_end.measure
def looked(*inputs, **words):
    print(f"looks at {len(words['data'].ids)} images")
    return measure(*inputs, **words)
mpp.mains.finetune_end.measure = looked
class Clock:
    seconds = 0
    def __getattr__(self, name):
        return getattr(time, name)
    def perf_counter(self):
        self.seconds += 1
        return float(self.seconds)
mpp.train.speed.time = Clock()
torch.nn.Module.compile = lambda self, **_: print("compiled")
import mpp.model.recompute
calls, again = [], []
checkpoint = mpp.model.recompute.checkpoint
def noted(*inputs, **words):
    again.append(1)
    return checkpoint(*inputs, **words)
mpp.model.recompute.checkpoint = noted
fused = functional.scaled_dot_product_attention
def counted(*inputs, **words):
    calls.append(1)
    return fused(*inputs, **words)
functional.scaled_dot_product_attention = counted
for name, words in json.loads(Path(listed).read_text()).items():
    out = io.StringIO()
    calls.clear(), again.clear()
    with contextlib.redirect_stdout(out):
        try:
            main(words)
        except UserError as error:
            print("refused:", error)
    print(f"fused attention: {bool(calls)} | computed again: {bool(again)}", file=out)
    Path(name + ".out").write_text(out.getvalue())
"""


def run_all(folder: Path, runs: Mapping[str, Sequence[str]]) -> None:
    """Each as folder/NAME, with what it said in folder/NAME.out; NAMEs hold no slash."""
    listed = folder / "runs.json"
    listed.write_text(json.dumps({name: list(words) for name, words in runs.items()}))
    finished = run_forked(["-c", PROGRAM, str(ROOT), str(listed)], cwd=folder, env=environment(0, 1, free_port()), timeout=300)
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-3000:]


def write_images(folder: Path, counts: Mapping[str, int], seed: int, smallest: int = 12) -> Path:
    """Class folders of PNGs of their own sizes, `smallest` pixels a side and up to 8 more, noise with some colour of the class."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            height, width = smallest + rng.integers(0, 9, 2)
            coarse = rng.integers(0, 176, (4, 5, 3))
            coarse[..., label % 3] += 12
            pixels = Image.fromarray(coarse.astype(np.uint8)).resize((int(width), int(height)), Image.Resampling.BICUBIC)
            pixels.save(folder / name / f"{number:03d}.png")
    return folder


def write_encoder(folder: Path, seed: int) -> Path:
    """A tiny ViT of 16 x 16 pixels in timm's own format, with input statistics of its own."""
    arguments = {"img_size": 16, "patch_size": PATCH, "embed_dim": 16, "depth": DEPTH, "num_heads": HEADS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = timm.create_model(ARCH, num_classes=0, **arguments)
        for parameter in net.parameters():  # nothing is left at 0 or 1
            parameter.data += torch.randn_like(parameter) * 0.1
    config = {
        "architecture": ARCH,
        "num_classes": 0,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, 16, 16], "mean": list(MEAN), "std": list(STD)},
    }
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def said(folder: Path, name: str) -> str:
    return (folder / f"{name}.out").read_text()


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def checkpoints(run: Path) -> list[int]:
    return sorted(int(entry.name) for entry in (run / "checkpoints").iterdir() if entry.name.isdigit())
